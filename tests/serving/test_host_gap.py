"""What asynchronous scheduling does not hide of the host's work: added to each step, whatever the device takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import api
from sim.cost.fixed import FixedCost
from sim.cost.step import HIDDEN, HostGap
from sim.engine.batch import Batch, Shape
from sim.serving.executor import Predicted

COST = FixedCost(base_s=0.01, per_token_s=0.001)
TIMES = st.floats(0.0, 0.1)


class Hosted:
    """A cost with host seconds of its own."""

    def __init__(self, host_s: float) -> None:
        self.host_s = host_s

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        return COST.span_s(shape, repeats)[0], self.host_s

    explain, describe = COST.explain, COST.describe


def seconds(cost: Hosted, shape: Shape, *, overlap_host: bool, gap: HostGap, repeats: int = 1) -> list[float]:
    batch = Batch(0, 0.0, [], shape.decodes, [])
    batch.shape, batch.repeats = shape, repeats
    return Predicted(cost, overlap_host=overlap_host, gap=gap).execute(batch).seconds


@given(TIMES, st.integers(1, 50), st.integers(0, 3), st.integers(1, 4), TIMES, TIMES)
def test_it_is_added_to_the_longer_of_device_and_host(
    host_s: float, decodes: int, prompts: int, repeats: int, step_s: float, row_s: float
) -> None:
    shape, cost = Shape(((7, 0),) * prompts, decodes, decodes * 10), Hosted(host_s)
    device, _ = cost.span_s(shape, repeats)
    found = seconds(cost, shape, overlap_host=True, gap=HostGap(step_s, row_s), repeats=repeats)
    more_s = step_s + row_s * (decodes + prompts)
    assert found == pytest.approx([max(busy_s, host_s) + more_s for busy_s in device])
    # Where nothing is hidden all of the host's time is there already.
    synchronous = seconds(cost, shape, overlap_host=False, gap=HostGap(step_s, row_s), repeats=repeats)
    assert synchronous == pytest.approx([busy_s + host_s for busy_s in device])


def test_a_step_that_samples_nothing_has_none() -> None:
    assert HostGap(1.0, 1.0).of(Shape(swapped_bytes=1000)) == 0.0
    assert HIDDEN.of(Shape(decodes=5, decode_context=50)) == 0.0


def test_rows_that_verify_drafts_count_each_of_their_tokens() -> None:
    assert HostGap(1.0, 0.5).of(Shape(decodes=1, decode_context=9, verifies=((4, 1, 30, 0),))) == 1.0 + 0.5 * 5


def run(**settings: Any) -> api.Result:
    return api.run(trace="chatbot_arena.jsonl", limit=60, rate=8.0, **settings)


def test_each_constant_lengthens_the_steps_of_an_asynchronous_run_alone() -> None:
    none = {"cost.efficiency.host_gap_s": 0.0, "cost.efficiency.host_gap_row_s": 0.0}
    for name in none:
        longer = {**none, name: 1e-3}
        for asynchronous in (True, False):
            usual, other = (
                run(**settings, **{"engine.async_scheduling": asynchronous}).summary["tpot_s"]["mean"]
                for settings in (none, longer)
            )
            assert (other - usual > 0.9e-3) if asynchronous else other == usual, name


def test_the_terms_of_a_run_add_up_to_its_steps() -> None:
    found = run()
    assert found.terms is not None
    assert found.terms.gap == HostGap(1e-4, 8e-6)
    spans = [(shape, repeats) for _, shape, repeats in found.terms.spans]
    host_s = sum(repeats * found.terms.gap.of(shape) for shape, repeats in spans)
    assert host_s > 0
    hidden = replace(found.terms, gap=HIDDEN)
    assert sum(found.terms.seconds().values()) == pytest.approx(sum(hidden.seconds().values()) + host_s)
