"""Real data sets, one kind a file, and where they come from."""
