"""A request lives in two engines: no token gap is lost on the way, nothing is computed twice, nobody is preempted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import two_pools
from engine_kit import Setup, run, workload
from hypothesis import given
from hypothesis import strategies as st
from law_cases import laws
from two_pools import Served, serve

from sim.cost.step import FixedCost
from sim.engine.batch import Limits, Outcome
from sim.engine.memory import KvPool
from sim.results.gaps import TokenGaps
from sim.serving.executor import Predicted

COST = FixedCost(base_s=0.001, per_token_s=0.0001, per_context_token_s=0.00001)
EXECUTOR = Predicted(COST, overlap_host=False)
ROWS = st.lists(st.tuples(st.sampled_from([0.0, 0.0005, 0.03]), st.integers(1, 40), st.integers(1, 20)), max_size=12)
Row = tuple[float, int, int]


def placed(rows: list[Row]) -> list[Row]:
    times_s = np.cumsum([row[0] for row in rows])
    return [(float(at), prompt, output) for at, (_, prompt, output) in zip(times_s, rows, strict=True)]


def served(
    rows: list[Row], *, allocator: str = "paged", spans: bool = True, counts: tuple[int, int] = (1, 1)
) -> Served:
    setup = Setup(allocator=allocator, pool=KvPool(400, 4, 64), limits=Limits(16, 64), spans=spans)
    return serve(setup.engine, setup.engine, counts, EXECUTOR, workload(rows))


@pytest.mark.parametrize("allocator", ["paged", "contiguous-max", "contiguous-oracle"])
def test_every_token_has_its_gap_and_nobody_is_preempted(allocator: str) -> None:
    @laws
    @given(ROWS, st.booleans(), st.tuples(st.integers(1, 2), st.integers(1, 2)))
    def keeps(drawn: list[Row], spans: bool, counts: tuple[int, int]) -> None:
        rows = placed(drawn)
        done = served(rows, allocator=allocator, spans=spans, counts=counts)
        assert [req.id for req in done.requests] == list(range(len(rows)))
        assert done.handed_over == sum(output > 1 for _, _, output in rows)
        gaps = done.gaps()
        seconds, often = gaps.itl()
        assert often.sum() == sum(output - 1 for _, _, output in rows)
        spent_s = sum(req.finish_s - req.first_token_s for req in done.requests)
        assert float(seconds @ often) == pytest.approx(spent_s)
        longest_s = gaps.longest_s(len(rows))
        for req, (_, prompt, output) in zip(done.requests, rows, strict=True):
            assert req.preemptions == 0
            assert req.prefix_hit_tokens == 0
            assert req.known == prompt + output
            assert np.isnan(longest_s[req.id]) == (output == 1)
        for engine in done.engines:
            engine.roster.check()
            assert engine.preemptions == 0
            assert not engine.busy
            assert engine.allocator.free_blocks == engine.allocator.pool.blocks

    keeps()


@laws
@given(ROWS)
def test_over_a_link_without_cost_a_lone_request_is_served_as_by_one_engine(drawn: list[Row]) -> None:
    """Where nobody meets anybody, two pools give each token when one engine would."""
    rows = [(10.0 * at, prompt, output) for at, (_, prompt, output) in enumerate(drawn)]
    done = served(rows)
    alone = run(Setup(pool=KvPool(400, 4, 64), limits=Limits(16, 64), cost=COST), workload(rows))
    for name in ("first_scheduled_s", "first_token_s", "finish_s"):
        assert [getattr(req, name) for req in done.requests] == pytest.approx(alone.column(name).tolist())


def test_decoding_goes_on_while_a_prompt_is_computed() -> None:
    """What people split pools for, by hand: a long prompt of 64 tokens stands in nobody's way."""
    rows = [(0.0, 4, 30), (0.005, 64, 2)]
    apart = served(rows).gaps().longest_s(2)
    together = serve_together(rows)
    step_s = 0.001 + 0.0001 + 40 * 0.00001
    assert apart[0] < 2 * step_s < 0.0064 < together[0]


def serve_together(rows: list[Row]) -> np.ndarray:
    done = run(Setup(pool=KvPool(400, 4, 64), limits=Limits(16, 128), cost=COST), workload(rows))
    return TokenGaps([done.engine.tokens], [done.ends_s]).longest_s(len(rows))


def test_who_has_tokens_under_way_stays() -> None:
    engine = Setup(spans=False).engine()
    req = workload([(0.0, 4, 9)]).request(0, 0.0)
    engine.add(req)
    with pytest.raises(ValueError, match="cannot be handed over now"):
        engine.hand_over(req, "decode")
    for _ in range(2):  # first by its prompt's entry, then in lockstep
        batch = engine.plan(0.0)
        with pytest.raises(ValueError, match="cannot be handed over now"):
            engine.hand_over(req, "decode")
        engine.seal(batch, 1)
        with pytest.raises(ValueError, match="cannot be handed over now"):
            engine.hand_over(req, "decode")
        engine.commit(batch, Outcome([1.0], [1.0], 0.0), 1.0)
    assert batch.lockstep == 1
    assert engine.hand_over(req, "decode").tokens == req.known - 1 == 5
    engine.roster.check()


def test_it_is_short() -> None:
    assert len(Path(two_pools.__file__).read_text(encoding="utf-8").splitlines()) < 150
