"""Losses of stage 1 that need only images and flow; those of motion predictors are in `lfdm.autoencoder.predictors`."""

__all__ = ["perceptual"]
