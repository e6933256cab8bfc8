"""The command `jdl`."""
