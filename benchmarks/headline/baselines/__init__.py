"""Baselines: diffusion of pixels, diffusion of frame latents, copying the image, and the nearest real motion."""
