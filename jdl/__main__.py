"""`python -m jdl` is the command `jdl`."""

from jdl.cli import main

main()
