"""Replay: what an agent remembers, and the tree that draws it by priority."""
