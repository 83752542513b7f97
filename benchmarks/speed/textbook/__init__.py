"""The networks in their textbook form, loading the same weights: the reference for speed and for parity."""
