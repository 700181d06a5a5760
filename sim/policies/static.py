"""Request-level batching: a batch is formed, padded, and runs until its last member ends (what Orca improved on)."""

from __future__ import annotations

from sim.request import Request
from sim.step import Step
from traces.schema import InputError


class Static:
    """A batch starts when `batch_size` requests wait or the oldest has waited for `timeout_s`; nobody joins later.

    Prompts are padded to the longest, and a finished member's row is computed, and its memory and seat are held,
    until the last member ends (Yu et al. 2022, section 3.1). Tokens are handed out as they are made, so a member's
    finish is its own last token.
    """

    holds_finished = True

    def __init__(self, *, batch_size: int = 8, timeout_s: float = 0.1) -> None:
        if batch_size < 1:
            raise InputError(f"policy.batch_size is {batch_size}; it must be at least 1")
        if not timeout_s >= 0:
            raise InputError(f"policy.timeout_s is {timeout_s}; it must be at least 0")
        self._batch_size = batch_size
        self._timeout_s = timeout_s
        self._members: list[Request] = []
        self._padding: list[int] = []

    def __call__(self, step: Step) -> None:
        if step.running:
            step.advance_running()
        else:
            self._form(step)
        rows = [
            step.computed(req) + padding
            for req, padding in zip(self._members, self._padding, strict=True)
            if not req.finished and req.seq >= 0
        ]
        if rows:
            step.pad(len(self._members), max(rows))

    def _form(self, step: Step) -> None:
        self._members = []
        self._padding = []
        oldest = next(iter(step.waiting), None)
        if oldest is None:
            return
        due_s = oldest.arrival_s + self._timeout_s
        if len(step.waiting) < self._batch_size and step.now_s < due_s:
            step.wake_at(due_s)
            return
        longest = 0
        for req in step.waiting:
            longest = max(longest, req.known)
            rows = len(self._members) + 1
            if rows > self._batch_size or (rows > 1 and rows * longest > step.budget_tokens):
                break
            if not step.grant(req, whole=True):
                break
            self._members.append(req)
        longest = max((req.known for req in self._members), default=0)
        self._padding = [longest - req.known for req in self._members]
