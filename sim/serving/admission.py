"""Who is let in before any router: token buckets, and a queue of the fleet. It knows no replica and no client.

Rates as API gateways keep them (a bucket for requests and one for tokens, HTTP 429), and the flow control of the
Kubernetes Gateway API Inference Extension: what the replicas have no room for waits before them, by priority, and
the last in order is given up first.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from sim.engine.request import Request
from sim.results.percentiles import distribution
from sim.serving.clock import Clock, Event
from sim.specs.operations import AdmissionSettings
from traces.schema import InputError

REQUESTS, TOKENS, QUEUE, WAIT = (
    "requests_per_s (429)",
    "tokens_per_s (429)",
    "max_queued (503)",
    "max_wait_s (503)",
)
"""The limits that a request may meet."""


class Bucket:
    """Fills at `rate_per_s` up to `most`, full at first; what is taken out must be in it."""

    def __init__(self, rate_per_s: float, most: float) -> None:
        self.rate_per_s = rate_per_s
        self.most = most
        self._level = most
        self._since_s = 0.0

    def has(self, amount: float, now_s: float) -> bool:
        """Whether so much is in it now."""
        self._level = min(self.most, self._level + (now_s - self._since_s) * self.rate_per_s)
        self._since_s = now_s
        return self._level >= amount - 1e-9 * self.most  # what has come back in time is not lost to rounding

    def take(self, amount: float) -> None:
        """Take out what it `has`."""
        self._level -= amount


def request_bucket(settings: AdmissionSettings) -> Bucket:
    """The bucket of `requests_per_s`."""
    return Bucket(settings.requests_per_s, settings.burst_requests or max(1.0, settings.requests_per_s))


def token_bucket(settings: AdmissionSettings) -> Bucket:
    """The bucket of `tokens_per_s`."""
    return Bucket(settings.tokens_per_s, settings.burst_tokens or 60.0 * settings.tokens_per_s)


def check_admission(settings: AdmissionSettings, tokens: Iterable[int]) -> None:
    """Raise InputError where no request, of so many tokens each, could ever be let in."""
    if settings.tokens_per_s and (fewest := min(tokens)) > (most := token_bucket(settings).most):
        raise InputError(
            f"admission lets nobody in: the smallest request has {fewest:,} tokens, and admission.burst_tokens "
            f"is {most:,.0f}{'' if settings.burst_tokens else ', one minute at admission.tokens_per_s'}"
        )


class Admission:
    """Stands before the routers.

    Args:
        submit: takes who is let in.
        refused: told of who is not, and of the limit that it met.
        asked_s: gains, by id, when a request was sent that was let in later.
    """

    def __init__(
        self,
        clock: Clock,
        settings: AdmissionSettings,
        submit: Callable[[Request], None],
        refused: Callable[[Request, str], None],
        asked_s: dict[int, float],
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._submit = submit
        self._refused = refused
        self._asked_s = asked_s
        self._requests = request_bucket(settings) if settings.requests_per_s else None
        self._tokens = token_bucket(settings) if settings.tokens_per_s else None
        self._outstanding = 0
        self._queue: list[tuple[int, int, Request]] = []
        """(priority, number of arrival, request) of those who wait, in order."""
        self._arrivals = 0
        self._waited_s: list[float] = []
        self._longest_queue = 0
        self._refusals: Counter[str] = Counter()

    def submit(self, req: Request) -> None:
        """Let a request in, keep it waiting, or refuse it."""
        if limit := self._rate_met(req):
            self._refuse(req, limit)
            return
        most = self._settings.max_outstanding
        free = most - self._outstanding
        if not most or (free > 0 and not self._queue):
            self._let_in(req)
            return
        self._arrivals += 1
        insort(self._queue, (req.priority, self._arrivals, req))
        if len(self._queue) - free > self._settings.max_queued:
            self._refuse(self._queue.pop()[2], QUEUE)
        self._longest_queue = max(self._longest_queue, len(self._queue))
        if self._settings.max_wait_s:
            place = (req.priority, self._arrivals)
            self._clock.call_at(self._clock.now + self._settings.max_wait_s, lambda event: self._give_up(place, event))

    def left(self) -> None:
        """A request that was let in has ended, or is not to be served: the next comes in, just after that moment.

        As what follows an answer (`RequestSource.finished`): no step that begins at the very end holds it.
        """
        self._outstanding -= 1
        if self._queue:
            self._clock.call_at(math.nextafter(self._clock.now, math.inf), self._next, first=True)

    def _next(self, event: Event) -> None:
        now_s = self._clock.now
        while self._queue and self._outstanding < self._settings.max_outstanding:
            _, _, req = self._queue.pop(0)
            self._asked_s.setdefault(req.id, req.arrival_s)
            self._waited_s.append(now_s - req.arrival_s)
            req.arrival_s = now_s
            self._let_in(req)

    def _rate_met(self, req: Request) -> str:
        """The rate that keeps a request out; else it is counted."""
        now_s = self._clock.now
        tokens = req.prompt_tokens + req.output_tokens * req.seats
        if self._requests is not None and not self._requests.has(1.0, now_s):
            return REQUESTS
        if self._tokens is not None:
            if not self._tokens.has(tokens, now_s):
                return TOKENS
            self._tokens.take(tokens)
        if self._requests is not None:
            self._requests.take(1.0)
        return ""

    def _let_in(self, req: Request) -> None:
        self._outstanding += 1
        self._submit(req)

    def _give_up(self, place: tuple[int, int], event: Event) -> None:
        at = bisect_left(self._queue, place, key=lambda waiting: waiting[:2])
        if at < len(self._queue) and self._queue[at][:2] == place:
            self._refuse(self._queue.pop(at)[2], WAIT)

    def _refuse(self, req: Request, limit: str) -> None:
        self._refusals[limit] += 1
        self._refused(req, limit)

    def facts(self) -> dict[str, Any]:
        """What the summary tells of it: refusals by limit (each time that a client asked), and the queue."""
        return {
            "refused": dict(sorted(self._refusals.items())),
            "queued": len(self._waited_s),
            "longest_queue": self._longest_queue,
            "wait_s": distribution(self._waited_s),
        }
