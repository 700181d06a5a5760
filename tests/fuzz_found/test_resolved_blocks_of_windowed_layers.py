"""resolved, found by seed 2351: a scenario that was written down and run again had the blocks of all groups of layers.

kv.blocks was the allocator's own number, which with windows in some layers is a multiple of what it is given.
"""

from __future__ import annotations

from fuzz.case import Case, Row, Steps
from fuzz.check import broken

CASE = Case(
    settings={"model": "gemma-3-27b", "allocator": "windowed", "kv.blocks": 40},
    rows=(Row(0.0, 6, 1),),
    cost=Steps(base_s=0.0009765625),
)


def test_a_resolved_scenario_has_the_blocks_that_the_allocator_is_given() -> None:
    assert CASE.run().result.scenario.kv.blocks == 40
    assert broken(CASE, "resolved") == ""
