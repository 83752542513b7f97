"""Choices and limits for images, videos, panels and folders of clips."""

from typing import Literal

Fit = Literal["pad", "crop"]
SheetFormat = Literal["aseprite", "hash", "array"]
FolderLayout = Literal["auto", "label", "label-subject", "split-label", "split-label-subject", "ucf101", "kth", "unlabelled"]
PanelFormat = Literal["gif", "mp4", "png"]
PanelKind = Literal["source", "generated", "warped", "flow", "grid", "arrows", "occlusion", "overlay", "regions"]

MIN_FPS = 0.01
MAX_FPS = 1000.0
