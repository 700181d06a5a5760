"""Another policy, with drafts: what each request proposes is scheduled beside its last token."""

from __future__ import annotations

from typing import Any

from sim.engine.step import Step
from sim.load import build
from traces.schema import InputError


class Speculative:
    """Drafts on top of `base`, which needs not know: drafts are tokens that a request has still to compute.

    Leviathan et al. 2023 (speculative decoding); how many are proposed, by whom and how many are right is said by the
    section `speculation`. Drafts share the step's budget with prompts (vLLM V1, `Scheduler.schedule`).

    Args:
        base: "chunked", "continuous", or any other policy that grants what a request has pending.
        parameters: those of the base.
    """

    drafts = True

    def __init__(self, *, base: str = "chunked", **parameters: Any) -> None:
        if base in ("speculative", "static"):
            raise InputError(f"policy.base is {base!r}; speculative works on top of chunked, continuous, priority, sjf")
        self._base = build("sim.policies", base, parameters)
        if getattr(self._base, "holds_finished", False):
            raise InputError(f"policy.base is {base!r}, which keeps padded rows; drafts have no place in them")

    def __call__(self, step: Step) -> None:
        self._base(step)

    def __getattr__(self, name: str) -> Any:
        """What the base has beside its call: the order of the queue, the choice of victims."""
        if name.startswith("_") or name == "async_by_default":
            raise AttributeError(name)
        return getattr(self._base, name)
