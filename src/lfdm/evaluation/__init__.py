"""Measure a model on held-out clips: motion and reconstruction of stage 1, and the videos that a generator makes.

Shapes: frames (b, t, S, S, 3) uint8 · video (b, 3, t, S, S) float32 in [0, 1] · flow (b, 2, t, h, w). Frame 0 is the given image.
"""

__all__ = ["cluster", "generators", "loading", "protocol", "report.tables", "run", "settings", "stage1", "store", "visibility"]
