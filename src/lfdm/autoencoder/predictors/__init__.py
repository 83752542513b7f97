"""Motion predictors: source (b, 3, H, W) and driving (b, 3, t, H, W) frames to a `Motion` at (H, W) / stride."""

__all__ = ["predictor", "registry"]
