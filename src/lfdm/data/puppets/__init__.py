"""Procedural labelled clips of articulated figures, whose flow and visibility are known exactly."""

__all__ = ["actions", "data_set"]
