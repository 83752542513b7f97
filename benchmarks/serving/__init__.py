"""Serving: `lfdm serve` under load from many users."""
