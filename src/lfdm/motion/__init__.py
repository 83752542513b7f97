"""Motion of t frames against one source image: flow (b, 2, t, h, w), occlusion (b, 1, t, h, w); and warping by it."""

__all__ = ["codec", "frame_box", "guided_upsampling", "motion", "splatting", "time_basis", "trajectories", "upsampling", "warp"]
