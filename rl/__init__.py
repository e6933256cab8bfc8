"""Reinforcement learning on the learners, transforms and runs of `jdl`; its systems land one issue at a time."""
