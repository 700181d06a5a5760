"""What vLLM's front end costs, measured: `python -m tests.front_end --engine DIR`; and what real runs tell of it:
`python -m tests.front_end.silicon`. No tests of the product: they made the numbers of `docs/front_end.md`."""
