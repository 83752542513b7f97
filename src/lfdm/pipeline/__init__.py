"""Image and condition in, video out: `LatentFlowPipeline`, its folder, its inputs and its results.

Shapes: image (b, 3, H, W) in [0, 1] · video (b, 3, t, H, W) in [0, 1] · uint8 frames (b, t, H, W, 3).
"""

__all__ = [
    "card",
    "clip_tracks",
    "control",
    "control_file",
    "control_report",
    "folder",
    "full_size",
    "inputs",
    "lengths",
    "outputs",
    "pipeline",
    "quality",
    "result",
    "track_control",
    "transfer",
]
