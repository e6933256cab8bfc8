"""Learners (training as pure functions), the transforms between them, and metrics that merge exactly."""
