"""Logs of any shape as traces: which columns there are, what each may mean, and the table that a mapping gives.

Knows fields of the trace contract and columns of files, not any one format of a log.
"""
