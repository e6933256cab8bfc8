"""Experiments to run and to copy: one file each."""
