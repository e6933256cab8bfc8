"""Checkpoints that a kill at any moment leaves whole."""

from jdl.training.checkpoint.checkpoints import Checkpoints

__all__ = ["Checkpoints"]
