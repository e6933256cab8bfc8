"""Real data sets, one kind per file, and where they come from."""
