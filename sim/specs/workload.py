"""The settings of a workload: which requests come, and when. It reads no trace."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sim.specs.bounds import Bound
from sim.specs.settings import Where, check, setting, word
from traces.choices import LARGEST_CV, TIME_UNITS, TURNS
from traces.schema import MAX_REQUESTS, MAX_TOKENS, InputError

_DRAWN = Where("workload.adapters is set", lambda scenario: scenario.workload.adapters)


@dataclass(frozen=True, slots=True)
class StageSettings:
    """One stage of a staged load."""

    rate: float = setting(0.0, "Requests per second.", Bound(1e-6, 1e9, "not set"))
    rate_scale: float = setting(0.0, "Times workload.rate, or the trace's own rate.", Bound(1e-6, 1e6, "not set"))
    duration_s: float = setting(0.0, "Seconds that it lasts.", Bound(1e-6, 1e9, "not set"))

    def check(self, number: int) -> None:
        """Raise InputError, naming the `number` of the stage, for one that says no rate or not how long it lasts."""
        where = f"stage {number} of workload.stages"
        if not self.duration_s:
            raise InputError(f"{where} has no duration_s; a stage is a rate, or a rate_scale, and its seconds")
        if (self.rate > 0) + (self.rate_scale > 0) != 1:
            raise InputError(f"{where} has {'both' if self.rate else 'neither'} of rate and rate_scale; it takes one")

    def __post_init__(self) -> None:
        check("workload.stages", self)

    def __str__(self) -> str:
        rate = f"{word(self.rate)}/s" if self.rate else f"x{word(self.rate_scale)}"
        return f"{rate} for {word(self.duration_s)} s"


@dataclass(frozen=True, slots=True)
class WorkloadSettings:
    """Which requests come, and when."""

    trace: str = setting("", "Trace file, or the name of a bundled one (sim list traces).")
    format: str = setting("", "Format of the trace, instead of detecting it (sim list formats).")
    limit: int = setting(
        0,
        "Only the first N requests; at a rate of one's own whole sessions, and drawn again where they are too few.",
        Bound(0, 10**9, "all"),
    )
    rate: float = setting(
        0.0,
        "Requests offered per second, later turns of sessions included.",
        Bound(1e-6, 1e9, "not set", infinite="all at once"),
    )
    rate_scale: float = setting(1.0, "Multiply the rate that the trace offers.", Bound(1e-6, 1e6))
    stages: tuple[StageSettings, ...] = setting(
        (),
        "Load in stages, one after the other: tables of duration_s, and of rate or rate_scale (of workload.rate, or of "
        "the trace's own rate).",
    )
    concurrency: int = setting(
        0, "Closed loop of N users, who wait for their answers.", Bound(0, MAX_REQUESTS, "not set")
    )
    arrivals: str = setting(
        "trace",
        "Arrival times: the trace's, or drawn anew from the seed, at workload.rate or else the trace's own.",
        choices=("trace", "poisson", "gamma"),
    )
    arrivals_cv: float = setting(1.0, "Coefficient of variation of gamma arrivals' gaps.", Bound(0.001, LARGEST_CV))
    resample: int = setting(0, "Draw N sessions (or requests) of the trace anew.", Bound(0, MAX_REQUESTS, "not set"))
    sessions: bool = setting(
        True, "A turn waits for the answer before it and the think time, not for its recorded time."
    )
    side: str = setting("both", "Side of each battle of an arena trace: both, a, b.")
    tokenizer: str = setting("", "A tokenizer.json, for traces that hold text without token counts.")
    turns: str = setting(
        "auto",
        "What the length of a session's later turn is in the trace: the whole prompt, or the new text; auto is what "
        "the format says, or its hash ids show.",
        choices=TURNS,
    )
    time_unit: str = setting(
        "auto", "Unit of the trace's times, where files of its format differ; auto is the format's.", choices=TIME_UNITS
    )
    block_tokens: int = setting(
        0,
        "Tokens of a block of the trace's hash ids, where files of its format differ.",
        Bound(0, MAX_TOKENS, "the format's, or the only one that fits"),
    )
    skip_bad: bool = setting(False, "Leave out rows that cannot be used, and count them.")
    priority_shares: Mapping[str, float] = setting(
        {},
        "How many requests (with sessions: how many sessions) have which priority, drawn from the seed instead of the "
        "trace's: by number, its share.",
        Bound(0.0, 1e9),
    )
    model_shares: Mapping[str, float] = setting(
        {},
        "How many requests (with sessions: how many sessions) are for which model, drawn from the seed instead of what "
        "the trace says: by a name that a pool serves, its share.",
        Bound(0.0, 1e9),
        where=Where("there are pools", lambda scenario: scenario.pools),
    )
    adapters: int = setting(
        0,
        "Adapters (LoRA), adapter-1 and so on, one of which each request (with sessions: each session) asks for, drawn "
        "from the seed instead of what the trace says.",
        Bound(0, 100_000, "the trace's"),
    )
    adapter_skew: float = setting(
        1.0,
        "How uneven they are asked for: adapter-n by n to the power of minus this (Zipf); 0 is evenly.",
        Bound(0.0, 10.0),
        where=_DRAWN,
    )
    base_share: float = setting(0.0, "Share of the requests that ask for no adapter.", Bound(0.0, 1.0), where=_DRAWN)
    samples: int = setting(0, "Answers to every prompt.", Bound(0, 10_000, "as the trace says"))
    beam_search: bool = setting(False, "The answers to a prompt are the beams of one search.")
    # Nothing simulated could choose a beam; 0.07 is nearest to figure 15 of the vLLM paper, which no value meets.
    beam_churn: float = setting(
        0.07,
        "Probability that a beam's place goes on from another, drawn one after a token.",
        Bound(0.0, 1.0),
        where=Where("workload.beam_search is true", lambda scenario: scenario.workload.beam_search),
    )

    def __post_init__(self) -> None:
        check("workload", self)
        if (self.rate > 0) + (self.rate_scale != 1.0) + (self.concurrency > 0) > 1:
            raise InputError("workload.rate, workload.rate_scale and workload.concurrency exclude one another")
        if self.arrivals_cv != 1.0 and self.arrivals != "gamma":
            raise InputError(f"workload.arrivals_cv is of gamma arrivals, and workload.arrivals is {self.arrivals}")
        if self.arrivals != "trace" and self.concurrency:
            raise InputError("workload.arrivals and workload.concurrency exclude one another: users come by themselves")
        if self.arrivals != "trace" and math.isinf(self.rate):
            raise InputError(f"workload.rate is inf, all at once: there are no {self.arrivals} arrivals to draw")
        if self.stages:
            self._check_stages()
        for number in self.priority_shares:
            if not number.removeprefix("-").isdecimal() or abs(int(number)) > MAX_TOKENS:
                raise InputError(f"workload.priority_shares.{number}: a priority is a whole number; smaller goes first")
        for key in ("priority_shares", "model_shares"):
            shares = getattr(self, key)
            if shares and not any(shares.values()):
                raise InputError(f"workload.{key} are all 0, and one at least must be above")

    @property
    def laid_anew(self) -> bool:
        """Whether requests come at other times than the trace's (or the users')."""
        return bool(self.rate or self.stages) or self.rate_scale != 1.0 or self.arrivals != "trace"

    def _check_stages(self) -> None:
        for number, stage in enumerate(self.stages, 1):
            stage.check(number)
        others = {
            "workload.rate_scale": self.rate_scale != 1.0,
            "workload.concurrency": self.concurrency > 0,
            "workload.limit": self.limit > 0,
            "workload.resample": self.resample > 0,
        }
        for key in (key for key, given in others.items() if given):
            why = " (stages say how many requests come)" if key in ("workload.limit", "workload.resample") else ""
            raise InputError(f"workload.stages and {key} exclude one another{why}")
        if self.rate and not (any(stage.rate_scale for stage in self.stages) and math.isfinite(self.rate)):
            raise InputError(
                f"workload.rate is {word(self.rate)}, and with workload.stages it is read only as the finite rate that "
                "a stage's rate_scale multiplies"
            )
