"""spans, found by seed 5238: replicas that preempt at one moment.

preempted.request, row 0: np.int64(3) against np.int64(2) (2 of 2 differ)
"""

from __future__ import annotations

from fuzz.case import Case, Row, Steps
from fuzz.check import broken

CASE = Case(
    settings={
        "replicas": 2,
        "kv.blocks": 2,
    },
    rows=(
        Row(0.0, 1, 16),
        Row(0.0, 1, 16),
        Row(0.0, 1, 17),
        Row(0.0, 1, 17),
    ),
    cost=Steps(base_s=0.0009765625, per_token_s=0.0, per_context_token_s=0.0, host_s=0.0),
)


def test_preemptions_of_one_moment() -> None:
    assert broken(CASE, "spans") == ""
