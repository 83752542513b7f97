"""Faults in large numbers, such as kills, full disks, hostile files and broken data, and how lfdm handles them."""
