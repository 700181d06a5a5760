"""Clients who were refused wait, longer each time, and send their request again. It knows no reason and no replica."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sim.engine.request import Request
from sim.serving.clock import Clock, Event
from sim.serving.workload import stream
from sim.specs.operations import RetrySettings


class Retries:
    """Sends requests again, with exponential back-off; a wait is shorter by a share drawn for each request and time.

    Args:
        submit: takes a request that is sent again.
        asked_s: gains, by id, when a request was sent first.
    """

    def __init__(
        self,
        clock: Clock,
        settings: RetrySettings,
        seed: int,
        submit: Callable[[Request], None],
        asked_s: dict[int, float],
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._seed = seed
        self._submit = submit
        self._asked_s = asked_s
        self.sent: dict[int, int] = {}
        """By request that was sent more than once: how often."""

    def wait_s(self, request: int, sent: int) -> float:
        """How long the client of a request waits that was sent so often."""
        settings = self._settings
        whole_s = min(settings.max_s, settings.base_s * settings.factor ** (sent - 1))
        if not settings.jitter:
            return whole_s
        drawn = float(stream(self._seed, "retry", request, sent).random())
        return whole_s * (1.0 - settings.jitter * drawn)

    def again(self, req: Request, told_s: float) -> bool:
        """The client learns at `told_s` that its request is refused; returns whether it will send it again."""
        sent = self.sent.get(req.id, 1)
        if sent >= self._settings.attempts:
            return False
        self.sent[req.id] = sent + 1
        self._asked_s.setdefault(req.id, req.arrival_s)
        self._clock.call_at(told_s + self.wait_s(req.id, sent), partial(self._send, req), first=True)
        return True

    def _send(self, req: Request, event: Event) -> None:
        req.arrival_s = self._clock.now
        self._submit(req)

    def facts(self, refused: set[int]) -> dict[str, Any]:
        """What the summary tells: `refused` are the requests that were refused to the last."""
        return {
            "requests": len(self.sent),
            "sent_again": sum(self.sent.values()) - len(self.sent),
            "answered": len(self.sent.keys() - refused),
        }
