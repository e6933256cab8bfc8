"""Checkpoints that stay intact whenever a process is killed."""

from jdl.training.checkpoint.checkpoints import Checkpoints

__all__ = ["Checkpoints"]
