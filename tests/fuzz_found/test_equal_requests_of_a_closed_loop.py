"""clock and spans, found by seed 70065: a closed loop of equal requests has noise in its step times by default.

Laws that recompute a step's price, or take the steps of a span for equal, ask for none.
"""

from __future__ import annotations

import pytest
from fuzz.case import Case, Row, Steps
from fuzz.check import broken

CASE = Case(
    settings={"policy": "static", "concurrency": 2, "workload.resample": 2},
    rows=(Row(0.0, 1, 3),),
    cost=Steps(base_s=0.0009765625, host_s=0.00048828125),
)


@pytest.mark.parametrize("law", ["clock", "spans"])
def test_equal_requests_keep_the_laws_of_prices(law: str) -> None:
    assert broken(CASE, law) == ""
