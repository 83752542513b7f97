"""lfdm's nodes for ComfyUI. Put this folder, or a link to it, into ComfyUI's `custom_nodes`; see README.md."""

from .nodes import GenerateNode, LoadNode, MotionPreviewNode, TransferNode, register_model_folder

register_model_folder()

NODE_CLASS_MAPPINGS = {
    "LFDMLoad": LoadNode,
    "LFDMGenerate": GenerateNode,
    "LFDMTransfer": TransferNode,
    "LFDMMotionPreview": MotionPreviewNode,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "LFDMLoad": "Load LFDM",
    "LFDMGenerate": "LFDM Generate",
    "LFDMTransfer": "LFDM Transfer",
    "LFDMMotionPreview": "LFDM Motion Preview",
}
