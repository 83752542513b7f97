"""Motion of t frames against one source image: flow (b, 2, t, h, w), occlusion (b, 1, t, h, w); and warping by it."""

__all__ = [
    "codec",
    "codecs",
    "frame_box",
    "guided_upsampling",
    "instants",
    "latent_chain",
    "learned_codec",
    "motion",
    "part_strength",
    "splatting",
    "tracing",
    "track_conflicts",
    "tracks",
    "upsampling",
    "warp",
]
