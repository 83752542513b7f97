"""Faults: kills, full disks, hostile files, broken data and the like, tried in numbers, and what lfdm did."""
