"""Choices and limits for images, videos and panels."""

from typing import Literal

Fit = Literal["pad", "crop"]
PanelFormat = Literal["gif", "mp4", "png"]
PanelKind = Literal["source", "generated", "warped", "flow", "grid", "arrows", "occlusion", "overlay", "regions"]

MIN_FPS = 0.01
MAX_FPS = 1000.0
