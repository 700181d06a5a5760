"""Python 3.11 finds an object's attributes at once where it has up to 29; one more, and each look at any of them
goes by way of a dictionary: it was 2.5 % of a run. What a loop looks at in every step keeps to that."""

from __future__ import annotations

import pytest
from engine_kit import MS, Setup

from sim.engine.flight import Observer
from sim.serving.clock import Clock
from sim.serving.executor import Predicted
from sim.serving.replica import Replica

MOST = 29


@pytest.mark.parametrize("allocator", ["paged", "prefix"])
def test_what_every_step_looks_at_has_few_attributes(allocator: str) -> None:
    engine = Setup(allocator=allocator, depth=2).engine()
    price = Predicted(MS, overlap_host=True)
    replica = Replica(Clock(), engine, price, depth=2, on_finish=lambda req: None, observer=Observer())
    for each in (replica, engine, engine.allocator, engine.roster, engine.tokens):
        # What is compiled has no dictionary.
        assert len(getattr(each, "__dict__", ())) <= MOST, type(each).__name__
