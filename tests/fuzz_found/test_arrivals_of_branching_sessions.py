"""arrivals, found by seed 1104.

with 1 users, sessions start at [0.0, 0.0019531250000000004] and end at [0.0029296875, 0.00390625]
"""

from __future__ import annotations

from fuzz.case import Case, Row, Steps
from fuzz.check import broken

CASE = Case(
    settings={
        "engine.max_num_batched_tokens": 1,
        "concurrency": 1,
    },
    rows=(
        Row(0.0, 1, 1),
        Row(0.0, 1, 1),
        Row(0.0, 1, 1, after=0),
        Row(0.0, 1, 1, after=0),
    ),
    cost=Steps(base_s=0.0009765625, per_token_s=0.0, per_context_token_s=0.0, host_s=0.0),
)


def test_users_wait_for_every_branch_of_their_session() -> None:
    assert broken(CASE, "arrivals") == ""
