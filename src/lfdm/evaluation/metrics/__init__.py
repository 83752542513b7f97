"""Figures computed from arrays: closed formulas without networks."""
