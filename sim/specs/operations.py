"""The settings of what is done with a fleet while it serves: who is let in, and who comes again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sim.specs.bounds import Bound
from sim.specs.settings import Where, check, setting
from traces.schema import InputError

_PREDICTED = Where("executor is predicted", lambda scenario: scenario.executor == "predicted")
_MOST = 10**9


def _refuses(scenario: Any) -> bool:
    front_end = scenario.front_end
    return bool(scenario.admission.on or front_end.max_num_queued_reqs or front_end.max_num_queued_tokens)


def _set(key: str) -> Where:
    return Where(f"admission.{key} is set", lambda scenario: getattr(scenario.admission, key))


_REFUSES = Where("admission or a front end can refuse a request", _refuses)
_RETRIES = Where("retry.attempts is above 1", lambda scenario: scenario.retry.attempts > 1)


@dataclass(frozen=True, slots=True)
class AdmissionSettings:
    """Who is let in, before any router: rates by token buckets, and a queue of the fleet in the order of priority."""

    requests_per_s: float = setting(
        0.0, "Requests let in per second; others are refused (429).", Bound(1e-6, 1e9, "no limit"), where=_PREDICTED
    )
    burst_requests: int = setting(
        0,
        "Requests that may come at once after a pause.",
        Bound(1, _MOST, "one second's, at least 1"),
        where=_set("requests_per_s"),
    )
    tokens_per_s: float = setting(
        0.0,
        "Tokens of prompts and answers let in per second; other requests are refused (429).",
        Bound(1e-6, 1e12, "no limit"),
        where=_PREDICTED,
    )
    burst_tokens: int = setting(
        0,
        "Tokens that may come at once after a pause; a request of more is never let in.",
        Bound(1, 10**12, "one minute's"),
        where=_set("tokens_per_s"),
    )
    max_outstanding: int = setting(
        0,
        "Requests at the replicas at most; others wait before the router, the smallest priority number first.",
        Bound(1, _MOST, "no limit"),
        where=_PREDICTED,
    )
    max_queued: int = setting(
        _MOST,
        "Requests that wait so at most; the last in order beyond is refused (503).",
        Bound(0, _MOST),
        where=_set("max_outstanding"),
    )
    max_wait_s: float = setting(
        0.0,
        "Seconds after which who waits so is refused (503).",
        Bound(1e-6, 1e6, "no limit"),
        where=_set("max_outstanding"),
    )

    def __post_init__(self) -> None:
        check("admission", self)

    @property
    def on(self) -> bool:
        return bool(self.requests_per_s or self.tokens_per_s or self.max_outstanding)


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """What clients do who are refused: they wait, longer each time, and send their request again."""

    attempts: int = setting(1, "Times that a client sends a request at most.", Bound(1, 100), where=_REFUSES)
    base_s: float = setting(1.0, "Seconds before the second time.", Bound(1e-6, 1e6), where=_RETRIES)
    factor: float = setting(2.0, "By what each further wait is longer.", Bound(1.0, 100.0), where=_RETRIES)
    max_s: float = setting(60.0, "Seconds that a client waits at most.", Bound(1e-6, 1e6), where=_RETRIES)
    jitter: float = setting(
        0.5, "Share of a wait that is drawn from the seed: that much shorter at most.", Bound(0.0, 1.0), where=_RETRIES
    )

    def __post_init__(self) -> None:
        check("retry", self)
        if self.max_s < self.base_s:
            raise InputError(f"retry.max_s is {self.max_s:g}, and retry.base_s, the first wait, is {self.base_s:g}")
