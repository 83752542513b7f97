"""Shared by the benchmarks: stages that resume, equal training time, evaluation, stored results, tables, the machine's name."""
