"""Shared by the comparisons: stages that resume, equal training time, evaluation, stored results, Markdown tables."""
