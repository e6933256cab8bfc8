"""Perceptrons, small networks and what they teach."""
