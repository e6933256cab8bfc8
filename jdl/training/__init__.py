"""The loop around a learner's step: fit, evaluate, sources of batches, run directories, checkpoints."""
