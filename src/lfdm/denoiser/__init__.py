"""The networks that stage 2 trains: predictors of the diffusion target of a clip's motion.

Shapes: noisy sample (b, 3, t, h, w), or another shape for other codecs; image latent (b, C, h, w); condition (b, D).
"""

__all__ = ["levels", "network", "undistilled", "unet3d"]
