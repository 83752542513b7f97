"""Stage 1: encoder, motion predictor and decoder. Images (b, 3, H, W) in [0, 1], motion and latent at (H, W) / stride."""

__all__ = ["autoencoder", "convolution", "growth", "layers", "predictors", "upsampling"]
