"""`python -m jdl` is the command `jdl`."""

from jdl.cli.main import main

main()
