"""Serving: many users at once."""
