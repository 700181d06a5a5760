"""The engine of a pipeline: several batches are under way, and a request that awaits a token computes nothing more.

vLLM's scheduler, up to `pipeline_parallel_size` batches in flight (`EngineCore.step_with_batch_queue`): whoever has a
token to come has nothing to compute until it is there, so that each request is in one batch. The chunks of a prompt
may follow one another.
"""

from __future__ import annotations

from typing import Any

from sim.engine.batch import Batch, Committed, Limits, Outcome
from sim.engine.engine import Engine
from sim.engine.memory import Allocator
from sim.engine.request import Request
from sim.engine.step import Policy


class StagedEngine(Engine):
    """As `Engine`, with requests served one by one."""

    def __init__(self, policy: Policy, allocator: Allocator, limits: Limits, **settings: Any) -> None:
        super().__init__(policy, allocator, limits, **{**settings, "spans": False})
        self._awaiting: dict[Request, int] = {}
        """Who awaits a token, with the step that gives it."""

    def plan(self, now_s: float) -> Batch:
        for req in self._awaiting:
            req.seat.granted_step = self.tokens.next_step
        return super().plan(now_s)

    def _sample(self, req: Request, batch: Batch) -> None:
        super()._sample(req, batch)
        self._awaiting[req] = batch.first_step

    def _may_join(self, req: Request) -> bool:
        return False

    def commit(self, batch: Batch, outcome: Outcome, end_s: float) -> Committed:
        for req in [req for req, step in self._awaiting.items() if step == batch.first_step]:
            del self._awaiting[req]
            req.seat.granted_step = -1  # an empty plan may have kept it from the step that is still to come
        return super().commit(batch, outcome, end_s)
