"""Checks of a clip data set for what usually goes wrong when a model is trained on it. Imports no torch."""

__all__ = ["data_check"]
