"""The prefix cache by runs of blocks hands out the same blocks, one by one, as the plain one by single blocks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_kit import Setup, run, workload
from hypothesis import given
from hypothesis import strategies as st
from law_cases import Case, cases, laws, pressed

from sim.cost.fixed import FixedCost
from sim.engine.batch import Batch
from sim.engine.flight import Observer
from sim.engine.memory import KvPool, ids_of
from sim.engine.names import Names
from sim.engine.rules import OF_VLLM_0_19
from sim.engine.runs import Found
from sim.serving.replica import Replica

PLAIN = "blockwise_prefix:BlockwisePrefix"
UNHASHED_FIRST = replace(OF_VLLM_0_19, unhashed_blocks_first=True)


def names_of(ids: list[int]) -> Names:
    """Names of blocks that an id each tells."""
    return Names((1, 1, 1, 0), ids, len(ids), 0, 0, len(ids))


@given(
    st.tuples(st.integers(1, 20), st.integers(1, 50), st.sampled_from([0, 1])),
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.integers(0, 30),
    st.booleans(),
)
def test_as_many_blocks_are_alike_as_have_one_name(
    rule: tuple[int, int, int], units: tuple[int, int, int], stops: tuple[int, int], first: int, one_owner: bool
) -> None:
    """Of prompts that begin alike: of all their blocks, those that follow the ids included, and of parts that grew."""
    size, unit, behind = rule
    common, *more = units
    made = []
    for at, own in enumerate(more):
        ids = [*range(common), *range(100 * (at + 1), 100 * (at + 1) + own)]
        told = max(0, len(ids) * unit - (1 - behind)) // size
        made.append(Names((size, unit, behind, 0), ids, told, 7 if one_owner else at, at, told + 3))
    one, other = made
    same = [one.of(at) == other.of(at) for at in range(min(stops))]
    alike = same.index(False) if False in same else len(same)
    if alike <= first:
        return
    most = min(stops) - first
    assert one.alike(other, first, most) == alike - first
    # A part that another path has made longer, cut back to where both are alike, and gone on along this one.
    part = one.part(first, first + 1)
    part.extend(one, first + 1, min(stops))
    part.extend(other, alike, max(stops))
    assert [part.of(at) for at in range(first, max(stops))] == [other.of(at) for at in range(first, max(stops))]
    assert other.alike(part, first, max(stops) - first) == max(stops) - first


class Tables(Observer):
    """Writes down every table of blocks that a step computes with."""

    def __init__(self) -> None:
        self.seen: list[list[tuple[int, int, tuple[int, ...]]]] = []

    def planned(self, replica: Replica, batch: Batch) -> None:
        table = replica.engine.allocator.table
        self.seen.append([(req.id, past, tuple(table(req))) for req, _, past in batch.entries])


def tables(case: Case, allocator: str) -> list[list[tuple[int, int, tuple[int, ...]]]]:
    watch = Tables()
    run(replace(case.setup, allocator=allocator), case.workload(), [watch])
    return watch.seen


@pytest.mark.parametrize("rules", [OF_VLLM_0_19, UNHASHED_FIRST], ids=["in order", "unhashed first"])
def test_the_same_blocks_as_one_by_one(rules: object) -> None:
    @laws
    @given(cases("chunked", "prefix", most_samples=3), st.sampled_from([1, 2]), st.booleans())
    def alike(case: Case, depth: int, keep_uncomputed: bool) -> None:
        parameters = {**case.setup.allocator_parameters, "keep_uncomputed": keep_uncomputed}
        setup = replace(case.setup, depth=depth, rules=rules, allocator_parameters=parameters)
        case = replace(case, setup=setup).admissible()
        if case.rows:
            assert tables(case, "prefix") == tables(case, PLAIN)

    alike()


def test_the_same_blocks_under_pressure() -> None:
    for seed in range(6):
        case = pressed(seed, "chunked", "prefix").admissible()
        assert tables(case, "prefix") == tables(case, PLAIN)


def test_prompts_that_part_return_and_are_driven_out() -> None:
    """Long shared prompts that end at many places, in a pool that holds few of them."""
    ids = []
    for at in range(120):
        tree, common = 1000 * (at % 3), 5 + 7 * at % 23
        ids.append([*range(tree, tree + common), tree + 100 + 10 * common + at % 5, 10_000 + at])
    rows = [(at / 2, 8 * len(one), 5 + at % 9) for at, one in enumerate(ids)]
    work = workload(rows, prefix_ids=ids, prefix_unit_tokens=8)
    seen = []
    for allocator in ("prefix", PLAIN):
        watch = Tables()
        done = run(Setup(allocator=allocator, pool=KvPool(150, 4, 400), cost=FixedCost(1.0)), work, [watch])
        assert sum(req.prefix_hit_tokens for req in done.requests) > 1000
        seen.append(watch.seen)
    assert seen[0] == seen[1]


def test_a_run_that_leads_to_another_stays_until_that_is_gone() -> None:
    found = Found()
    one, other = names_of([1, 2, 3]), names_of([1, 2, 4, 5])
    found.name(one, ids_of([11, 12, 13]), 0, 3, [])
    found.name(other, ids_of([11, 12, 14, 15]), 2, 4, [])
    first, second = (run for run, _, _ in found.pieces(other, 4))
    found.forget(first, 0, ids_of([11, 12, 13]))
    assert (found.hits(other, 4), list(found.blocks())) == (0, [14, 15])
    found.name(other, ids_of([21, 22, 14, 15]), 0, 4, [])
    assert found.hits(other, 4) == 4
    found.forget(first, 0, ids_of([21, 22]))
    found.forget(second, 0, ids_of([14, 15]))
    assert not found.heads


def test_a_look_up_serves_an_admission_until_something_changes() -> None:
    found, one = Found(), names_of([1, 2, 3])
    found.name(one, ids_of([11, 12, 13]), 0, 3, [])
    assert found.hits(one, 3) == 3
    ((run, start, stop),) = found.hit(one, 2)
    assert (start, stop) == (0, 2)
    found.forget(run, 2, ids_of([13]))
    assert [piece[1:] for piece in found.hit(one, 3)] == [(0, 2)]
    found.hits(one, 3)
    found.name(names_of([1, 2, 3, 4]), ids_of([11, 12, 14, 15]), 2, 4, [])
    assert [piece[1:] for piece in found.hit(one, 3)] == [(0, 3)]


def test_a_holder_is_led_as_far_as_its_run_leads_now() -> None:
    """Another has made the run longer meanwhile, so that what the first computes stands twice."""
    found, names = Found(), names_of([1, 2, 3])
    led = found.name(names, ids_of([11, 12]), 0, 1, [])
    found.name(names_of([1, 2, 4]), ids_of([11, 12, 14]), 1, 2, [])
    assert [piece[1:] for piece in found.name(names, ids_of([11, 22, 23]), 1, 2, led)] == [(0, 2)]
    found.forget(led[0][0], 1, ids_of([12]))
    assert (found.hits(names, 2), list(found.blocks())) == (2, [11, 22])
