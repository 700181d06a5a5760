"""spans, found by seed 70227: a prompt of one token is padded beside requests that draft, in lockstep or not.

Those of a lockstep have no entries in the step, and so it looked as if nobody ran.
"""

from __future__ import annotations

from fuzz.case import Case, Row, Steps
from fuzz.check import broken

CASE = Case(
    settings={"policy": "speculative"},
    rows=(Row(0.17919921875, 1, 2), Row(0.18017578125, 1, 1)),
    cost=Steps(base_s=0.0009765625),
)


def test_an_admission_of_one_token_is_padded_beside_a_lockstep() -> None:
    assert broken(CASE, "spans") == ""
