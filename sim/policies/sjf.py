"""Shortest job first: the chunked policy with the waiting queue ordered by length."""

from __future__ import annotations

from sim.engine.request import Request
from sim.policies.chunked import Chunked
from traces.schema import InputError


class Sjf(Chunked):
    """Admits the shortest waiting request first; who runs is not preempted for a shorter one.

    Args:
        by: "prompt" (known on arrival), or "output" or "total", which a real engine could only predict: an oracle.
    """

    def __init__(self, *, by: str = "prompt", long_prefill_token_threshold: int = 0) -> None:
        super().__init__(long_prefill_token_threshold=long_prefill_token_threshold)
        if by not in ("prompt", "output", "total"):
            raise InputError(f"policy.by is {by!r}; sjf knows prompt, output and total")
        self._by = by

    def queue_key(self, req: Request) -> int:
        if self._by == "prompt":
            return req.prompt_tokens
        return req.output_tokens if self._by == "output" else req.prompt_tokens + req.output_tokens
