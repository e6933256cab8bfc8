"""The network families, one a file."""
