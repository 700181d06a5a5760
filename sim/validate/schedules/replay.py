"""A recorded schedule's scenario, run through our engine: our own steps, in the record's form.

The record tells when its engine loop looked: what is free and who queues "after the step" is read when that loop takes
in the step's output (`ScheduleReplay`). Times are whole nanoseconds; floats hold them exactly here.
"""

from __future__ import annotations

from collections import deque
from itertools import chain, islice
from typing import Any

from sim.allocators.paged import Paged
from sim.allocators.prefix import Prefix
from sim.cost.step import FixedCost
from sim.engine.batch import Batch, Limits
from sim.engine.engine import Engine
from sim.engine.flight import Flight, ObservedReplica, Observer
from sim.engine.memory import Allocator, KvPool
from sim.engine.request import Request, SharedPrefix
from sim.engine.rules import OF_VLLM_0_19, OF_VLLM_0_33, Rules
from sim.engine.wiring import wire
from sim.policies.chunked import Chunked
from sim.policies.priority import Priority
from sim.serving.clock import Clock
from sim.serving.executor import Accepting, Executor, Predicted
from sim.serving.replica import Replica
from traces.schema import InputError


class Script:
    """Drafts and acceptances as a scenario dictates them: the j-th time, the j-th of a cyclic list."""

    steady = False

    @classmethod
    def of(cls, scenario: dict[str, Any]) -> Script | None:
        """The script of a scenario; None where nobody drafts."""
        settings = scenario["settings"]
        if not settings["speculative"]:
            return None
        most = settings["speculative"]["num_speculative_tokens"]
        return cls(scenario["requests"], most, fixed=settings["async_scheduling"])

    def __init__(self, rows: list[dict[str, Any]], most: int, *, fixed: bool) -> None:
        self.most = most
        self._rows = rows
        self._fixed = fixed
        self._proposals = [0] * len(rows)
        self._verifications = [0] * len(rows)

    def propose(self, req: Request, running: int) -> int:
        drafts = self._rows[req.id]["draft"]
        self._proposals[req.id] += 1
        return self.most if self._fixed else int(drafts[(self._proposals[req.id] - 1) % len(drafts)])

    def verified(self, req: Request, drafts: int, accepted: int) -> None:
        """Nothing is learned from it."""

    def accept(self, req: Request, drafts: int) -> int:
        if not drafts:
            return 0
        right = self._rows[req.id]["accept"]
        self._verifications[req.id] += 1
        return min(int(right[(self._verifications[req.id] - 1) % len(right)]), drafts)


class _Named(Priority):
    """As vLLM has it: ids are text, so that "10" goes before "9"."""

    def queue_key(self, req: Request) -> Any:
        return req.priority, req.arrival_s, str(req.id)


class _ByPlace(_Named):
    """vLLM 0.19 scans the running list by place."""

    scans_by_place = True


POLICIES = ("fcfs", "priority")
"""Scheduling policies of vLLM that have one here."""

RULES = {"0.19": OF_VLLM_0_19, "0.33": OF_VLLM_0_33}
"""Of each version whose records can be replayed; a record that tells none is of the first."""


def line_of(scenario: dict[str, Any]) -> str:
    """The first two numbers of the version that a scenario was recorded with."""
    return ".".join(str(scenario.get("vllm", "0.19")).split(".")[:2])


class ScheduleReplay(Observer):
    """Runs a scenario and writes down our steps in the record's own form.

    The record's loop keeps a queue of the batches under way, those of empty steps too. A synchronous loop takes in a
    step's output before it schedules the next. An asynchronous one schedules a second batch behind the first, unless
    the second is empty, and then takes in the oldest: an empty one, that is, right after another was scheduled
    (`step_with_batch_queue`). What was free, and who queued, is read at those moments.
    """

    def __init__(self, scenario: dict[str, Any], rules: Rules | None = None) -> None:
        """rules: others than those of the version that the scenario names."""
        self._scenario = scenario
        self._rules = rules or RULES[line_of(scenario)]
        self.requests = requests_of(scenario)
        self.steps: list[dict[str, Any]] = []
        self._depth = 2 if scenario["settings"]["async_scheduling"] else 1
        self._by_step = "arrival_step" in scenario["requests"][0]
        self._next_arrival = 0
        self._index = 0
        self._arrived: list[int] = []
        self._under_way: deque[dict[str, Any]] = deque()
        self._admissions = 0
        self._ended_s = 0.0
        self.clock = Clock()
        self._script = Script.of(scenario)

    def run(self) -> None:
        """Serve all requests.

        Raises:
            InputError: a setting that has no meaning, or a request that can never be served.
            NoProgressError: the engine would compute nothing for ever.
        """
        self.engine = self._engine()
        replica = Replica(
            self.clock, self.engine, self._executor(), depth=self._depth, on_finish=lambda req: None, observer=self
        )
        for req in self.requests:
            if reason := self.engine.refusal(req):
                raise InputError(f"request {req.id} can never be served: {reason}")
        if self._by_step:
            self.idle(replica)
        else:
            for req in self.requests:
                self.clock.call_at(req.arrival_s, lambda event, req=req: self._arrive(replica, req), first=True)  # type: ignore[misc]
        self.clock.run()

    def _engine(self) -> Engine:
        settings = self._scenario["settings"]
        policy = policy_of(settings, self._rules)
        limits = Limits(
            settings.get("max_num_active_seqs") or settings["max_num_seqs"],
            settings.get("max_num_scheduled_tokens") or settings["max_num_batched_tokens"],
            settings["max_model_len"],
            settings["enable_chunked_prefill"],
        )
        drafting = settings["speculative"]
        eagle = bool(drafting) and drafting["method"] == "eagle"
        return wire(
            policy,
            allocator_of(settings),
            limits,
            ahead=self._depth == 2,
            proposer=self._script,
            lookahead_tokens=drafting["num_speculative_tokens"] if eagle else 0,
            needs_last_hit=eagle,
            rules=self._rules,
            spans=False,
        )

    def _executor(self) -> Executor:
        cost = self._scenario["step_time"]
        fixed = FixedCost(
            base_s=float(cost["base_ns"]),
            per_token_s=float(cost["per_token_ns"]),
            per_context_token_s=float(cost["per_context_token_ns"]),
        )
        predicted = Predicted(fixed, overlap_host=self._depth == 2)
        return predicted if self._script is None else Accepting(predicted, self._script.accept)

    def _arrive(self, replica: ObservedReplica, req: Request) -> None:
        self._arrived.append(req.id)
        replica.submit(req)

    def idle(self, replica: ObservedReplica) -> None:
        """An idle engine jumps to the step at which the next request arrives."""
        if self._by_step and self._next_arrival < len(self.requests):
            self._index = max(self._index, int(self.requests[self._next_arrival].arrival_s))
            self.before_plan(replica)

    def before_plan(self, replica: ObservedReplica) -> None:
        self._admissions = self.engine.roster.admissions
        while self._due:
            self._next_arrival += 1
            self._arrive(replica, self.requests[self._next_arrival - 1])

    @property
    def _due(self) -> bool:
        """Does a request arrive at the step to be planned next? (Where arrivals are told in steps.)"""
        at = self._next_arrival
        return self._by_step and at < len(self.requests) and self.requests[at].arrival_s <= self._index

    def planned(self, replica: ObservedReplica, batch: Batch) -> None:
        self._under_way.append(self._scheduled(batch))
        self.steps.append(self._under_way[-1])
        self._index += 1
        if len(self._under_way) == self._depth or batch.empty:
            self._take_in_empty()

    def committed(self, replica: ObservedReplica, flight: Flight) -> None:
        batch, step = flight.batch, self._under_way.popleft()
        right = flight.outcome.accepted or []
        drafted = [accepted for sample, accepted in zip(batch.sampled, right, strict=False) if sample.drafts]
        for row, accepted in zip(step["spec"], drafted, strict=True):
            row.append(accepted)
        first = [req.id for req in flight.committed.first_tokens]
        finished = [req.id for req in flight.committed.ended]
        self._ended_s = flight.times_s[-1]
        self._close(step, flight.times_s[0], flight.times_s[-1], first, finished)
        if not self.engine.busy and not self._due:
            self._take_in_empty()

    def _scheduled(self, batch: Batch) -> dict[str, Any]:
        engine = self.engine
        entries = sorted(batch.rows, key=lambda entry: entry.request.seat.seq)
        admitted = [entry for entry in entries if entry.request.seat.seq >= self._admissions]
        new = [entry for entry in admitted if not entry[0].preemptions]
        resumed = [entry for entry in admitted if entry[0].preemptions]
        arrived, self._arrived = self._arrived, []
        return {
            "i": self._index,
            "t_sched": int(batch.planned_s),
            "tokens": sum(tokens for _, tokens, _ in entries),
            "arrived": arrived,
            "sched": [[req.id, tokens, past] for req, tokens, past in entries],
            "new": [req.id for req, _, _ in new],
            "resumed": [req.id for req, _, _ in resumed],
            "preempted": [req.id for req in batch.evicted],
            "spec": [[sample.request.id, sample.drafts] for sample in batch.sampled if sample.drafts],
            "hit": [[req.id, past] for req, _, past in [*new, *resumed] if past],
            "free": [engine.allocator.free_blocks],
            "queues": [[len(engine.running), len(engine.waiting)]],
            "running": [req.id for req in engine.running],
            "waiting": [req.id for req in engine.waiting],
            "blocks": {str(req.id): list(engine.allocator.table(req)) for req in engine.running},
        }

    def _take_in_empty(self) -> None:
        """Where the oldest step under way is an empty one, it has ended: its device time is none."""
        if self._under_way and not self._under_way[0]["sched"]:
            step = self._under_way.popleft()
            at = max(float(step["t_sched"]), self._ended_s)
            self._close(step, at, at, [], [])

    def _close(self, step: dict[str, Any], start: float, end: float, first: list[int], finished: list[int]) -> None:
        engine = self.engine
        step["t0"], step["t1"] = int(start), int(end)
        step["free"].append(engine.allocator.free_blocks)
        # The record lets arrivals enter just before the next planning; here they queue up when they come.
        step["queues"].append([len(engine.running), len(engine.waiting) - len(self._arrived)])
        step["first"], step["finished"] = first, finished
        for key in ("arrived", "new", "resumed", "preempted", "hit", "spec", "first", "finished"):
            if not step[key]:
                del step[key]


def policy_of(settings: dict[str, Any], rules: Rules) -> Chunked:
    named = _ByPlace if rules == OF_VLLM_0_19 else _Named
    threshold = settings["long_prefill_token_threshold"]
    return (named if settings["policy"] == "priority" else Chunked)(
        long_prefill_token_threshold=threshold,
        long_prefill_token_threshold_adaptive=bool(threshold)
        and settings.get("long_prefill_token_threshold_adaptive", False),
        prefill_schedule_interval=settings.get("prefill_schedule_interval", 1),
    )


def allocator_of(settings: dict[str, Any]) -> Allocator:
    pool = KvPool(settings["num_gpu_blocks"] - 1, settings["block_size"], settings["max_model_len"])
    reserve, watermark = settings["scheduler_reserve_full_isl"], settings.get("watermark", 0.0)
    if not settings["enable_prefix_caching"]:
        return Paged(pool, watermark=watermark, reserve_full_prompt=reserve)
    return Prefix(pool, watermark=watermark, reserve_full_prompt=reserve, keep_uncomputed=True)


def requests_of(scenario: dict[str, Any]) -> list[Request]:
    rows = scenario["requests"]
    names: dict[tuple[int, int], int] = {}
    # Arrivals told in steps keep their order as such: two steps may be planned at one moment.
    key = "arrival_step" if "arrival_step" in rows[0] else "arrival_ns"
    requests = [
        Request(
            row["id"],
            float(row[key]),
            row["prompt"],
            row["output"],
            row.get("priority", 0),
            _chained(row.get("prefix", []), scenario["prefix_unit_tokens"], row["prompt"], names),
        )
        for row in rows
    ]
    return sorted(requests, key=lambda req: (req.arrival_s, req.id))


def _chained(
    runs: list[list[int]], unit_tokens: int, prompt_tokens: int, names: dict[tuple[int, int], int]
) -> SharedPrefix:
    """Units told by their own content, named anew so that a name tells all units before it too."""
    ids: list[int] = []
    units = chain.from_iterable(range(first, first + count) for first, count in runs)
    for unit in islice(units, -(-prompt_tokens // unit_tokens)):
        ids.append(names.setdefault((ids[-1] if ids else -1, unit), len(names)))
    return SharedPrefix(ids, unit_tokens)
