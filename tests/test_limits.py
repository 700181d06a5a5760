"""Limits at their edges: what just fits is served, and one more of anything is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_kit import Setup, run
from law_cases import Case, Row
from law_watchers import watched

from sim.engine import Limits
from sim.memory import KvPool

EDGES = {
    "max_model_len": (Setup(limits=Limits(4, 64, 12)), Row(0.0, 9, 3), Row(0.0, 9, 4)),
    "no chunks": (Setup(limits=Limits(4, 11, chunked_prefill=False)), Row(0.0, 9, 3), Row(0.0, 9, 4)),
    "no cache": (Setup(allocator="no-cache", limits=Limits(4, 11)), Row(0.0, 9, 3), Row(0.0, 9, 4)),
    "seats": (Setup(limits=Limits(3, 64)), Row(0.0, 9, 3, samples=3), Row(0.0, 9, 3, samples=4)),
    "beams": (Setup(limits=Limits(4, 3)), Row(0.0, 9, 3, samples=3, beams=True), Row(0.0, 9, 3, samples=4, beams=True)),
    "blocks": (Setup(pool=KvPool(3, 4)), Row(0.0, 9, 4), Row(0.0, 9, 5)),
    "shared blocks": (Setup(pool=KvPool(6, 4)), Row(0.0, 9, 4, samples=4), Row(0.0, 9, 4, samples=5)),
    "watermark": (
        Setup(pool=KvPool(4, 4), allocator_parameters={"watermark": 0.25}),
        Row(0.0, 9, 4),
        Row(0.0, 9, 5),
    ),
    "one piece": (Setup(allocator="contiguous-oracle", pool=KvPool(3, 4)), Row(0.0, 9, 4), Row(0.0, 9, 5)),
}


@pytest.mark.parametrize("edge", EDGES)
def test_what_just_fits_is_served_and_one_more_is_refused(edge: str) -> None:
    setup, fits, exceeds = EDGES[edge]
    case = Case(setup, [fits], 4)
    assert len(replace(case, rows=[exceeds, fits]).admissible().rows) == 1
    assert case.admissible().rows == [fits]
    assert (run(setup, case.workload()) if edge == "no cache" else watched(case)).column("finished").all()
