"""Motion of t frames against one source image: flow (b, 2, t, h, w), occlusion (b, 1, t, h, w); and warping by it."""

__all__ = [
    "codec",
    "codecs",
    "frame_box",
    "guided_upsampling",
    "motion",
    "part_strength",
    "splatting",
    "time_basis",
    "tracks",
    "trajectories",
    "trajectory_codec",
    "upsampling",
    "warp",
]
