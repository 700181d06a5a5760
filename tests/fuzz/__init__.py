"""Whole random runs through `sim.api`, and laws that each must keep. `python -m tests.fuzz --help`; docs/fuzzing.md."""
