"""`python -m backend.bench`: the kernels beside their peers."""

from backend.bench.run import main

main()
