"""from_file, found by seed 344: at a multiple of the rate a limit keeps whole sessions, and not the first lines.

The first session had both of the requests that were kept, so that no rate was left; the first two lines have two
sessions. The law took them for the same.
"""

from __future__ import annotations

from fuzz.case import Case, Row
from fuzz.check import broken

CASE = Case(
    settings={"rate_scale": 1000000.0},
    rows=(Row(0.0, 1, 1), Row(0.00146484375, 1, 1), Row(0.00146484375, 1, 1, after=0)),
)


def test_a_limit_of_sessions_is_not_held_to_the_first_lines() -> None:
    assert broken(CASE, "from_file") == ""
