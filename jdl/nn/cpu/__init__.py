"""What XLA does slowly on a CPU, done otherwise."""
