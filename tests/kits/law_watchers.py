"""Models of what must hold in every run, told of its decisions: sequences as counters, and the KV slots' content.

They recompute queues, counters and the content of every slot from the decisions alone, the slow way, and share no
arithmetic with the engine. Only who was forked from whom is taken from the calls of `Allocator.fork`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from engine_kit import Run, run, slivers
from law_cases import Case, Draws

from sim.allocators.paged import Paged
from sim.allocators.prefix import Prefix
from sim.engine.batch import Batch
from sim.engine.engine import Engine
from sim.engine.flight import Flight, Observer
from sim.engine.memory import NULL_BLOCK, CannotFork, ForkingAllocator
from sim.engine.request import SAMPLE_BITS, Request, index_of
from sim.results.kv import KV_CHANGING, KV_KINDS
from sim.serving.replica import Replica


def sequences(req: Request) -> list[int]:
    """Ids of all sequences of a request."""
    return [req.id + (number << SAMPLE_BITS) for number in range(req.group.size if req.group else 1)]


def on_host(req: Request) -> int:
    """Tokens of a request whose KV is on the host."""
    return req.handover.tokens if req.handover is not None else 0


class Counters(Observer):
    """Sequences as two numbers: known and computed. It finds the token of each step from the decisions alone.

    A sequence that is not the first of its request begins in the step that computes the last token of the prompt,
    and samples in that step. The other beams of a search end when it is preempted, and begin again in the same way.
    """

    def __init__(self, case: Case) -> None:
        self.requests = case.requests()
        self.known = {req.id: req.prompt_tokens for req in self.requests}
        self.computed = dict.fromkeys(self.known, 0)
        self.unforked = {req.id for req in self.requests if req.seats > 1}
        self.forked: set[int] = set()
        self.parted: dict[int, set[int]] = {id: set() for id in self.known}
        """Of each request, the number of the tokens at which its sequences were forked."""
        self.admitted: set[int] = set()
        self.preemptions: Counter[int] = Counter()
        self.hits: dict[int, int] = {}
        self.scheduled_s: dict[int, float] = {}
        self.token_steps: dict[int, list[int]] = {}
        self.limits = case.setup.limits
        self.finished: set[int] = set()
        self._repeating: list[int] = []
        self._work, self._users = case.workload(), case.setup.concurrency
        after = self._work.after or ()
        self._roots = [id for id, before in enumerate(after) if before < 0]
        first = self._roots[: self._users] if self._users else self._roots
        self.arrival_s = {id: 0.0 if self._users else self._work.arrival_s[id] for id in first}
        del self._roots[: len(first)]

    def planned(self, replica: Replica, batch: Batch) -> None:
        for req in batch.evicted:
            if req.id not in self.admitted:
                # Admitted and evicted within this step: it was scheduled, though it computed nothing.
                self.scheduled_s.setdefault(req.id, batch.planned_s)
                self.hits.setdefault(req.id, req.prefix_hit_tokens)
            self._evict(req)
        share = slivers(replica.engine, batch)
        self._repeating = [id for id, _, _ in share]
        assert len(set(self._repeating)) == len(share), "a sequence stands twice in one step"
        assert sum(tokens for _, tokens, _ in share) == batch.tokens <= self.limits.max_num_batched_tokens
        for id, tokens, past in share:
            if id not in self.admitted:
                self.admitted.add(id)
                assert past < self.known[id]
                self.computed[id] = past
                if id not in self.hits:
                    self.hits[id] = past
                    self.scheduled_s[id] = batch.planned_s
            assert past == self.computed[id], "a token is computed twice, or left out"
            assert tokens >= 1
            self._compute(id, tokens, batch.first_step)
        self._queues(replica, batch)

    def _evict(self, req: Request) -> None:
        spec = self.requests[index_of(req.id)]
        ends = [req.id]
        if spec.group and spec.group.draw_beams and spec.id not in self.unforked:
            ends = sequences(spec)
            assert req.id == spec.id
            self.unforked.add(spec.id)
            self.forked.difference_update(ends)
        for id in ends:
            self.admitted.discard(id)
            self.computed[id] = 0
        self.preemptions[spec.id] += 1

    def _compute(self, id: int, tokens: int, step: int) -> None:
        self.computed[id] += tokens
        assert self.computed[id] <= self.known[id]
        if self.computed[id] < self.known[id]:
            return
        sampling = [id]
        if id in self.unforked:
            self.unforked.discard(id)
            sampling = sequences(self.requests[id])
            self.forked.update(sampling[1:])
            self.admitted.update(sampling)
            self.parted[id].add(self.known[id] + 1 - self.requests[id].prompt_tokens)
        known, computed = self.known[id], self.computed[id]
        for one in sampling:
            self.known[one], self.computed[one] = known + 1, computed
            self.token_steps.setdefault(one, []).append(step)

    def _queues(self, replica: Replica, batch: Batch) -> None:
        engine = replica.engine
        waiting, running = [req.id for req in engine.waiting], [req.id for req in engine.running]
        everybody = waiting + running
        assert len(set(everybody)) == len(everybody)
        arrived = {id for id, at_s in self.arrival_s.items() if at_s <= replica.clock.now}
        assert set(everybody) == (arrived | self.forked) - self.finished
        promised = sum(self.requests[id].seats - 1 for id in self.unforked.intersection(running))
        assert len(running) + len(engine.roster.held) + promised <= self.limits.max_num_seqs
        assert (batch.running, batch.waiting) == (len(running), len(waiting))
        assert set(self._repeating) <= set(running)

    def sealed(self, replica: Replica, flight: Flight) -> None:
        batch = flight.batch
        for repeat in range(1, batch.repeats):
            for id in self._repeating:
                self._compute(id, 1, batch.first_step + repeat)

    def committed(self, replica: Replica, flight: Flight) -> None:
        last = flight.batch.first_step + flight.batch.repeats - 1
        ended = {
            id
            for id, steps in self.token_steps.items()
            if len(steps) == self.requests[index_of(id)].output_tokens and steps[-1] == last
        }
        assert {req.id for req in flight.committed.ended} == ended
        self.finished |= ended
        for id in dict.fromkeys(index_of(id) for id in ended):
            if self.finished.issuperset(sequences(self.requests[id])):
                self._follow(id, flight.times_s[-1])

    def _follow(self, id: int, end_s: float) -> None:
        """What comes because this request has ended: nobody answers in no time."""
        soonest_s = math.nextafter(end_s, math.inf)
        after, think_s = self._work.after or (), self._work.think_s or ()
        followers = [other for other, before in enumerate(after) if before == id]
        for other in followers:
            self.arrival_s[other] = max(end_s + think_s[other], soonest_s)
        if self._users and not followers and self._roots:
            self.arrival_s[self._roots.pop(0)] = soonest_s

    def check_end(self, done: Run) -> None:
        ends_s = done.ends_s
        assert done.token_steps() == self.token_steps
        runs = done.engine.tokens
        assert all(first <= last for first, last in zip(runs.first_step, runs.last_step, strict=True))
        for req in done.requests:
            steps = [self.token_steps[id] for id in sequences(req)]
            assert [len(one) for one in steps] == [req.output_tokens] * len(steps)
            assert req.first_token_s == ends_s[steps[0][0]]
            assert req.finish_s == max(ends_s[one[-1]] for one in steps)
            assert req.arrival_s == self.arrival_s[req.id]
            assert req.arrival_s <= req.first_scheduled_s == self.scheduled_s[req.id] < req.first_token_s
            assert req.preemptions == self.preemptions[req.id]
            assert req.prefix_hit_tokens == self.hits[req.id]
            if req.group and isinstance(req.group.draw_beams, Draws):
                # Nobody is chosen after a token that parts the beams, nor after the last.
                chosen = req.output_tokens - len(self.parted[req.id] | {req.output_tokens})
                assert [sum(one) for one in req.group.draw_beams.counts] == [req.group.size] * chosen
        assert done.engine.preemptions == self.preemptions.total()
        assert done.engine.roster.seats_promised == 0


Token = tuple[int, ...]


class Forking:
    """An allocator as the groups of an engine see it, which tells of each fork before it is made."""

    def __init__(self, allocator: ForkingAllocator, told: Callable[[Request, Request], None]) -> None:
        self._allocator = allocator
        self._told = told
        self.owns_tail = allocator.owns_tail

    @property
    def copies(self) -> list[tuple[int, int]]:
        return self._allocator.copies

    @copies.setter
    def copies(self, copies: list[tuple[int, int]]) -> None:
        self._allocator.copies = copies

    def fork(self, parent: Request, child: Request) -> None:
        self._told(parent, child)
        self._allocator.fork(parent, child)


class Contents(Observer):
    """The KV slots themselves: each step writes its tokens' KV and must find that of all tokens before them.

    A token is told by what its KV depends on: it is equal to another only if all tokens before are equal too.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.pool = case.setup.pool
        self.slots: dict[int, Token] = {}
        self.on_host: dict[int, list[Token | None]] = {}
        self.text: dict[int, list[Token]] = {}
        self.computed: dict[int, int] = {}
        self.forks: list[tuple[Request, Request, bool]] = []
        self.forked: list[Request] = []
        self.sampled = 0
        self._before: dict[Request, Any] = {}
        self._share: list[tuple[Request, int, int]] = []
        self._watched: Engine | None = None

    # ---- what a subclass may see otherwise ------------------------------------------------------------------------

    def tables(self, engine: Engine, req: Request) -> list[list[int]]:
        """The block ids of a sequence, one list for each set of layers."""
        return [list(engine.allocator.table(req))]

    def attended(self, layers: int, position: int) -> list[int]:
        """Positions whose KV the token at `position` reads in such layers, itself left out."""
        return list(range(position))

    # ---- events ---------------------------------------------------------------------------------------------------

    def before_plan(self, replica: Replica) -> None:
        self.forks, self._before = [], {}
        if self._watched is replica.engine:
            return
        self._watched = engine = replica.engine
        groups: Any = engine._groups
        if isinstance(groups.forking, CannotFork):
            return

        def told(parent: Request, child: Request) -> None:
            fresh = parent.computed == parent.known
            self._before.setdefault(child, [] if fresh else self.tables(engine, child))
            self.forks.append((parent, child, fresh))

        groups.forking = Forking(groups.forking, told)

    def planned(self, replica: Replica, batch: Batch) -> None:
        engine = replica.engine
        by_id = {req.id: req for req in engine.running}
        self._share = [(by_id[id], tokens, past) for id, tokens, past in slivers(engine, batch)]
        tables = {
            req: self._before.get(req) or self.tables(engine, req) for req in (*engine.running, *engine.roster.held)
        }
        for _, child, fresh in self.forks:
            if fresh:
                del tables[child]
        for req in tables:
            self.text.setdefault(req.id, self._prompt(req))
        self._move(batch, engine)
        self._run(tables)
        self._fork_texts()
        self._check(engine)

    def sealed(self, replica: Replica, flight: Flight) -> None:
        engine = replica.engine
        tables = {req: self.tables(engine, req) for req in (*engine.running, *engine.roster.held)}
        for _ in range(1, flight.batch.repeats):
            self._share = [(req, 1, past + tokens) for req, tokens, past in self._share]
            self._run(tables)
        self._check(engine)

    def committed(self, replica: Replica, flight: Flight) -> None:
        self._check(replica.engine)

    # ---- what they do to the slots --------------------------------------------------------------------------------

    def _prompt(self, req: Request) -> list[Token]:
        ids, unit = (req.prefix or ((), 1))[:2]
        shared = min(req.prompt_tokens, len(ids) * unit)
        own = index_of(req.id)
        return [(-1, ids[at // unit], at) if at < shared else (own, at) for at in range(req.prompt_tokens)]

    def _move(self, batch: Batch, engine: Engine) -> None:
        """Make the copies and the moves to the host and back in the order that the batch gives."""
        copied = 0
        for req, blocks, out, after in batch.swaps:
            self._copy(batch.copies[copied:after])
            copied = after
            if out:
                self.on_host[req.id] = self._read(blocks, self.computed[req.id])
                assert self.on_host[req.id] == self.text[req.id][: self.computed[req.id]], f"{req} saves foreign KV"
                continue
            size = self.pool.block_tokens
            for position, token in enumerate(self.on_host.pop(req.id)):
                assert token is not None
                self.slots[blocks[position // size] * size + position % size] = token
        self._copy(batch.copies[copied:])
        for req in batch.evicted:
            assert on_host(req) in (0, self.computed.get(req.id, 0)), "more came to the host than was computed"
        moved_blocks = sum(self.pool.blocks_for(on_host(req)) for req in engine.waiting)
        assert 0 <= engine.host.free_blocks == self.case.setup.host_blocks - moved_blocks

    def _read(self, blocks: Sequence[int], tokens: int) -> list[Token | None]:
        size = self.pool.block_tokens
        return [self.slots.get(blocks[position // size] * size + position % size) for position in range(tokens)]

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        size = self.pool.block_tokens
        for source, target in copies:
            for at in range(size):
                token = self.slots.get(source * size + at)
                self.slots.pop(target * size + at, None)
                if token is not None:
                    self.slots[target * size + at] = token

    def _write(self, req: Request, start: int, end: int, tables: dict[Request, list[list[int]]]) -> None:
        size = self.pool.block_tokens
        for layers, table in enumerate(tables[req]):
            for block in dict.fromkeys(table[start // size : -(-end // size)]):
                for other in tables:
                    if other is not req and block in tables[other][layers]:
                        self._may_share(req, other, table.index(block))
            for position in range(start, end):
                assert table[position // size] != NULL_BLOCK
                self.slots[table[position // size] * size + position % size] = self.text[req.id][position]

    def _may_share(self, req: Request, other: Request, at: int) -> None:
        """Writing where another one reads is right only if it hit this block, whose tokens are the same."""
        assert self._watched is not None
        assert isinstance(self._watched.allocator, Prefix), f"{req} writes into a block of {other}"
        last = (at + 1) * self.pool.block_tokens - 1
        assert last < other.computed
        assert self.text[req.id][last] == self.text[other.id][last], f"{req} overwrites the KV of {other}"

    def _run(self, tables: dict[Request, list[list[int]]]) -> None:
        size = self.pool.block_tokens
        for req, tokens, past in self._share:
            self.computed[req.id] = past + tokens
            self._write(req, past, past + tokens, tables)
        for req, tokens, past in self._share:
            text = self.text[req.id]
            for layers, table in enumerate(tables[req]):
                needed = {at for position in range(past, past + tokens) for at in self.attended(layers, position)}
                for position in needed:
                    found = self.slots.get(table[position // size] * size + position % size)
                    assert found == text[position], f"{req} would read foreign KV at {position}"
        for parent, child, fresh in self.forks:
            if fresh:
                self.text[child.id] = self.text[parent.id].copy()
                self.computed[child.id] = self.computed[parent.id]
        new = [child.id for _, child, fresh in self.forks if fresh]
        for id in (*(req.id for req, _, _ in self._share), *new):
            if self.computed[id] == len(self.text[id]):
                self.text[id].append(self._token())

    def _token(self) -> Token:
        self.sampled += 1
        return (-2, self.sampled)

    def _fork_texts(self) -> None:
        """Two beams that go on from one have all computed tokens in common; each has its own next one."""
        for parent, child, fresh in self.forks:
            if not fresh:
                self.text[child.id] = [*self.text[parent.id][:-1], self._token()]
        self.forked, self.forks = [child for _, child, _ in self.forks], []

    # ---- what must hold after each event --------------------------------------------------------------------------

    def _check(self, engine: Engine) -> None:
        size, lockstep = self.pool.block_tokens, engine.roster.lockstep
        last: dict[int, Token] = {}
        filled: Counter[tuple[int, int]] = Counter()
        unfillable: set[tuple[int, int]] = set()
        spare_blocks = spare_internal = state_blocks = 0
        states = getattr(engine.allocator, "states", None)
        for req in (*engine.running, *engine.roster.held):
            computed = lockstep.computed(req) if req in lockstep else req.computed
            text = self.text.setdefault(req.id, self._prompt(req))
            for block in states(req) if states else ():
                assert block not in last, "a state's block is held twice"
                last[block] = (req.id,)
            # Those of sequences that are yet to be forked hold nothing.
            state_blocks += len(states(req)) // req.seats if states else 0
            for table in self.tables(engine, req):
                held = [(at, block) for at, block in enumerate(table) if block != NULL_BLOCK]
                assert len({block for _, block in held}) == len(held)
                assert all(1 <= block <= engine.allocator.pool.blocks for _, block in held)
                for at, block in held:
                    end = min(computed, (at + 1) * size)
                    if block in last:
                        assert isinstance(engine.allocator, Paged)
                        assert at * size < end, "a block is shared that holds nothing"
                        assert last[block] == text[end - 1], "a block is shared by different contents"
                    last[block] = text[end - 1] if end > at * size else (req.id,)
                    filled.update((block, offset) for offset in range(end - at * size))
                    first = max(0, req.final_kv_tokens - at * size)
                    unfillable.update((block, offset) for offset in range(first, size))
                if req.seats > 1 and not isinstance(engine.allocator, Paged):
                    # A contiguous reservation for sequences that are yet to be forked.
                    spare_blocks += (req.seats - 1) * len(table)
                    spare_internal += (req.seats - 1) * (len(table) * size - req.final_kv_tokens)
        assert engine.allocator.free_blocks == engine.allocator.pool.blocks - len(last) - spare_blocks
        usage = engine.usage()
        assert sum(usage[:-1]) == engine.allocator.pool.tokens
        assert min(usage) >= 0
        assert usage.used + usage.shared == len(filled) + state_blocks * size
        assert usage.shared == sum(count > 1 for count in filled.values())
        assert usage.saved == filled.total() - len(filled)
        assert usage.internal == len(unfillable) + spare_internal
        assert usage.free + usage.external == engine.allocator.free_blocks * size


def watched(case: Case, contents: type[Contents] | None = Contents) -> Run:
    """Run a case with every law checked at every event."""
    counters = Counters(case)
    done = run(case.setup, case.workload(), [counters, *([contents(case)] if contents else [])])
    counters.check_end(done)
    check_nothing_leaked(done.engine, case.setup.host_blocks)
    return done


def check_nothing_leaked(engine: Engine, host_blocks: int) -> None:
    allocator, usage = engine.allocator, engine.usage()
    assert allocator.free_blocks == allocator.pool.blocks
    assert engine.host.free_blocks == host_blocks
    assert usage.free + usage.external == sum(usage) == allocator.pool.tokens
    assert not engine.busy
    assert not engine.roster.held
    assert not engine.roster.draining
    assert not engine.roster.loose
    if isinstance(allocator, Paged):
        assert not allocator._sharing.holders
        assert not allocator._sharing._filled
        assert allocator._joined == 0


def same_decisions(one: Run, other: Run) -> None:
    """Two runs decided alike in everything, and at the same times to 1e-9 s."""
    assert one.steps == other.steps
    assert one.watch.evicted == other.watch.evicted
    assert one.watch.moves == other.watch.moves
    assert one.token_steps() == other.token_steps()
    np.testing.assert_allclose(one.ends_s, other.ends_s, rtol=0, atol=1e-9)
    for name in ("arrival_s", "first_scheduled_s", "first_token_s", "finish_s"):
        np.testing.assert_allclose(one.column(name), other.column(name), rtol=0, atol=1e-9)
    for name in ("id", "preemptions", "prefix_hit_tokens"):
        assert one.column(name).tolist() == other.column(name).tolist()
    if (other.table["repeats"] == 1).all():
        _same_memory(one.table, other.table)


def _same_memory(spans: pd.DataFrame, single: pd.DataFrame) -> None:
    """The KV slots of each span are those at its last step, and on average those of all its steps."""
    rows = [single[single["replica"] == at].reset_index() for at in range(1 + int(spans["replica"].max()))]
    for span in spans.itertuples():
        steps = rows[span.replica].iloc[span.step : span.step + span.repeats]
        for kind in (*KV_KINDS, "saved"):
            assert getattr(span, f"kv_{kind}_tokens") == steps[f"kv_{kind}_tokens"].iloc[-1], (kind, span)
        for kind in KV_CHANGING:
            each = steps[f"kv_{kind}_tokens"]
            if kind == "used":  # what stops being shared within the span counts there as if it had been used
                each = each + steps["kv_shared_tokens"] - span.kv_shared_tokens
            assert getattr(span, f"kv_{kind}_mean_tokens") == pytest.approx(each.mean()), (kind, span)
        assert steps["kv_external_tokens"].eq(span.kv_external_tokens).all()
