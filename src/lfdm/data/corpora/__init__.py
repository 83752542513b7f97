"""Recordings from elsewhere, converted to clip data sets: any labelled folder, and the corpora of the paper."""

__all__ = ["conversion", "cutting", "folder", "mhad", "mug", "natops", "published", "recordings", "shapes", "sprites"]
