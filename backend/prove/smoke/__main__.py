"""`python -m backend.prove.smoke`: every operation's line."""

from backend.prove.smoke.driver import main

main()
