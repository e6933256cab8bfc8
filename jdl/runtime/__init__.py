"""This process and its machine: cores and devices, other processes, notices to end, caches, files."""
