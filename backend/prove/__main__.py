"""`python -m backend.prove`: correctness, speed, a profile and its validation, in one command."""

from backend.prove.command import main

main()
