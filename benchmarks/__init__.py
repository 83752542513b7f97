"""Comparisons that print a table and store results/*.json.

Run `python -m benchmarks.speed`, `.headline`, `.ablation`, `.serving`, `.faults` or `.length`.
"""
