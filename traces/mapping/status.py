"""What a log says of a request's end: answered, or failed. Words that are not known are no status."""

from __future__ import annotations

ANSWERED = frozenset(
    [
        *("ok", "success", "succeeded", "successful", "complete", "completed", "incomplete", "done", "finished"),
        *("unset", "status_code_ok", "status_code_unset"),
    ]
)
"""An incomplete answer is one that reached the most that it was allowed."""
FAILED = frozenset(
    [
        *("error", "failed", "failure", "fail", "timeout", "timed_out", "cancelled", "canceled", "aborted", "abort"),
        *("rejected", "status_code_error"),
    ]
)


def success(text: str) -> bool | None:
    """True for an HTTP code of 200 to 299 or a word of `ANSWERED`, False for other codes and `FAILED`, else None.

    Nothing at all counts as answered: logs leave the field empty where nothing went wrong.
    """
    told = text.strip().lower()
    if told.isdecimal() and len(told) == 3:
        return 200 <= int(told) < 300
    if not told or told in ANSWERED:
        return True
    return False if told in FAILED else None
