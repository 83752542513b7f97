"""Measurements of drags, pins and tracks: `python -m benchmarks.control`."""
