"""A second engine: slow and obvious, written from the docs and from vLLM's scheduler, to be compared with the product.

It shares no code with the product and keeps no sums: what is held, shared or free is counted anew, slot by slot, when
it is asked for. A block's name is the text up to its end, no hash. No step ever repeats. Seconds come from a function
of a step's rows, and right drafts from a table. Who comes because another one ended comes just after that end.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from naive_scenarios import Ask, Scenario


class Job:
    """A request on its way. Of `known` tokens, the last `hoped` are yet to be sampled by batches in flight."""

    def __init__(self, id: int, ask: Ask, arrival_s: float) -> None:
        self.id, self.ask, self.arrival_s = id, ask, arrival_s
        self.text = [ask.text[at] if at < len(ask.text) else (id, at) for at in range(ask.prompt + ask.output)]
        self.table: list[int] = []
        self.computed = self.given = self.hoped = self.drafts = self.under_way = 0
        self.verifications = self.preemptions = self.hit_tokens = 0
        self.scheduled_s = math.nan
        self.tokens: list[tuple[int, float]] = []

    @property
    def certain(self) -> int:
        return self.ask.prompt + self.given

    @property
    def known(self) -> int:
        return self.certain + self.hoped

    @property
    def ending(self) -> bool:  # is it over with what is under way? Each batch gives one token at least
        return self.given + self.under_way >= self.ask.output


@dataclass
class Row:
    """A job's share of a step. It samples if `drafts` are told: so many are verified and `right` of them kept."""

    job: Job
    tokens: int
    past: int
    drafts: int | None = None
    right: int = 0


@dataclass
class Flight:
    """A batch and what is recorded of it: `kv` and `tables` at its end, before who ends with it gives anything back."""

    step: int
    rows: list[Row]
    start_s: float
    end_s: float
    counts: tuple[int, int, int]  # requests running and waiting, tokens computed for nobody
    kv: tuple[int, ...] = ()
    tables: dict[int, list[int]] = field(default_factory=dict)


class Memory:
    """Who holds which blocks: paged, with or without shared prefixes, or one run of blocks each."""

    def __init__(self, told: Scenario) -> None:
        self.told, self.size = told, told.block_tokens
        self.free = list(range(1, told.blocks + 1))
        self.names: dict[int, tuple[Any, ...]] = {}
        self.jobs: list[Job] = []
        self.refused = 0

    def hits(self, job: Job) -> list[int]:  # one token at least is left to compute
        hits: list[int] = []
        while self.told.allocator == "prefix" and (len(hits) + 1) * self.size < job.known:
            name = tuple(job.text[: (len(hits) + 1) * self.size])
            found = [block for block, other in self.names.items() if other == name]
            if not found:
                break
            hits.append(found[0])
        return hits

    def admit(self, job: Job, hits: list[int], tokens: int) -> bool:
        if self.told.contiguous:
            return self.reserve(job)
        idle = [block for block in hits if block in self.free]
        whole = self.told.allocator_parameters.get("reserve_full_prompt", True)
        asked = self.told.blocks_for(job.known if whole else len(hits) * self.size + tokens)
        return asked - len(hits) + len(idle) <= len(self.free) - self.told.watermark_blocks and self.hold(job, hits)

    def reserve(self, job: Job) -> bool:
        need = self.told.reservation(job.ask)
        fitting = [hole for hole in self.holes() if len(hole) >= need]
        self.refused = 0 if fitting else need
        if not fitting:
            return False
        first = self.told.allocator_parameters["fit"] == "first"
        return self.hold(job, (fitting[0] if first else min(fitting, key=len))[:need])

    def hold(self, job: Job, blocks: list[int]) -> bool:
        job.table = blocks
        self.free = [block for block in self.free if block not in blocks]
        self.jobs.append(job)
        return True

    def holes(self) -> list[list[int]]:  # free blocks, in runs of neighbours
        runs: list[list[int]] = []
        for block in sorted(self.free):
            if not runs or runs[-1][-1] != block - 1:
                runs.append([])
            runs[-1].append(block)
        return runs

    def grow(self, job: Job, tokens: int) -> bool:
        need = self.told.blocks_for(job.computed + tokens) - len(job.table)
        if need > len(self.free):
            return False
        for _ in range(need):
            job.table.append(self.free.pop(0))
            self.names.pop(job.table[-1], None)
        # A block is findable from the moment it is given to tokens that are certain (vLLM, `allocate_slots`).
        self.name(job, min(job.computed + tokens, job.certain))
        return True

    def name(self, job: Job, tokens: int) -> None:
        for at in range(tokens // self.size if self.told.allocator == "prefix" else 0):
            self.names.setdefault(job.table[at], tuple(job.text[: (at + 1) * self.size]))

    def release(self, job: Job) -> None:
        """Give back all blocks, the last one first; nobody may find those whose tokens were never computed."""
        for block in job.table[job.computed // self.size :]:
            self.names.pop(block, None)
        self.jobs.remove(job)
        held = {block for other in self.jobs for block in other.table}
        self.free += [block for block in reversed(job.table) if block not in held]
        job.table = []

    def usage(self) -> tuple[int, ...]:
        """Slots used, shared, reserved, internal, external, free, and those saved by sharing."""
        data: Counter[tuple[int, int]] = Counter()
        wanted: set[tuple[int, int]] = set()
        for job in self.jobs:
            slots = [(block, at) for block in job.table for at in range(self.size)]
            data.update(dict.fromkeys(slots, 0))
            data.update(slots[: job.computed])
            wanted.update(slots[: self.told.slots(job.ask)])
        used, shared = sum(count == 1 for count in data.values()), sum(count > 1 for count in data.values())
        external = self.size * sum(len(hole) for hole in self.holes() if len(hole) < self.refused)
        reserved, internal, free = len(wanted) - used - shared, len(data) - len(wanted), self.size * len(self.free)
        return used, shared, reserved, internal, external, free - external, data.total() - used - shared


class Engine:
    """The queues, a step's budget, and the policies."""

    def __init__(self, told: Scenario) -> None:
        self.told, self.options, self.memory = told, told.parameters, Memory(told)
        self.most = self.options.get("long_prefill_token_threshold", 0)
        self.waiting, self.running, self.held = [list[Job]() for _ in range(3)]
        self.batch: dict[int, int] = {}  # of a static batch: by how much each member's prompt is padded

    def queue(self, job: Job, place: int) -> None:
        self.waiting.insert(place, job)
        by = {"priority": "priority", "sjf": self.options.get("by", "prompt")}.get(self.told.policy)
        if by:
            self.waiting.sort(key=lambda one: (getattr(one.ask, by), one.arrival_s, one.id))

    def plan(self, now_s: float) -> None:
        self.now_s, self.left, self.wake_s = now_s, self.told.limits.max_num_batched_tokens, math.inf
        self.rows: list[Row] = []
        self.evicted: list[Job] = []
        self.padded: list[tuple[int, int]] = []
        {"static": self.static, "continuous": self.continuous}.get(self.told.policy, self.chunked)()
        for row in self.rows:
            job = row.job
            job.drafts = 0
            if job.computed >= job.known:  # it samples
                row.drafts = job.computed - job.known
                row.right = min(self.told.accepted(job.id, job.verifications), row.drafts)
                job.hoped += row.drafts + 1
                job.under_way += 1
                job.verifications += 1
                # Planned early, the next drafts are counted on before it is known what they are.
                job.drafts = self.told.drafts if self.told.depth == 2 else 0

    def chunked(self) -> None:
        self.serve()
        if not self.evicted:
            self.admit_all()

    def continuous(self) -> None:
        prefilling = any(job.known - job.computed > 1 for job in self.running if not job.ending)
        prefill_first = self.options.get("order", "prefill-first") == "prefill-first"
        if prefill_first and not prefilling:
            self.admit_all(whole=True)
        if not self.rows:
            self.serve()
            if not prefill_first and not self.evicted:
                self.admit_all(whole=True)

    def static(self) -> None:
        if self.running:
            self.serve()
        elif self.waiting:
            self.form()
        lengths = [job.computed + self.batch[job.id] for job in self.running if not job.ending]
        if self.rows:
            longest = max(row.tokens for row in self.rows)
            self.padded = [(longest, max(lengths) - longest)] * len(self.batch)

    def form(self) -> None:
        """Start a batch when it is full or its oldest member has waited long enough."""
        due_s = self.waiting[0].arrival_s + self.options.get("timeout_s", 0.1)
        batch_size = self.options.get("batch_size", 8)
        if len(self.waiting) < batch_size and self.now_s < due_s:
            self.wake_s = due_s
            return
        rows, padded = 1, [at * max(job.known for job in self.waiting[:at]) for at in range(1, len(self.waiting) + 1)]
        while rows < min(batch_size, len(padded)) and padded[rows] <= self.left:
            rows += 1
        self.admit_all(whole=True, first=rows)
        longest = max((job.known for job in self.running), default=0)
        self.batch = {job.id: longest - job.known for job in self.running}

    def serve(self) -> None:
        """The running list in its order; the asker preempts until it fits or has to give way itself."""
        for job in list(self.running):
            if self.left <= 0:
                return
            if job in self.evicted or job.ending:
                continue
            tokens = job.known + job.drafts - job.computed
            if self.told.drafts and self.told.limits.max_model_len:
                tokens = min(tokens, self.told.limits.max_model_len - 1 - job.computed)
            tokens = self.fitting(tokens, cut=self.told.limits.chunked_prefill or job.drafts > 0)
            if tokens <= 0:
                continue
            while not self.memory.grow(job, tokens):
                self.preempt()
                if job in self.evicted:
                    return
            self.give(job, tokens)

    def admit_all(self, *, whole: bool = False, first: int | None = None) -> None:
        all(self.admit(job, whole=whole) for job in self.waiting[:first])  # up to the first that is refused

    def admit(self, job: Job, *, whole: bool) -> bool:
        if self.left <= 0 or len(self.running) + len(self.held) >= self.told.limits.max_num_seqs:
            return False
        hits = self.memory.hits(job)
        past = len(hits) * self.told.block_tokens
        tokens = self.fitting(job.known - past, cut=self.told.limits.chunked_prefill and not (whole and self.rows))
        if tokens <= 0 or not self.memory.admit(job, hits, tokens):
            return False
        job.computed = past
        assert self.memory.grow(job, tokens)
        self.waiting.remove(job)
        self.running.append(job)
        if not job.preemptions:
            job.scheduled_s, job.hit_tokens = self.now_s, past
        self.give(job, tokens)
        return True

    def fitting(self, tokens: int, *, cut: bool) -> int:  # all or nothing where they must not be cut
        tokens = min(tokens, self.most) if self.most else tokens
        return tokens if tokens <= self.left else self.left if cut else 0

    def give(self, job: Job, tokens: int) -> None:
        self.rows.append(Row(job, tokens, job.computed))
        job.computed += tokens
        self.left -= tokens

    def preempt(self) -> None:
        """The newest gives way, or the one of lowest priority; what it was given in this step is taken back."""
        job = self.running[-1]
        if self.told.policy == "priority":
            job = max(self.running, key=lambda one: (one.ask.priority, one.arrival_s))
        for row in [row for row in self.rows if row.job is job]:
            job.computed = row.past
            self.left += row.tokens
            self.rows.remove(row)
        self.memory.release(job)
        job.computed = job.drafts = 0
        job.preemptions += 1
        self.running.remove(job)
        self.queue(job, 0)
        self.evicted.append(job)
        self.give_back()

    def give_back(self) -> None:
        """A static batch keeps the memory and the seats of its members until the last has ended."""
        if self.told.policy != "static" or not self.running:
            for job in self.held:
                self.memory.release(job)
            self.held = []

    def commit(self, flight: Flight) -> list[Job]:
        """Take in what a batch gave; returns who ended."""
        ended = []
        for row in flight.rows:
            job = row.job
            if row.drafts is None or job.given == job.ask.output:
                continue  # nothing was sampled, or it was scheduled once more before its end was known
            job.under_way -= 1
            job.hoped -= row.drafts + 1
            tokens = min(row.right + 1, job.ask.output - job.given)
            job.given += tokens
            job.tokens += [(flight.step, flight.end_s)] * tokens
            if job in self.running:
                job.computed -= row.drafts - row.right
                if self.told.depth == 2:  # vLLM, `AsyncScheduler._update_request_with_output`
                    self.memory.name(job, min(job.computed - job.hoped, job.certain - 1))
                job.drafts = job.drafts if self.told.depth == 2 else self.told.drafts
            if job.given == job.ask.output:
                ended.append(job)
                if job in self.running:
                    job.computed = min(job.computed, job.certain - 1)
                    self.running.remove(job)
                    self.held.append(job)
                else:  # preempted after its last share
                    self.waiting.remove(job)
        self.give_back()
        return ended


class Run:
    """Time: arrivals, then ends of steps, then planning; what a planning sees came at its instant or before."""

    def __init__(self, told: Scenario, most_steps: int) -> None:
        self.told, self.asks, self.engine = told, told.asks, Engine(told)
        self.pending: list[tuple[float, float, int]] = []  # (when it comes, since when that is known, which)
        self.roots = [at for at, ask in enumerate(self.asks) if ask.after < 0]
        if not told.users:  # each arrival announces the next one
            times = [-1.0, *sorted({self.asks[at].arrival_s for at in self.roots})]
            known_s = dict(zip(times[1:], times, strict=False))
            self.pending = [(self.asks[at].arrival_s, known_s[self.asks[at].arrival_s], at) for at in self.roots]
        for _ in range(told.users):
            self.send_root(0.0, 0.0)
        self.jobs: dict[int, Job] = {}
        self.steps: list[Flight] = []
        self.evictions: list[tuple[int, list[int]]] = []
        flights: deque[Flight] = deque()
        wake_s = math.inf
        while len(self.steps) <= most_steps:
            now_s = min([wake_s, *(one[0] for one in self.pending), *(one.end_s for one in flights)])
            if now_s == math.inf:
                break
            for _, _, at in sorted((one for one in self.pending if one[0] == now_s), key=lambda one: one[:2]):
                self.jobs[at] = Job(at, self.asks[at], now_s)
                self.engine.queue(self.jobs[at], len(self.engine.waiting))
            self.pending = [one for one in self.pending if one[0] > now_s]
            in_flight = len(flights)
            while flights and flights[0].end_s <= now_s:
                self.record(flights[0])
                for job in self.engine.commit(flights.popleft()):
                    self.follow(job, now_s)
            if not flights or len(flights) < in_flight:
                wake_s = self.plan(now_s, flights)

    def plan(self, now_s: float, flights: deque[Flight]) -> float:
        """Plan what may be in flight; returns when to try again though nothing else happens."""
        engine = self.engine
        while len(flights) < self.told.depth and (engine.waiting or engine.running):
            if flights:
                self.record(flights[-1])
            engine.plan(now_s)
            if engine.evicted:
                self.evictions.append((len(self.steps), [job.id for job in engine.evicted]))
            if engine.rows:
                start_s = flights[-1].end_s if flights else now_s
                slices = engine.padded or [(row.tokens, row.past) for row in engine.rows]
                end_s = start_s + self.told.seconds(slices)
                padding = sum(tokens for tokens, _ in slices) - sum(row.tokens for row in engine.rows)
                counts = (len(engine.running), len(engine.waiting), padding)
                self.steps.append(Flight(len(self.steps), engine.rows, start_s, end_s, counts))
                flights.append(self.steps[-1])
            elif flights or not engine.evicted:
                return engine.wake_s
        return math.inf

    def record(self, flight: Flight) -> None:
        if not flight.kv:  # not yet recorded
            flight.kv = self.engine.memory.usage()
            flight.tables = {job.id: job.table.copy() for job in self.engine.memory.jobs}

    def follow(self, job: Job, now_s: float) -> None:
        """Who waited for this end: the next turns of the session, else in a closed loop the user's next request."""
        just_after_s = math.nextafter(now_s, math.inf)
        turns = [at for at, ask in enumerate(self.asks) if ask.after == job.id]
        self.pending += [(max(just_after_s, now_s + self.asks[at].think_s), now_s, at) for at in turns]
        if self.told.users and not turns:
            self.send_root(just_after_s, now_s)

    def send_root(self, time_s: float, known_s: float) -> None:
        self.pending += [(time_s, known_s, self.roots.pop(0)) for _ in self.roots[:1]]
