"""Experiments found by name, run, repeated, searched and swept."""
