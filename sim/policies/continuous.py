"""Iteration-level scheduling with whole prompts (Orca, Yu et al. 2022; vLLM V0)."""

from __future__ import annotations

from typing import ClassVar

from sim.engine.step import Step
from traces.schema import InputError


class Continuous:
    """Requests join and leave between any two steps; a prompt is never cut, unless it alone exceeds the budget.

    Args:
        order: "prefill-first" admits whenever a seat and memory are free, in a step of prompts alone that makes
            decoding wait (vLLM V0); "decode-first" gives each running request its token and fills what is left of
            the same step with whole prompts (Orca's selective batching).
    """

    advances_all: ClassVar[bool] = True

    def __init__(self, *, order: str = "prefill-first") -> None:
        if order not in ("prefill-first", "decode-first"):
            raise InputError(f"policy.order is {order!r}; continuous knows prefill-first and decode-first")
        self._prefill_first = order == "prefill-first"

    def __call__(self, step: Step) -> None:
        if self._prefill_first and not step.prefilling and self._admit(step):
            return
        step.advance_running()
        if not self._prefill_first and not step.evicted:
            self._admit(step)

    @staticmethod
    def _admit(step: Step) -> bool:
        for req in step.waiting:
            if not step.grant(req, whole=True):
                break
        return bool(step.entries)
