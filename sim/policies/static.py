"""Request-level batching: a batch is formed, padded, and runs until its last member ends (what Orca improved on)."""

from __future__ import annotations

from sim.engine.request import index_of
from sim.engine.step import Step
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
        self._rows = 0
        self._padding: dict[int, int] = {}

    def __call__(self, step: Step) -> None:
        if step.running:
            step.advance_running()
            rows = self._rows
        else:
            self._form(step)
            rows = len(self._padding)
        lengths = [step.computed(req) + self._padding_of(req.id) for req in step.running if not step.ending(req)]
        if lengths:
            step.pad(rows, max(lengths))

    def _padding_of(self, id: int) -> int:
        """A sequence forked in this batch is padded like the prompt that it came from."""
        return self._padding[id] if id in self._padding else self._padding[index_of(id)]

    def _form(self, step: Step) -> None:
        self._rows = 0
        self._padding = {}
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
            rows = len(self._padding) + 1
            if rows > 1 and (self._rows + req.seats > self._batch_size or rows * longest > step.budget_tokens):
                break
            seats = req.seats
            if not step.grant(req, whole=True):
                break
            self._rows += seats
            self._padding[req.id] = req.known
        longest = max(self._padding.values(), default=0)
        self._padding = {id: longest - known for id, known in self._padding.items()}
