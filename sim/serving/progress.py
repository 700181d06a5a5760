"""Whether requests that preempt one another get any further. It knows no policy and no memory."""

from __future__ import annotations

from sim.engine.batch import Batch

EVERY = 64
"""One of so many batches that preempt is looked at."""
MOST_BATCHES = 100 * EVERY
"""In so many batches that preempt, somebody must have got further. Some request is never preempted by most policies,
and gets further in each; where none is (equals of vLLM's priority policy), they may take turns for ever."""


class NoProgressError(RuntimeError):
    """The engine has requests and will never compute another token that counts."""


class Preempting:
    """Of one replica how far each request has ever got, as seen in batches that preempt."""

    __slots__ = ("_batches", "_furthest", "_last")

    def __init__(self) -> None:
        self._furthest: dict[int, int] = {}
        self._batches = 0
        self._last = 0
        """The batch in which somebody was last seen to get further."""

    def check(self, batch: Batch, now_s: float) -> None:
        """Take in a batch that preempts, which begins now. Raises NoProgressError: nobody has got further for long."""
        self._batches += 1
        if self._batches % EVERY:
            return
        further = batch.lockstep > 0  # each of these gets a token, which no preemption takes back
        for req, tokens, past in batch.entries:
            if past + tokens > self._furthest.get(req.id, 0):
                self._furthest[req.id] = past + tokens
                further = True
        if further:
            self._last = self._batches
        if self._batches - self._last >= MOST_BATCHES:
            raise NoProgressError(
                f"at {now_s:.6f} s requests preempt one another in turns, and in {MOST_BATCHES:,} batches none has got "
                "further than before: more KV memory, or fewer seats (engine.max_num_seqs), would end it"
            )
