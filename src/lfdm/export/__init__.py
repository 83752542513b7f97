"""Models without PyTorch: ONNX files and a runtime in NumPy, or PyTorch programs that need no code of ours."""

__all__ = ["dragging", "exporting", "runtime"]
