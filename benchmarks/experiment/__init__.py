"""Shared by the comparisons: stages that resume, equal training time, judging, stored results and Markdown tables."""
