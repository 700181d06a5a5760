"""Every allocator against a slow and obvious model of its memory, on random histories, block id for block id."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.allocators.contiguous import Contiguous
from sim.allocators.paged import Paged
from sim.allocators.prefix import Prefix, _names_of
from sim.engine.memory import Allocator, KvPool, Usage, ids_between, ids_of, in_lockstep
from sim.engine.request import Request, Seat, SharedPrefix
from sim.load import load, names
from traces.schema import InputError

Token = tuple[int, int]
Content = tuple[Token, ...]

# ---- models ---------------------------------------------------------------------------------------------------------


class PagedModel:
    """A list of free blocks and a list of blocks per request."""

    def __init__(self, pool: KvPool, watermark: float = 0.0, reserve_full_prompt: bool = True) -> None:
        self.pool = pool
        self.kept_free = int(watermark * pool.blocks)
        self.reserve = reserve_full_prompt
        self.free = list(range(1, pool.blocks + 1))
        self.tables: dict[Request, list[int]] = {}

    def match(self, req: Request) -> int:
        return 0

    def admit(self, req: Request, tokens: int) -> bool:
        asked = req.known if self.reserve else req.computed + tokens
        if self._blocks(asked) > len(self.free) - self.kept_free:
            return False
        self.tables[req] = []
        if self.grow(req, tokens):
            return True
        del self.tables[req]
        return False

    def grow(self, req: Request, tokens: int) -> bool:
        table = self.tables[req]
        more = self._blocks(req.computed + tokens) - len(table)
        if more > len(self.free):
            return False
        for _ in range(more):
            table.append(self.free.pop(0))
        return True

    def release(self, req: Request) -> None:
        self.free += reversed(self.tables.pop(req))

    def usage(self) -> Usage:
        size = self.pool.block_tokens
        held = Counter(
            (table[at // size], at % size) for req, table in self.tables.items() for at in range(req.computed)
        )
        shared = sum(count > 1 for count in held.values())
        never = sum(max(0, len(table) * size - req.final_kv_tokens) for req, table in self.tables.items())
        free = len(self.free) * size
        reserved = self.pool.tokens - len(held) - never - free
        return Usage(len(held) - shared, shared, reserved, never, 0, free, held.total() - len(held))

    def _blocks(self, tokens: int) -> int:
        return sum(1 for _ in range(0, tokens, self.pool.block_tokens))


class PrefixModel(PagedModel):
    """The paged model, and one list of (content, block) in order of entry; a content is all tokens up to its end."""

    def __init__(self, pool: KvPool, keep_uncomputed: bool = False, **how: Any) -> None:
        super().__init__(pool, **how)
        self.keep_uncomputed = keep_uncomputed
        self.cached: list[tuple[Content, int]] = []
        self.filled_by_decoding: set[tuple[Request, int]] = set()
        self.known_when_admitted: dict[Request, int] = {}

    def tokens(self, req: Request, count: int) -> Content:
        """Equal tokens after equal tokens are equal; all that no shared prefix tells are the request's own."""
        ids, unit = (req.prefix or ((), 1))[:2]
        shared = min(req.prompt_tokens, len(ids) * unit)
        return tuple((-1, ids[at // unit]) if at < shared else (req.id, at) for at in range(count))

    def find(self, content: Content) -> int | None:
        return next((block for known, block in self.cached if known == content), None)

    def hits(self, req: Request, blocks: int) -> list[int]:
        found: list[int] = []
        for at in range(blocks):
            block = self.find(self.tokens(req, (at + 1) * self.pool.block_tokens))
            if block is None:
                break
            found.append(block)
        return found

    def match(self, req: Request) -> int:
        return len(self.hits(req, (req.known - 1) // self.pool.block_tokens)) * self.pool.block_tokens

    def admit(self, req: Request, tokens: int) -> bool:
        shared = self.hits(req, req.computed // self.pool.block_tokens)
        asked = req.known if self.reserve else req.computed + tokens
        idle = [block for block in shared if block in self.free]
        if self._blocks(asked) - len(shared) + len(idle) > len(self.free) - self.kept_free:
            return False
        for block in idle:
            self.free.remove(block)
        self.tables[req] = list(shared)
        self.known_when_admitted[req] = req.known
        if self.grow(req, tokens):
            return True
        raise AssertionError("an admission that was counted must fit")

    def grow(self, req: Request, tokens: int) -> bool:
        before = len(self.tables[req])
        if not super().grow(req, tokens):
            return False
        for block in self.tables[req][before:]:
            self.cached = [entry for entry in self.cached if entry[1] != block]
        if tokens == 1 and req.computed >= self.known_when_admitted[req]:
            self.filled_by_decoding.add((req, req.computed))
        self._enter(req, req.computed + tokens)
        return True

    def _enter(self, req: Request, tokens: int) -> None:
        size = self.pool.block_tokens
        for at in range(tokens // size):
            entry = (self.tokens(req, (at + 1) * size), self.tables[req][at])
            if entry not in self.cached:
                self.cached.append(entry)

    def release(self, req: Request) -> None:
        size = self.pool.block_tokens
        # What was taken back was never computed; the last token sampled, if that was by a batch still in flight, is
        # not known yet, so no block can be named by it.
        kept = req.computed + (req.seat.withdrawn_tokens if self.keep_uncomputed else 0)
        unknown = req.computed + req.seat.withdrawn_tokens - req.seat.in_flight
        ends = [(at + 1) * size - 1 for at in range(len(self.tables[req]))]
        lost = {
            block
            for end, block in zip(ends, self.tables[req], strict=True)
            if end >= kept or (end >= unknown and (req, end) in self.filled_by_decoding)
        }
        self.filled_by_decoding = {one for one in self.filled_by_decoding if one[0] is not req}
        self.cached = [entry for entry in self.cached if entry[1] not in lost]
        table = self.tables.pop(req)
        held = {block for other in self.tables.values() for block in other}
        self.free += [block for block in reversed(table) if block not in held]


class ContiguousModel:
    """One owner per block, or none."""

    def __init__(self, pool: KvPool, reserve: str, fit: str) -> None:
        self.pool, self.reserve, self.fit = pool, reserve, fit
        self.owner: list[Request | None] = [None] * pool.blocks
        self.refused_blocks = 0

    @property
    def tables(self) -> dict[Request, list[int]]:
        tables: dict[Request, list[int]] = {}
        for at, req in enumerate(self.owner):
            if req is not None:
                tables.setdefault(req, []).append(at + 1)
        return tables

    @property
    def free(self) -> list[int]:
        return [at + 1 for at, req in enumerate(self.owner) if req is None]

    def holes(self) -> list[tuple[int, int]]:
        """(length, first index) of each maximal run of free blocks."""
        runs, start = [], 0
        for at, req in enumerate([*self.owner, "end"]):
            if req is not None:
                if at > start:
                    runs.append((at - start, start))
                start = at + 1
        return runs

    def match(self, req: Request) -> int:
        return 0

    def admit(self, req: Request, tokens: int) -> bool:
        whole = {
            "max": self.pool.max_request_tokens,
            "pow2": req.prompt_tokens + next(2**n for n in range(40) if 2**n >= req.output_tokens),
            "oracle": req.prompt_tokens + req.output_tokens - 1,
        }[self.reserve]
        need = -(-whole // self.pool.block_tokens)
        fitting = [hole for hole in self.holes() if hole[0] >= need]
        if not fitting:
            self.refused_blocks = need
            return False
        self.refused_blocks = 0
        _, start = min(fitting) if self.fit == "best" else fitting[0]
        self.owner[start : start + need] = [req] * need
        return True

    def grow(self, req: Request, tokens: int) -> bool:
        return True

    def release(self, req: Request) -> None:
        self.owner = [None if one is req else one for one in self.owner]

    def usage(self) -> Usage:
        size, tables = self.pool.block_tokens, self.tables
        used = sum(req.computed for req in tables)
        reserved = sum(req.final_kv_tokens - req.computed for req in tables)
        never = sum(len(table) * size - req.final_kv_tokens for req, table in tables.items())
        external = size * sum(length for length, _ in self.holes() if length < self.refused_blocks)
        return Usage(used, 0, reserved, never, external, len(self.free) * size - external)


# ---- random histories -----------------------------------------------------------------------------------------------


class History:
    """Does to allocator and model what an engine does, at random, and compares them after each move."""

    def __init__(self, rng: random.Random, ours: Any, model: Any) -> None:
        self.rng, self.ours, self.model = rng, ours, model
        self.out: list[Request] = []
        self.held: list[Request] = []
        self.names: dict[tuple[int, ...], int] = {}
        self.unit_tokens = rng.choice((1, 2, 3, 4, 8))
        self.made = self.admissions = self.tick = self.refusals = self.hits = 0

    def play(self, moves: int) -> None:
        for _ in range(moves):
            move = self.rng.choices(
                (self.arrive, self.admit, self.grow, self.take_back, self.evict, self.finish, self.span),
                (3, 6, 6, 1, 1, 2, 3),
            )[0]
            move()
            self.compare()
        for req in list(self.held):
            self.leave(req)
            self.compare()
        assert self.ours.free_blocks == self.ours.pool.blocks

    def compare(self) -> None:
        model, ours = self.model, self.ours
        tables = model.tables
        assert {req: list(ours.table(req)) for req in self.held} == tables
        assert ours.free_blocks == len(model.free)
        assert ours.usage(sum(req.computed for req in self.held)) == model.usage()
        assert sum(model.usage()[:-1]) == ours.pool.tokens
        for req in self.out:
            assert ours.match(req) == model.match(req)

    def arrive(self) -> None:
        units = tuple(self.rng.randrange(2) for _ in range(self.rng.randrange(7)))
        ids = [self.names.setdefault(units[: at + 1], len(self.names)) for at in range(len(units))]
        prefix = SharedPrefix(ids, self.unit_tokens) if self.rng.random() < 0.8 else None
        req = Request(self.made, 0.0, self.rng.randint(1, 24), self.rng.randint(1, 12), prefix=prefix)
        req.seat = Seat()
        self.made += 1
        if self.ours.refusal(req) is None:
            self.out.append(req)

    def admit(self) -> None:
        if not self.out:
            return
        req = self.rng.choice(self.out)
        hit = self.ours.match(req)
        assert hit == self.model.match(req) < req.known
        tokens = self.rng.randint(1, req.known - hit)
        req.computed = hit
        admitted = self.ours.admit(req, tokens)
        assert self.model.admit(req, tokens) == admitted
        if not admitted:
            req.computed = 0
            self.refusals += 1
            return
        self.hits += hit
        req.seat.seq = self.admissions
        self.admissions += 1
        self.out.remove(req)
        self.held.append(req)
        self.compute(req, tokens)

    def compute(self, req: Request, tokens: int) -> None:
        req.computed += tokens
        if req.pending == 0:
            req.known += 1

    def grow(self, undo: bool = False) -> None:
        open_ = [req for req in self.held if req.generated < req.output_tokens]
        if not open_:
            return
        req = self.rng.choice(open_)
        tokens = self.rng.randint(1, req.pending)
        grown = self.ours.grow(req, tokens)
        assert self.model.grow(req, tokens) == grown
        if not grown:
            self.refusals += 1
        elif undo:
            self.leave(req, withdrawn_tokens=tokens)
        else:
            self.compute(req, tokens)

    def take_back(self) -> None:
        """A preemption in the step that granted: the tokens are never computed, their memory was taken."""
        self.grow(undo=True)

    def evict(self) -> None:
        open_ = [req for req in self.held if req.generated < req.output_tokens]
        if open_:
            self.leave(self.rng.choice(open_))

    def finish(self) -> None:
        done = [req for req in self.held if req.generated == req.output_tokens]
        if done:
            self.leave(self.rng.choice(done))

    def leave(self, req: Request, withdrawn_tokens: int = 0) -> None:
        req.finished = req.generated == req.output_tokens
        decoding = req.pending == 1 and req.generated > 0
        req.seat.withdrawn_tokens, req.seat.in_flight = withdrawn_tokens, decoding and self.rng.random() < 0.5
        self.ours.release(req)
        self.model.release(req)
        self.held.remove(req)
        if not req.finished:
            req.computed, req.seat.seq = 0, -1
            self.out.append(req)

    def span(self) -> None:
        """Many steps of many requests at once; the model takes them one by one, in admission order."""
        members = sorted(
            (req for req in self.held if req.pending == 1 and 0 < req.generated < req.output_tokens),
            key=lambda req: req.seat.seq,
        )
        members = [req for req in members if self.rng.random() < 0.8]
        if not members:
            return
        limit = self.rng.randint(1, min(req.output_tokens - req.generated for req in members))
        joined = list(members)
        self.rng.shuffle(joined)
        for req in joined:
            self.ours.join(req, self.tick)
        steps = self.ours.headroom(self.tick, limit)
        free = len(self.model.free)
        assert steps == self.most_steps(members, free, limit)
        while steps:
            some = self.rng.randint(1, steps)
            self.ours.advance(self.tick, some)
            self.tick += some
            steps -= some
            for _ in range(some):
                for req in members:
                    assert self.model.grow(req, 1)
                    self.compute(req, 1)
        self.rng.shuffle(joined)
        for req in joined:
            self.ours.leave(req)

    def most_steps(self, members: list[Request], free: int, limit: int) -> int:
        if isinstance(self.model, ContiguousModel):
            return limit
        size, computed = self.ours.pool.block_tokens, [req.computed for req in members]
        for step in range(limit):
            free -= sum(1 for one in computed if (one + step) % size == 0)
            if free < 0:
                return step
        return limit


def pools(rng: random.Random) -> KvPool:
    return KvPool(rng.randint(6, 30), rng.choice((1, 2, 4, 5)), 40)


def paged(rng: random.Random) -> tuple[Any, Any]:
    pool, how = pools(rng), {"watermark": rng.choice((0.0, 0.2)), "reserve_full_prompt": rng.random() < 0.5}
    return Paged(pool, **how), PagedModel(pool, **how)  # type: ignore[arg-type]


def prefix(rng: random.Random) -> tuple[Any, Any]:
    pool, keep = pools(rng), rng.random() < 0.5
    how = {"watermark": rng.choice((0.0, 0.2)), "reserve_full_prompt": rng.random() < 0.5}
    ours = Prefix(pool, keep_uncomputed=keep, **how)  # type: ignore[arg-type]
    return ours, PrefixModel(pool, keep, **how)


def contiguous(rng: random.Random) -> tuple[Any, Any]:
    pool, reserve, fit = pools(rng), rng.choice(("max", "pow2", "oracle")), rng.choice(("first", "best"))
    return Contiguous(pool, reserve=reserve, fit=fit), ContiguousModel(pool, reserve, fit)


@pytest.mark.parametrize("make", [paged, prefix, contiguous])
@given(seed=st.integers(0, 2**32), moves=st.integers(1, 120))
def test_agrees_with_the_obvious_model(make: Callable[[random.Random], tuple[Any, Any]], seed: int, moves: int) -> None:
    rng = random.Random(seed)
    History(rng, *make(rng)).play(moves)


@pytest.mark.parametrize("make", [paged, prefix, contiguous])
def test_the_histories_meet_refusals_and_hits(make: Callable[[random.Random], tuple[Any, Any]]) -> None:
    refusals = hits = 0
    for seed in range(12):
        rng = random.Random(seed)
        history = History(rng, *make(rng))
        history.play(150)
        refusals += history.refusals
        hits += history.hits
    assert refusals > 50
    assert (hits > 100) == (make is prefix)


# ---- single facts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in names("sim.allocators") if name not in ("windowed", "no-cache")])
def test_every_allocator_serves_spans_and_keeps_the_protocol(name: str) -> None:
    allocator = load("sim.allocators", name)(KvPool(8, 4, 32))
    assert in_lockstep(allocator)
    assert allocator.free_blocks == 8
    assert allocator.usage(0) == Usage(0, 0, 0, 0, 0, 32)
    req = Request(0, 0.0, 5, 3)
    assert allocator.admit(req, 5)
    req.computed = 5
    assert sum(allocator.usage(5)) == 32
    assert allocator.usage(5).used == 5
    assert len(allocator.table(req)) == 8 - allocator.free_blocks
    allocator.release(req)
    assert allocator.usage(0).free == 32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KvPool(0), "the KV cache has 0 blocks"),
        (lambda: KvPool(4, 0), "kv.block_tokens is 0"),
        (lambda: Paged(KvPool(4), watermark=1.0), "allocator.watermark is 1.0"),
        (lambda: Paged(KvPool(4), watermark=-0.1), "allocator.watermark is -0.1"),
        (lambda: Contiguous(KvPool(4, 16, 64), reserve="some"), "contiguous knows max, pow2 and oracle"),
        (lambda: Contiguous(KvPool(4, 16, 64), fit="worst"), "contiguous knows first and best"),
        (lambda: Contiguous(KvPool(4)), "max_model_len"),
    ],
)
def test_impossible_memories_are_refused(make: Callable[[], Allocator], message: str) -> None:
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        make()


@pytest.mark.parametrize(("watermark", "fits"), [(0.0, True), (0.01, True), (0.1, False)])
def test_a_watermark_keeps_blocks_free_at_admission_only(watermark: float, fits: bool) -> None:
    allocator = Paged(KvPool(20, 1), watermark=watermark)
    req = Request(0, 0.0, 19, 2)
    assert allocator.admit(req, 19) == fits
    if fits:
        req.computed = 19
        assert allocator.grow(req, 1)
        assert allocator.free_blocks == 0


def test_of_equal_blocks_the_one_entered_first_is_found() -> None:
    # Prompts of exactly one block are computed anew each time, since one token must be: 1, 2 and 3 hold the same.
    allocator = Prefix(KvPool(5, 4))

    def admitted(id: int, prompt_tokens: int, prefix: SharedPrefix | None) -> Request:
        req = Request(id, 0.0, prompt_tokens, 2, prefix=prefix)
        req.computed = allocator.match(req)
        assert allocator.admit(req, prompt_tokens - req.computed)
        req.computed = prompt_tokens
        return req

    same = SharedPrefix([7], 4)
    one, two, three = (admitted(id, 4, same) for id in range(3))
    assert [list(allocator.table(req)) for req in (one, two, three)] == [[1], [2], [3]]
    longer = admitted(3, 5, same)
    assert list(allocator.table(longer)) == [1, 4]
    for req in (one, longer):
        req.finished = True
        allocator.release(req)
    # The free ones are 5, 4 and 1; a stranger overwrites them all.
    assert list(allocator.table(admitted(4, 12, None))) == [5, 4, 1]
    for req in (two, three):
        req.finished = True
        allocator.release(req)
    assert list(allocator.table(admitted(5, 5, same))) == [2, 3]


# ---- a real trace ---------------------------------------------------------------------------------------------------


def mooncake(shared: Path) -> Iterator[tuple[int, list[int]]]:
    with gzip.open(shared / "traces/mooncake-fast25/conversation_trace.jsonl.gz", "rt") as lines:
        for line in lines:
            row = json.loads(line)
            yield row["input_length"], row["hash_ids"]


def hit_tokens(rows: Iterator[tuple[int, list[int]]], pool: KvPool, unit_tokens: int) -> tuple[int, int]:
    """(tokens hit, tokens asked) of a cache that never fills, one request after another."""
    cache, hits, asked = Prefix(pool), 0, 0
    for number, (prompt_tokens, ids) in enumerate(rows):
        req = Request(number, 0.0, prompt_tokens, 1, prefix=SharedPrefix(ids, unit_tokens))
        req.computed = cache.match(req)
        hits += req.computed
        asked += prompt_tokens
        assert cache.admit(req, req.known - req.computed)
        req.computed, req.finished = req.known, True
        cache.release(req)
    return hits, asked


@pytest.mark.shared
def test_mooncake_reuse_is_the_published_one(shared: Path) -> None:
    """105,710 of 288,500 blocks, counted by the trace's own README: an id counts as a block, even a partly filled one.

    Here each id is a block of one token, and each prompt has one token more, which no id tells: a hit covers at most
    all tokens but one.
    """
    rows = ((len(ids) + 1, ids) for _, ids in mooncake(shared))
    hits, asked = hit_tokens(rows, KvPool(400_000, 1), 1)
    assert (hits, asked - 12_031) == (105_710, 288_500)


@pytest.mark.shared
def test_mooncake_reuse_under_the_rules_of_vllm(shared: Path) -> None:
    """Blocks of 512 real tokens: a partly filled last block is never cached, and one token is always left to compute.

    The count is checked against a set of ids: the longest run of leading ids of whole blocks seen before, at most
    (tokens - 1) // 512 of them.
    """
    seen: set[int] = set()
    expected = 0
    for tokens, ids in mooncake(shared):
        hits = 0
        while hits < (tokens - 1) // 512 and ids[hits] in seen:
            hits += 1
        expected += hits
        seen.update(ids[: tokens // 512])
    hit, asked = hit_tokens(mooncake(shared), KvPool(400_000, 512), 512)
    assert asked == 144_793_823
    assert hit == 512 * expected
    # Of the 105,710 blocks one is missing for each of the 118 prompts that are covered whole: its last.
    assert expected == 105_710 - 118


@given(
    st.lists(st.integers(0, 2**64), min_size=1, max_size=40)
    | st.lists(st.integers(-3, 2**38), min_size=1, max_size=40),
    st.integers(1, 100),
    st.integers(1, 40),
    st.booleans(),
)
def test_names_of_blocks_are_those_of_their_last_tokens_however_many(
    ids: list[int], unit: int, size: int, ahead: bool
) -> None:
    req = Request(0, 0.0, len(ids) * unit, 5, prefix=SharedPrefix(ids, unit))
    names = _names_of(req, size, ahead=ahead)
    assert names.told == (len(ids) * unit - ahead) // size
    told = [(ids[((at + 1) * size - (not ahead)) // unit] << 24) + at for at in range(names.told)]
    assert names.between(0, names.told) == [names.of(at) for at in range(names.told)] == told
    assert all(type(name) is int for name in names.between(0, names.told))


@pytest.mark.parametrize(("first", "end"), [(1, 4), (3, 9000), (1, 1), (8999, 9001), (20_000, 20_001)])
def test_ids_between_two_are_those_of_the_range(first: int, end: int) -> None:
    assert ids_between(first, end) == ids_of(range(first, end))
