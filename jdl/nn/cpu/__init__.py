"""Replacements for operations that XLA runs slowly on a CPU."""
