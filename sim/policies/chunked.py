"""Running requests first, then admission first come first served, one shared token budget (Sarathi-Serve; vLLM V1)."""

from __future__ import annotations

from sim.engine.step import Step
from traces.schema import InputError


class Chunked:
    """A prompt takes what the running requests leave of the step's token budget, and goes on in the next step.

    Agrawal et al. 2024 (Sarathi-Serve), section 4; vLLM V1, `Scheduler.schedule`. Admission stops at the first
    waiting request that gets nothing, and there is none in a step that preempted.

    Args:
        long_prefill_token_threshold: most tokens of one request in one step; 0 for no such limit.
    """

    async_by_default = True

    def __init__(self, *, long_prefill_token_threshold: int = 0) -> None:
        if long_prefill_token_threshold < 0:
            raise InputError(
                f"policy.long_prefill_token_threshold is {long_prefill_token_threshold}; "
                "it must be at least 0 (0: no limit)"
            )
        self.most = long_prefill_token_threshold

    def __call__(self, step: Step) -> None:
        step.advance_running(self.most)
        if step.waiting and not step.evicted:
            for req in step.waiting:
                if not step.grant(req, self.most):
                    break
