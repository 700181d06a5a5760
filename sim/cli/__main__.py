"""`python -m sim.cli` is the command `sim`."""

from sim.cli.main import main

main()
