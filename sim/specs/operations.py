"""The settings of what is done with a fleet while it serves: who is let in or asks again, what fails, what scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sim.specs.bounds import Bound
from sim.specs.settings import Where, check, setting
from traces.schema import InputError

_PREDICTED = Where("executor is predicted", lambda scenario: scenario.executor == "predicted")
_MOST = 10**9


def refuses(scenario: Any) -> bool:
    """Whether something of a scenario may refuse a request."""
    front_end = scenario.front_end
    return bool(scenario.admission.on or front_end.max_num_queued_reqs or front_end.max_num_queued_tokens)


def _set(key: str) -> Where:
    return Where(f"admission.{key} is set", lambda scenario: getattr(scenario.admission, key))


_REFUSES = Where("admission or a front end can refuse a request", refuses)
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
        Bound(0, _MOST, "one second's, at least 1"),
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
        Bound(0, 10**12, "one minute's"),
        where=_set("tokens_per_s"),
    )
    max_outstanding: int = setting(
        0,
        "Requests at the replicas at most; others wait before the router, the smallest priority number first.",
        Bound(0, _MOST, "no limit"),
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


@dataclass(frozen=True, slots=True)
class OutageSettings:
    """One replica that dies and comes back."""

    pool: str = setting("", "Pool of the replica; none where there is one kind of replica.")
    replica: int = setting(0, "Its number there, from 0.", Bound(0, 10_000))
    at_s: float = setting(0.0, "When it dies, on the clock of the arrivals.", Bound(0.0, 1e9))
    down_s: float = setting(0.0, "Seconds until it serves again.", Bound(1e-6, 1e9, "not set"))

    def __post_init__(self) -> None:
        check("failures.schedule", self)
        if not self.down_s:
            raise InputError("an outage of failures.schedule has no down_s, the seconds until its replica serves again")

    def __str__(self) -> str:
        return f"{self.pool or 'replica'} {self.replica} at {self.at_s:g} s for {self.down_s:g} s"


_FAILS = Where("failures.mtbf_s is set", lambda scenario: scenario.failures.mtbf_s)
_RESTARTS = Where("failures.restart_at_s is set", lambda scenario: scenario.failures.restart_at_s)


@dataclass(frozen=True, slots=True)
class FailureSettings:
    """Replicas that die and come back, with nothing in their memory, and restarts of all in turn."""

    schedule: tuple[OutageSettings, ...] = setting(
        (), "Outages: tables of pool, replica, at_s and down_s.", where=_PREDICTED
    )
    mtbf_s: float = setting(
        0.0,
        "Mean seconds for which a replica serves until it dies, exponential, drawn from the seed.",
        Bound(1e-3, 1e9, "none dies"),
        where=_PREDICTED,
    )
    mttr_s: float = setting(
        60.0, "Mean seconds until it serves again, exponential, drawn from the seed.", Bound(1e-6, 1e9), where=_FAILS
    )
    restart_at_s: float = setting(
        0.0,
        "When all replicas begin to be restarted, one after the other.",
        Bound(1e-6, 1e9, "never"),
        where=_PREDICTED,
    )
    restart_s: float = setting(60.0, "Seconds that each takes to restart.", Bound(1e-6, 1e9), where=_RESTARTS)
    restart_drains: bool = setting(
        True, "A replica answers what it has before it restarts; otherwise it dies.", where=_RESTARTS
    )

    def __post_init__(self) -> None:
        check("failures", self)

    @property
    def on(self) -> bool:
        return bool(self.schedule or self.mtbf_s or self.restart_at_s)


OFF = "off"
QUEUE, KV, RATE, OUTSTANDING = "queue", "kv", "rate", "outstanding"
_SCALES = Where("autoscale.metric is not off", lambda scenario: scenario.autoscale.on)


@dataclass(frozen=True, slots=True)
class AutoscaleSettings:
    """How many replicas a pool has, by what they have to do; `replicas` (of a pool, `count`) is how many at first."""

    metric: str = setting(
        OFF,
        "What decides: off, queue (requests that wait there), kv (share of KV blocks held), rate (requests that came, "
        "per second), outstanding (unfinished requests).",
        choices=(OFF, QUEUE, KV, RATE, OUTSTANDING),
        where=_PREDICTED,
    )
    target: float = setting(0.0, "How much of it a replica is to have.", Bound(1e-6, 1e9, "not set"), where=_SCALES)
    min: int = setting(1, "Replicas at least.", Bound(1, 10_000), where=_SCALES)
    max: int = setting(1, "Replicas at most.", Bound(1, 10_000), where=_SCALES)
    interval_s: float = setting(15.0, "Seconds between two looks.", Bound(1e-3, 1e6), where=_SCALES)
    tolerance: float = setting(
        0.1, "Share of the target from which on something is done.", Bound(0.0, 10.0), where=_SCALES
    )
    delay_s: float = setting(
        60.0,
        "Seconds from the order of a replica, which is paid from then, until it serves.",
        Bound(0.0, 1e6),
        where=_SCALES,
    )
    cooldown_s: float = setting(
        300.0, "Seconds that a need must have been lower before replicas are taken away.", Bound(0.0, 1e6),
        where=_SCALES,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check("autoscale", self)
        if not self.on:
            return
        if self.min > self.max:
            raise InputError(f"autoscale.min is {self.min}, and autoscale.max is {self.max}: it must be at least that")
        if not self.target:
            raise InputError(f"autoscale.target is not set: how much {self.metric} a replica is to have")
        if self.metric == KV and self.target > 1.0:
            raise InputError(f"autoscale.target is {self.target:g}, and kv is a share of the KV blocks, at most 1")

    @property
    def on(self) -> bool:
        return self.metric != OFF
