"""`python -m engine.cli` is the command `opportune`."""

from engine.cli import main

main()
