"""vLLM's own scheduler as the engine of a scenario: it decides in its own process, our cost model says how long.

An oracle, not a fast engine: each step is two calls of vLLM's (0.4 to 1.4 ms). No parallel samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sim.engine.batch import Batch, Committed, Entry, Limits, Outcome
from sim.engine.lockstep import Lockstep
from sim.engine.memory import Layout, Usage
from sim.engine.protocol import Counts
from sim.engine.request import Request, Seat
from sim.engine.shapes import step_shape
from sim.engine.tokens import TokenClock
from sim.engines.pipe import SchedulerProcess


class VllmEngine:
    """Asks a vLLM scheduler for every step.

    Args:
        process: its driver (`drivers/vllm_v1.py`).
        settings: of vLLM, but for what limits and layout say.
        layout: the blocks, and of layers of several kinds the groups.
        window_tokens: what a row attends where layers have a window, for the price of a step.
    """

    async_by_default = True

    def __init__(
        self,
        process: SchedulerProcess,
        settings: Mapping[str, Any],
        limits: Limits,
        layout: Layout,
        *,
        window_tokens: int = 0,
    ) -> None:
        pool = layout.pool
        self.pool, self.tokens, self.wake_s = pool, TokenClock(), None
        self._layout = layout
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self._limits = limits
        self._together = Lockstep(window_tokens, ranks=True)
        """Nobody: vLLM's steps are told row by row."""
        self._process = process
        self._new: list[dict[str, Any]] = []
        self._live: dict[int, Request] = {}
        self._free = pool.blocks
        self._admissions = 0
        self.settings: dict[str, Any] = {
            "block_size": pool.block_tokens,
            "num_gpu_blocks": pool.blocks + 1,
            "max_num_seqs": limits.max_num_seqs,
            "max_num_batched_tokens": limits.max_num_batched_tokens,
            "max_model_len": limits.max_model_len,
            "enable_chunked_prefill": limits.chunked_prefill,
            "speculative": None,
            **settings,
        }
        """As vLLM names them."""
        self.version: str = process.ask("start", {**self.settings, "groups": _groups(layout)})["vllm"]

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def refusal(self, req: Request) -> str | None:
        length, most = req.prompt_tokens + req.output_tokens, self._limits.max_model_len
        if length > most:
            return f"its {length} tokens (prompt and output) exceed max_model_len {most}"
        if req.seats > 1:
            return "it asks for several sequences, which vLLM's front end splits"
        need = self._most_blocks(req)
        return None if need <= self.pool.blocks else f"it needs {need} KV blocks and the cache has {self.pool.blocks}"

    def _most_blocks(self, req: Request) -> int:
        return self._layout.most_blocks(self.pool.blocks_for(req.final_kv_tokens))

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
                **({} if req.adapter is None else {"adapter": req.adapter.number}),
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
            req.computed, req.seat.seq = 0, -1
            req.preemptions += 1
        entries = [Entry(live[id], tokens, past) for id, tokens, past in said["shares"]]
        batch = Batch(self.tokens.next_step, now_s, entries, 0, evicted)
        self.tokens.next_step += bool(entries)
        admitted = set(said["admitted"])
        for req, tokens, past in entries:
            if req.id in admitted:
                req.seat.seq, self._admissions = self._admissions, self._admissions + 1
                if not req.preemptions:
                    req.first_scheduled_s, req.prefix_hit_tokens = now_s, past
            req.computed = past + tokens
        batch.shape = step_shape(batch, self._together, (0, 0))
        self.running[:] = [live[id] for id in said["running"]]
        self.waiting[:] = [live[id] for id in said["waiting"]]
        self._settle(batch, [live[id] for id in said["samples"]], said)
        self._free = said["free"]
        batch.running, batch.waiting = len(self.running), len(self.waiting)
        return batch

    def _settle(self, batch: Batch, samples: Sequence[Request], said: Mapping[str, Any]) -> None:
        """Count what the step will have sampled; `said` is all that was answered."""
        for req in samples:
            req.known += 1
            self.tokens.give(req, batch.first_step)
            batch.first_tokens += [req] if req.generated == 1 else []
            batch.finishing += [req] if req.generated == req.output_tokens else []

    def seal(self, batch: Batch, repeats: int) -> None:
        """It plans one step at a time."""

    def commit(self, batch: Batch, outcome: Outcome, end_s: float) -> Committed:
        said = self._process.ask("update", {})
        return self._ended(batch, batch.first_tokens, batch.finishing, said, end_s)

    def _ended(
        self, batch: Batch, first_tokens: list[Request], ended: list[Request], said: Mapping[str, Any], end_s: float
    ) -> Committed:
        """Let those end that do; `said` is what the other side says of it."""
        self.tokens.committed_step = batch.first_step
        told = ([req.id for req in first_tokens], [req.id for req in ended])
        if (sorted(said["first"]), sorted(said["ended"])) != (sorted(told[0]), sorted(told[1])):
            raise RuntimeError(f"vLLM says {said['first']} started and {said['ended']} ended where {told} were to")
        for req in first_tokens:
            req.first_token_s = end_s
        for req in ended:
            req.finished, req.finish_s = True, end_s
            self.tokens.close(req)
            del self._live[req.id]
            (self.running if req in self.running else self.waiting).remove(req)
        self._free = said["free"]
        return Committed(first_tokens, ended, ended)

    def usage(self) -> Usage:
        """Used and free are vLLM's; what is shared, or has left a window, is not asked for: used is at most held."""
        held = (self.pool.blocks - self._free) * self.pool.block_tokens
        used = min(sum(req.computed for req in self.running) * self._layout.row_blocks, held)
        return Usage(used, 0, held - used, 0, 0, self._free * self.pool.block_tokens)

    def counts(self) -> Counts:
        return Counts(len(self.waiting), len(self.running), self.usage().used, self._free)

    def cached_tokens(self, req: Request) -> int:
        return 0


def _groups(layout: Layout) -> list[int]:
    """The window of each group of layers of vLLM's, 0 for none: those that a row of ours has blocks for."""
    return [group.window_tokens for group in layout.groups for _ in range(group.blocks)] or [0]
