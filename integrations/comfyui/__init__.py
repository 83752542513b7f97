"""lfdm's nodes for ComfyUI. Put this folder, or a link to it, into ComfyUI's `custom_nodes`; see README.md."""

from .nodes import ControlNode, GenerateNode, LoadNode, MotionPreviewNode, TransferNode, register_model_folder

register_model_folder()

NODE_CLASS_MAPPINGS = {
    "LFDMLoad": LoadNode,
    "LFDMGenerate": GenerateNode,
    "LFDMControl": ControlNode,
    "LFDMTransfer": TransferNode,
    "LFDMMotionPreview": MotionPreviewNode,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "LFDMLoad": "Load LFDM",
    "LFDMGenerate": "LFDM Generate",
    "LFDMControl": "LFDM Control Points",
    "LFDMTransfer": "LFDM Transfer",
    "LFDMMotionPreview": "LFDM Motion Preview",
}
