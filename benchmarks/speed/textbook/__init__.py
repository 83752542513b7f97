"""The networks in their textbook form, with the same weights: the reference for speed and parity."""
