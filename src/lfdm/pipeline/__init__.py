"""Image and condition in, video out: `LatentFlowPipeline`, its folder, its inputs and its results.

Shapes: image (b, 3, S, S) in [0, 1] · video (b, 3, t, S, S) in [0, 1] · uint8 frames (b, t, S, S, 3).
"""

__all__ = ["control", "folder", "inputs", "outputs", "pipeline", "result", "transfer"]
