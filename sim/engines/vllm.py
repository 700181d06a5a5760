"""vLLM's own scheduler as the engine of a scenario: it decides in its own process, our cost model says how long.

An oracle, not a fast engine: each step is two calls of vLLM's (0.4 to 1.4 ms). No drafts, no parallel samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sim.engine.batch import Batch, Committed, Entry, Limits, Outcome
from sim.engine.lockstep import Lockstep
from sim.engine.memory import KvPool, Usage
from sim.engine.pages import mixed_layers
from sim.engine.protocol import Counts
from sim.engine.request import Request, Seat
from sim.engine.shapes import step_shape
from sim.engine.tokens import TokenClock
from sim.engines.environment import Installed
from sim.engines.pipe import SchedulerProcess
from sim.scenario import Part, Scenario
from sim.specs.model import ModelSpec
from sim.specs.parallel import Parallel
from traces.schema import InputError

POLICIES = {"chunked": "fcfs", "priority": "priority"}
"""vLLM's name of each policy that it has."""
CACHING = {"paged": False, "prefix": True}
"""Of each allocator that it has, whether prefixes are cached."""
PARAMETERS: dict[str, dict[str, Any]] = {
    "policy": {
        "long_prefill_token_threshold": 0,
        "long_prefill_token_threshold_adaptive": False,
        "prefill_schedule_interval": 1,
    },
    "allocator": {"watermark": 0.0, "reserve_full_prompt": True},
}
"""Of both, the parameters that it reads, with their defaults."""
DEFAULTS: dict[str, Any] = {**PARAMETERS["policy"], **PARAMETERS["allocator"]}
OLD_LACKS = ("watermark", "long_prefill_token_threshold_adaptive", "prefill_schedule_interval")


class VllmEngine:
    """Asks a vLLM scheduler for every step.

    Args:
        process: its driver (`drivers/vllm_v1.py`).
        settings: of vLLM, but for what limits and pool say.
    """

    async_by_default = True

    def __init__(self, process: SchedulerProcess, settings: Mapping[str, Any], limits: Limits, pool: KvPool) -> None:
        self.pool, self.tokens, self.wake_s = pool, TokenClock(), None
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self._limits = limits
        self._together = Lockstep(ranks=True)
        """Nobody: vLLM's steps are told row by row."""
        self._process = process
        self._new: list[dict[str, Any]] = []
        self._live: dict[int, Request] = {}
        self._free = pool.blocks
        started = process.ask(
            "start",
            {
                "block_size": pool.block_tokens,
                "num_gpu_blocks": pool.blocks + 1,
                "max_num_seqs": limits.max_num_seqs,
                "max_num_batched_tokens": limits.max_num_batched_tokens,
                "max_model_len": limits.max_model_len,
                "enable_chunked_prefill": limits.chunked_prefill,
                **settings,
            },
        )
        self.version: str = started["vllm"]

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def refusal(self, req: Request) -> str | None:
        length, most = req.prompt_tokens + req.output_tokens, self._limits.max_model_len
        if length > most:
            return f"its {length} tokens (prompt and output) exceed max_model_len {most}"
        if req.seats > 1:
            return "it asks for several sequences, which vLLM's front end splits"
        need = self.pool.blocks_for(req.final_kv_tokens)
        return None if need <= self.pool.blocks else f"it needs {need} KV blocks and the cache has {self.pool.blocks}"

    def add(self, req: Request) -> None:
        req.seat = Seat()
        self._live[req.id] = req
        self.waiting.append(req)
        prefix = None
        if req.prefix is not None:
            ids, unit, known = req.prefix
            prefix = [list(map(int, ids)), unit, max(known, req.prompt_tokens)]
        self._new.append(
            {
                "id": req.id,
                "arrival": req.arrival_s,
                "prompt": req.prompt_tokens,
                "output": req.output_tokens,
                "priority": req.priority,
                "prefix": prefix,
            }
        )

    def abort(self, req: Request) -> bool:
        if req.generated == req.output_tokens:
            return False
        if untold := [row for row in self._new if row["id"] == req.id]:
            self._new.remove(untold[0])
        else:
            self._free = self._process.ask("abort", req.id)["free"]
        (self.running if req in self.running else self.waiting).remove(req)
        self.tokens.close(req)
        req.finished = True
        del self._live[req.id]
        return True

    def plan(self, now_s: float) -> Batch:
        said = self._process.ask("schedule", {"add": self._new})
        self._new = []
        live = self._live
        evicted = [live[id] for id in said["preempted"]]
        for req in evicted:
            req.computed = 0
            req.preemptions += 1
        entries = [Entry(live[id], tokens, past) for id, tokens, past in said["shares"]]
        batch = Batch(self.tokens.next_step, now_s, entries, 0, evicted)
        self.tokens.next_step += bool(entries)
        admitted = set(said["admitted"])
        samples = set(said["samples"])
        for req, tokens, past in entries:
            if req.id in admitted and not req.preemptions:
                req.first_scheduled_s, req.prefix_hit_tokens = now_s, past
            req.computed = past + tokens
            if req.id in samples:
                req.known += 1
                self.tokens.give(req, batch.first_step)
                batch.first_tokens += [req] if req.generated == 1 else []
                batch.finishing += [req] if req.generated == req.output_tokens else []
        batch.shape = step_shape(batch, self._together, (0, 0))
        self.running[:] = [live[id] for id in said["running"]]
        self.waiting[:] = [live[id] for id in said["waiting"]]
        self._free = said["free"]
        batch.running, batch.waiting = len(self.running), len(self.waiting)
        return batch

    def seal(self, batch: Batch, repeats: int) -> None:
        """It plans one step at a time."""

    def commit(self, batch: Batch, outcome: Outcome, end_s: float) -> Committed:
        self.tokens.committed_step = batch.first_step
        said = self._process.ask("update", {})
        told = ([req.id for req in batch.first_tokens], [req.id for req in batch.finishing])
        if (sorted(said["first"]), sorted(said["ended"])) != (sorted(told[0]), sorted(told[1])):
            raise RuntimeError(f"vLLM says {said['first']} started and {said['ended']} ended where {told} were to")
        for req in batch.first_tokens:
            req.first_token_s = end_s
        for req in batch.finishing:
            req.finished, req.finish_s = True, end_s
            self.tokens.close(req)
            del self._live[req.id]
            (self.running if req in self.running else self.waiting).remove(req)
        self._free = said["free"]
        return Committed(batch.first_tokens, batch.finishing, batch.finishing)

    def usage(self) -> Usage:
        """Used and free are vLLM's; what of it is shared is not asked for, so the used tokens of sharers count once."""
        held = (self.pool.blocks - self._free) * self.pool.block_tokens
        used = min(sum(req.computed for req in self.running), held)
        return Usage(used, 0, held - used, 0, 0, self._free * self.pool.block_tokens)

    def counts(self) -> Counts:
        return Counts(len(self.waiting), len(self.running), self.usage().used, self._free)

    def cached_tokens(self, req: Request) -> int:
        return 0


def vllm_engine(scenario: Scenario, model: ModelSpec, asynchronous: bool) -> Callable[[Limits, KvPool], VllmEngine]:
    """What makes the engine of a scenario that names an installed vLLM.

    Raises:
        InputError: it is not installed, or the scenario sets what it has not; the sentence names the key.
    """
    installed = Installed.of(scenario.engine.name)
    if scenario.executor == "live":
        raise InputError(f"engine.name is {scenario.engine.name}: its scheduler decides here, and drives no kernels")
    if mixed_layers(model.kv_kinds(Parallel(scenario.tp)))[0]:
        raise InputError(
            f"engine.name is {installed}, which is driven with layers that all keep every token; those of "
            f"{model.name} do not"
        )
    settings: dict[str, Any] = {
        "policy": _known("policy", scenario.policy, POLICIES, installed),
        "enable_prefix_caching": _known("allocator", scenario.allocator, CACHING, installed),
        "async_scheduling": asynchronous,
        **DEFAULTS,
        **scenario.policy.parameters,
        **scenario.allocator.parameters,
    }
    settings["scheduler_reserve_full_isl"] = settings.pop("reserve_full_prompt")
    if installed.version.startswith("0.19"):
        for key in OLD_LACKS:
            if settings[key] != DEFAULTS[key]:
                raise InputError(f"{key} is {settings[key]}, and vLLM {installed.version} has no such setting")
    command, who = installed.command, f"{installed.name} {installed.version}"

    def made(limits: Limits, pool: KvPool) -> VllmEngine:
        return VllmEngine(SchedulerProcess(command, who), settings, limits, pool)

    return made


def _known(section: str, part: Part, ours: Mapping[str, Any], installed: Installed) -> Any:
    """vLLM's word for a part of a scenario; raises InputError for one, or a parameter of one, that it has not."""
    who = f"engine.name is {installed}"
    if part.name not in ours:
        raise InputError(f"{who}, which has no {section} {part.name!r}; it has {', '.join(ours)}")
    for key in part.parameters:
        if key not in PARAMETERS[section]:
            raise InputError(f"{who}, which reads no {section}.{key}; it reads {', '.join(PARAMETERS[section])}")
    return ours[part.name]
