"""A recorded schedule's scenario, run through our engine: our own steps, in the record's form.

Times are whole nanoseconds; floats hold them exactly here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice
from typing import Any

from sim.allocators.paged import Paged
from sim.allocators.prefix import Prefix
from sim.cost.fixed import FixedCost
from sim.engine.batch import Batch, Limits, Outcome
from sim.engine.engine import Engine
from sim.engine.flight import ObservedReplica
from sim.engine.memory import Allocator, KvPool
from sim.engine.protocol import ServingEngine
from sim.engine.request import Adapter, Request, SharedPrefix
from sim.engine.rules import OF_VLLM_0_19, OF_VLLM_0_33, Rules
from sim.engine.wiring import wire
from sim.policies.chunked import Chunked
from sim.policies.priority import Priority
from sim.serving.clock import Clock
from sim.serving.executor import Accepting, Executor, Predicted
from sim.serving.replica import Replica
from sim.validate.schedules.recording import ScheduleLog
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


class Durations:
    """Steps as long as a record has them, one after the other; beyond its end as long as its last one."""

    def __init__(self, durations_ns: Sequence[int]) -> None:
        self._durations = durations_ns

    def execute(self, batch: Batch) -> Outcome:
        """As `Executor.execute`, in nanoseconds."""
        seconds = float(self._durations[min(batch.first_step, len(self._durations) - 1)])
        return Outcome([seconds], [seconds], 0.0)


class ScheduleReplay(ScheduleLog):
    """Runs a scenario through our engine and writes down our steps in the record's own form."""

    def __init__(self, scenario: dict[str, Any], rules: Rules | None = None) -> None:
        """rules: others than those of the version that the scenario names."""
        super().__init__(2 if scenario["settings"]["async_scheduling"] else 1)
        self._scenario = scenario
        self._rules = rules or RULES[line_of(scenario)]
        self.requests = requests_of(scenario)
        self._by_step = "arrival_step" in scenario["requests"][0]
        self._next_arrival = 0
        self.clock = Clock()
        self._script = Script.of(scenario)
        self._allocator: Allocator

    def run(self) -> None:
        """Serve all requests.

        Raises:
            InputError: a setting that has no meaning, or a request that can never be served.
            NoProgressError: the engine would compute nothing for ever.
        """
        engine = self._engine()
        replica = Replica(
            self.clock, engine, self._executor(), depth=self._depth, on_finish=lambda req: None, observer=self
        )
        for req in self.requests:
            if reason := engine.refusal(req):
                raise InputError(f"request {req.id} can never be served: {reason}")
        if self._by_step:
            self.idle(replica)
        else:
            for req in self.requests:
                self.clock.call_at(req.arrival_s, lambda event, req=req: replica.submit(req), first=True)  # type: ignore[misc]
        self.clock.run()

    def _engine(self) -> Engine:
        settings = self._scenario["settings"]
        policy = policy_of(settings, self._rules)
        self._allocator = allocator_of(settings)
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
            self._allocator,
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
        timed: Executor
        if "durations_ns" in cost:
            timed = Durations(cost["durations_ns"])
        else:
            fixed = FixedCost(
                base_s=float(cost["base_ns"]),
                per_token_s=float(cost["per_token_ns"]),
                per_context_token_s=float(cost["per_context_token_ns"]),
            )
            timed = Predicted(fixed, overlap_host=self._depth == 2)
        return timed if self._script is None else Accepting(timed, self._script.accept)

    def idle(self, replica: ObservedReplica) -> None:
        """An idle engine jumps to the step at which the next request arrives."""
        if self._by_step and self._next_arrival < len(self.requests):
            self._index = max(self._index, int(self.requests[self._next_arrival].arrival_s))
            self.before_plan(replica)

    def before_plan(self, replica: ObservedReplica) -> None:
        while self.due:
            self._next_arrival += 1
            replica.submit(self.requests[self._next_arrival - 1])
        super().before_plan(replica)

    @property
    def due(self) -> bool:
        """Does a request arrive at the step to be planned next? (Where arrivals are told in steps.)"""
        at = self._next_arrival
        return self._by_step and at < len(self.requests) and self.requests[at].arrival_s <= self._index

    def more(self, engine: ServingEngine) -> dict[str, Any]:
        return {
            "running": [req.id for req in engine.running],
            "waiting": [req.id for req in engine.waiting],
            "blocks": {str(req.id): list(self._allocator.table(req)) for req in engine.running},
        }


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
            _chained(row, scenario["prefix_unit_tokens"], names),
        )
        for row in rows
    ]
    for req, row in zip(requests, rows, strict=True):
        if number := row.get("adapter", 0):
            req.adapter = Adapter(number, f"adapter-{number}", 16)
    return sorted(requests, key=lambda req: (req.arrival_s, req.id))


def _chained(row: dict[str, Any], unit_tokens: int, names: dict[tuple[int, int], int]) -> SharedPrefix:
    """Units told by their own content, named anew so that a name tells all units before it too."""
    ids: list[int] = []
    known: int = row.get("prefix_tokens", 0)
    units = chain.from_iterable(range(first, first + count) for first, count in row.get("prefix", []))
    for unit in islice(units, -(-max(known, row["prompt"]) // unit_tokens)):
        ids.append(names.setdefault((ids[-1] if ids else -1, unit), len(names)))
    return SharedPrefix(ids, unit_tokens, known)
