"""Running requests first, then admission first come first served, one shared token budget (Sarathi-Serve; vLLM V1)."""

from __future__ import annotations

from typing import ClassVar

from mypy_extensions import mypyc_attr

from sim.engine.step import Step
from traces.schema import InputError


@mypyc_attr(allow_interpreted_subclasses=True)
class Chunked:
    """A prompt takes what the running requests leave of the step's token budget, and goes on in the next step.

    Agrawal et al. 2024 (Sarathi-Serve), section 4; vLLM V1, `Scheduler.schedule`. Admission stops at the first
    waiting request that gets nothing, and there is none in a step that preempted.

    Args:
        long_prefill_token_threshold: most tokens of one request in one step; 0 for no such limit.
        long_prefill_token_threshold_adaptive: raise a threshold to an even share of the step's budget among all who run
            or wait (vLLM 0.33).
        prefill_schedule_interval: while a request decodes, prompts are computed in every so many steps only, until one
            that computes some leaves nobody waiting (vLLM 0.33).
    """

    async_by_default: ClassVar[bool] = True
    advances_all: ClassVar[bool] = True

    def __init__(
        self,
        *,
        long_prefill_token_threshold: int = 0,
        long_prefill_token_threshold_adaptive: bool = False,
        prefill_schedule_interval: int = 1,
    ) -> None:
        if long_prefill_token_threshold < 0:
            raise InputError(
                f"policy.long_prefill_token_threshold is {long_prefill_token_threshold}; "
                "it must be at least 0 (0: no limit)"
            )
        if long_prefill_token_threshold_adaptive and not long_prefill_token_threshold:
            raise InputError(
                "policy.long_prefill_token_threshold_adaptive raises a threshold, and "
                "policy.long_prefill_token_threshold is 0 (no limit)"
            )
        if prefill_schedule_interval < 1:
            raise InputError(f"policy.prefill_schedule_interval is {prefill_schedule_interval}; it must be at least 1")
        self.most = long_prefill_token_threshold
        self._adaptive = long_prefill_token_threshold_adaptive
        self._interval = prefill_schedule_interval
        self.every_step = prefill_schedule_interval > 1
        self._since_prefill = prefill_schedule_interval
        self._backlog = False

    def __call__(self, step: Step) -> None:
        most = step.cap(self.most, adaptive=self._adaptive) if self.most else 0
        if self._interval > 1:
            step.holds_prefill = self._since_prefill < self._interval and not self._backlog and step.decoding
        step.advance_running(most)
        if step.waiting and not step.evicted:
            for req in step.waiting:
                if not step.grant(req, most):
                    break
        if self._interval > 1:
            self._count(step)

    def _count(self, step: Step) -> None:
        """Keep in mind when a step last computed prompts."""
        if step.prefilled:
            self._since_prefill = 0
        if step.entries or step.advanced:
            self._since_prefill += 1
        if not step.holds_prefill and not step.evicted:
            self._backlog = step.backlog
