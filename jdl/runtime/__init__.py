"""This process and its machine: cores and devices, other processes, preemption, caches, files."""
