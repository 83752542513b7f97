"""Ablation: the value of each choice of our recipe, one change at a time."""
