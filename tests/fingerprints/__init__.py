"""Fingerprints of about 150 small whole runs: they tell, by run, table, column and row, that a result changed.

    python -m tests.fingerprints check             compare all of them with the record
    python -m tests.fingerprints record            write the record anew, and print what differs from the last one
    python -m tests.fingerprints show NAME DIR     the tables of a run as CSV, to be compared with another commit's
    python -m tests.fingerprints list

One rule: a fingerprint may change only in a commit that says why. They know the product by `sim.api`, the command line
and the outputs that docs/metrics.md describes, so that a new layout of the code leaves them as they are.
"""
