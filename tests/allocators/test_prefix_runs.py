"""The prefix cache by runs of blocks hands out the same blocks, one by one, as the plain one by single blocks."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
from engine_kit import Setup, run, workload
from hypothesis import given
from hypothesis import strategies as st
from law_cases import Case, cases, laws, pressed

from sim.allocators.prefix import Prefix
from sim.cost.fixed import FixedCost
from sim.engine.batch import Batch
from sim.engine.flight import Observer
from sim.engine.memory import NULL_BLOCK, KvPool, Usage, ids_of
from sim.engine.names import Names
from sim.engine.request import Request, SharedPrefix
from sim.engine.rules import OF_VLLM_0_19
from sim.engine.runs import BlockRun, Found, IdleQueue
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
    """Of prompts that begin alike: of all their blocks, those that follow the ids included."""
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


def laid(found: Found, names: Names, blocks: list[int]) -> tuple[IdleQueue, BlockRun]:
    """A queue with all blocks of one run, whose array it shares."""
    queue = IdleQueue(found)
    ((run, _, _),) = found.name(names, ids_of(blocks), 0, len(blocks), [])
    queue.put(run, ids_of(blocks), len(blocks))
    assert run.idle[0].blocks is run.blocks
    return queue, run


def test_blocks_that_lie_in_the_queue_as_a_whole_are_forgotten_as_they_are_taken() -> None:
    found, names = Found(), names_of([1, 2, 3])
    queue, run = laid(found, names, [11, 12, 13])
    assert found.hits(names, 3) == 3
    assert list(queue.take(2)) == [13, 12]
    assert [piece[1:] for piece in found.hit(names, 3)] == [(0, 1)]
    assert (found.hits(names, 3), list(found.blocks())) == (1, [11])
    assert list(queue.take(1)) == [11]
    assert not found.heads
    assert not run.idle


def test_a_run_keeps_the_names_that_lead_to_another_though_their_blocks_are_taken() -> None:
    found, one, other = Found(), names_of([1, 2, 3]), names_of([1, 2, 4])
    queue, run = laid(found, one, [11, 12, 13])
    found.name(other, ids_of([11, 12, 14]), 2, 3, [(run, 0, 2)])
    assert list(queue.take(2)) == [13, 12]
    assert (found.hits(other, 3), sorted(found.blocks())) == (1, [11, 14])
    found.name(other, ids_of([11, 22, 14]), 1, 3, [])
    assert (found.hits(other, 3), sorted(found.blocks())) == (3, [11, 14, 22])
    assert list(queue.take(1)) == [11]
    assert found.hits(other, 3) == 0


def test_who_takes_some_of_a_run_out_of_the_queue_leaves_the_run_as_it_is() -> None:
    found, names = Found(), names_of([1, 2, 3])
    queue, run = laid(found, names, [11, 12, 13])
    for place in queue.of((run, 0, 2)):
        queue.leave(*place)
    assert (found.hits(names, 3), list(run.blocks)) == (3, [11, 12, 13])
    assert list(queue.take(1)) == [13]
    assert found.hits(names, 3) == 2


def test_who_takes_all_of_a_run_out_of_the_queue_is_not_robbed_of_it() -> None:
    found, names = Found(), names_of([1, 2])
    queue, run = laid(found, names, [11, 12])
    queue.put_unnamed(ids_of([31, 32]))
    for place in queue.of((run, 0, 2)):
        queue.leave(*place)
    assert list(queue.take(1)) == [32]
    assert found.hits(names, 2) == 2


def test_a_run_that_grows_or_is_forgotten_leaves_the_queue_as_it_is() -> None:
    found, names = Found(), names_of([1, 2, 3])
    queue, run = laid(found, names, [11, 12])
    found.name(names, ids_of([11, 12, 13]), 2, 3, [(run, 0, 2)])
    assert list(queue.take(2)) == [12, 11]
    found = Found()
    queue, run = laid(found, names, [11, 12, 13])
    found.forget(run, 1, ids_of([12, 13]))
    assert list(queue.take(3)) == [13, 12, 11]


def test_content_computed_twice_stays_found_when_the_first_is_taken_as_a_whole() -> None:
    found, names = Found(), names_of([1, 2])
    queue, _ = laid(found, names, [11, 12])
    found.name(names, ids_of([21, 22]), 0, 2, [])
    assert list(queue.take(2)) == [12, 11]
    assert (found.hits(names, 2), list(found.blocks())) == (2, [21, 22])


def test_nobody_makes_a_run_longer_that_others_hold() -> None:
    """Else each who goes on from a common beginning would be a part of it, to be told apart from it block by block."""
    found, one, other = Found(), names_of([1, 2, 3]), names_of([1, 2, 4])
    ((run, _, _),) = led = found.name(one, ids_of([11, 12]), 0, 2, [])
    run.shared = True
    assert [piece[1:] for piece in found.name(one, ids_of([11, 12, 13]), 2, 3, led)] == [(0, 2), (2, 3)]
    assert [piece[1:] for piece in found.name(other, ids_of([11, 12, 14]), 2, 3, led)] == [(0, 2), (2, 3)]
    assert found.hits(one, 3) == found.hits(other, 3) == 3


def test_what_nobody_finds_behind_the_last_parting_is_cut_off() -> None:
    found, one, other = Found(), names_of([1, 2, 3, 4]), names_of([1, 2, 5])
    ((run, _, _),) = found.name(one, ids_of([11, 12, 13, 14]), 0, 4, [])
    found.name(other, ids_of([11, 12, 15]), 2, 3, [(run, 0, 2)])
    found.forget(run, 2, ids_of([NULL_BLOCK, 14]))
    assert list(run.blocks) == [11, 12, 13]
    found.forget(run, 0, ids_of([NULL_BLOCK, 12, 13]))
    assert list(run.blocks) == [11, NULL_BLOCK]
    found.forget(found.heads[other.of(2)], 0, ids_of([15]))
    assert (run.after, run.parting) == (0, 0)


def test_holders_of_one_beginning_are_counted_together_until_one_holds_another_or_forks() -> None:
    """What each of them gives back, and what is shared meanwhile, is as if every block counted."""
    lengths = ((5, 5, 3, 5, 5), (5, 5, 5, 5, 3))
    for each, forks, order in itertools.product(lengths, (False, True), itertools.permutations(range(5))):
        allocator = Prefix(KvPool(60, 4))
        requests = []
        for at, blocks in enumerate(each):
            ids = [*range(blocks), 100 + at]
            req = Request(at, 0.0, 4 * blocks + 4, 9, prefix=SharedPrefix(ids, 4))
            req.computed = allocator.match(req)
            assert allocator.admit(req, req.known - req.computed)
            req.computed = req.known
            requests.append(req)
        if forks:
            child = Request(9, 0.0, 24, 9, prefix=requests[1].prefix)
            allocator.fork(requests[1], child)
            child.computed = requests[1].computed
            requests.append(child)
        for at in (*order, *range(5, len(requests))):
            held = Counter(block for req in requests for block in allocator.table(req))
            usage = allocator.usage(sum(req.computed for req in requests))
            assert usage.shared == 4 * sum(count > 1 for count in held.values())
            assert usage.saved == 4 * (held.total() - len(held))
            assert allocator.free_blocks == 60 - len(held)
            allocator.release(requests[at])
            requests[at].computed = 0
        assert allocator.usage(0) == Usage(0, 0, 0, 0, 0, 240)
        assert not allocator._sharing.holders
