"""What the field says of its techniques, run again: each claim is two simulations and a ratio of what they measured.

A claim is a file of facts in `sim/catalog/claims`: what was published and by whom, the traffic, the settings of both
runs and what is compared. Nothing here is a constant of any claim: another setting gives another ratio.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from sim import scenario
from sim.scenario import Scenario
from sim.serving import run as serving
from sim.serving.workload import stream
from sim.study.workers.pool import each
from traces import documents
from traces.schema import InputError, Trace
from traces.synth import Recipe

FOLDER = Path(str(files("sim.catalog"))) / "claims"
HOLDS, MORE, LESS, NOT, ABSENT = "holds", "more than published", "less than published", "does not hold", "not available"
"""Verdicts: within what was published, beyond it, short of it but the same way, no gain at all; cannot be run yet."""

LEAST_GAIN = 1.05
"""A smaller ratio is no gain that anyone would claim."""

KINDS: Mapping[str, str] = {
    "times more": "the second run's figure over the first's",
    "times less": "the first run's figure over the second's",
    "share": "the last run's figure as a share",
    "runs": "whether each run can run at all",
}
"""How the figures of a claim's runs become the one that was published."""


@dataclass(frozen=True, slots=True)
class ClaimRun:
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Traffic and settings under which a claim is tried; `text` says so in words.

    traffic: `traces.synth.Recipe`'s values, for requests drawn from the claim's seed; none where the settings name a
    trace.
    """

    text: str
    traffic: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    runs: tuple[ClaimRun, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldClaim:
    """A claim of the field. `low` and `high` bound the published figure in the unit that `kind` gives.

    measure: dotted key of the summary, or with `one_less` what it lacks of 1; `measured` and `unit` say it in words.
    missing: why it cannot be run yet; then there are no situations. A second situation shows what a claim depends on.
    """

    name: str
    title: str
    published: str
    source: str
    why: str
    kind: str = "times more"
    measure: str = ""
    measured: str = ""
    low: float = 0.0
    high: float = math.inf
    unit: str = ""
    one_less: bool = False
    missing: str = ""
    situations: tuple[Situation, ...] = ()


@dataclass(frozen=True, slots=True)
class ClaimRow:
    """A claim tried in one situation: the figures of its runs (None: could not run) and what they come to."""

    claim: FieldClaim
    situation: Situation | None
    figures: tuple[float | None, ...] = ()
    reasons: tuple[str, ...] = ()
    """Of each run why it could not run, or nothing."""
    value: float | None = None
    verdict: str = ABSENT

    @property
    def name(self) -> str:
        return self.claim.name


@dataclass(frozen=True, slots=True)
class ClaimTask:
    """One run of a claim, with settings of the user's on top."""

    measure: str
    one_less: bool
    situation: Situation
    run: ClaimRun
    settings: Mapping[str, Any]

    def scenario(self) -> Scenario:
        return scenario.load(None, {**self.situation.settings, **self.run.settings, **self.settings})


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> FieldClaim:
    """The claim of this name. Raises InputError for an unknown one, and for a file that is none."""
    if name not in names():
        near = get_close_matches(name, names(), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"unknown claim {name!r}{hint}; known are {', '.join(names())}")
    path = FOLDER / f"{name}.toml"
    table = documents.toml(path)
    situations = tuple(_situation(one, path) for one in table.pop("situations", []))
    claim: FieldClaim = _made(FieldClaim, {"name": name, **table, "situations": situations}, path)
    if claim.kind not in KINDS:
        raise InputError(f"{path}: kind is {claim.kind!r}; known are {', '.join(KINDS)}")
    if bool(claim.missing) == bool(situations):
        raise InputError(f"{path}: a claim has situations, or says what is missing")
    return claim


def _situation(table: dict[str, Any], path: Path) -> Situation:
    runs = tuple(_made(ClaimRun, {**run, "settings": _beside(run, path)}, path) for run in table.pop("runs", []))
    return _made(Situation, {**table, "runs": runs}, path)  # type: ignore[no-any-return]


def _beside(run: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A run's settings; a file named from "./" on lies beside the claim's own."""
    return {
        key: str(path.parent / value) if isinstance(value, str) and value.startswith("./") else value
        for key, value in run.get("settings", {}).items()
    }


def _made(kind: type, table: Mapping[str, Any], path: Path) -> Any:
    known = [one.name for one in dataclasses.fields(kind)]
    for key in table:
        if key not in known:
            raise InputError(f"{path}: unknown key {key!r}; known are {', '.join(known)}")
    try:
        return kind(**table)
    except TypeError as error:
        raise InputError(f"{path}: {error}") from None


def tried(
    claims: Sequence[FieldClaim],
    settings: Mapping[str, Any] | None = None,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[ClaimRow]:
    """Run the claims and yield their rows, in order, each as soon as it and those before it are done.

    Args:
        settings: scenario keys on top of each run's own, such as `{"gpu": "a100-80"}`.
        workers: runs at once; None for one on each core.
        progress: called with (runs finished, runs in all).

    Raises:
        InputError: a setting that no scenario has. A run that cannot run is a row that says so.
    """
    tasks = [
        ClaimTask(claim.measure, claim.one_less, situation, run, dict(settings or {}))
        for claim in claims
        for situation in claim.situations
        for run in situation.runs
    ]
    for task in tasks:
        task.scenario()
    places = iter(range(len(tasks)))
    wanted = [
        (claim, situation, [next(places) for _ in situation.runs] if situation else [])
        for claim in claims
        for situation in (claim.situations or (None,))
    ]
    done: dict[int, tuple[float | None, str]] = {}
    finished = each(_figure, tasks, workers=workers)
    for claim, situation, needed in wanted:
        while not all(place in done for place in needed):
            place, outcome = next(finished)
            done[place] = outcome
            if progress is not None:
                progress(len(done), len(tasks))
        yield _row(claim, situation, [done[place] for place in needed])


def _figure(task: ClaimTask) -> tuple[float | None, str]:
    """What a run measured, or why it cannot run."""
    try:
        loaded = task.scenario()
        summary = serving.simulate(loaded, trace=traffic_of(task.situation, loaded)).summary
    except InputError as error:
        return None, str(error)
    value: Any = summary
    for key in task.measure.split("."):
        value = value[key]
    if value is None:
        return None, f"{task.measure} has no value in this run"
    return 1.0 - value if task.one_less else float(value), ""


def traffic_of(situation: Situation, settings: Scenario) -> Trace | None:
    """The requests of a situation, drawn from the scenario's seed; None where the scenario names a trace."""
    if not situation.traffic or settings.workload.trace:
        return None
    return Recipe(**situation.traffic).make(stream(settings.seed, "claim"), name="drawn for this claim")


def _row(claim: FieldClaim, situation: Situation | None, outcomes: Sequence[tuple[float | None, str]]) -> ClaimRow:
    if situation is None:
        return ClaimRow(claim, None)
    figures, reasons = tuple(figure for figure, _ in outcomes), tuple(reason for _, reason in outcomes)
    value = value_of(claim, figures)
    return ClaimRow(claim, situation, figures, reasons, value, verdict(claim, value))


def value_of(claim: FieldClaim, figures: Sequence[float | None]) -> float | None:
    """What the figures of a claim's runs come to, in the unit of what was published; None where they cannot be had."""
    first, last = figures[0], figures[-1]
    if claim.kind == "runs":
        return float(first is None and last is not None)
    if last is None or first is None:
        return None
    if claim.kind == "share":
        return last
    over, under = (last, first) if claim.kind == "times more" else (first, last)
    return over / under if under else None


def verdict(claim: FieldClaim, value: float | None) -> str:
    """How a value stands to what was published."""
    if value is None or (claim.kind.startswith("times") and value < LEAST_GAIN):
        return NOT
    if value > claim.high:
        return MORE
    return HOLDS if value >= claim.low else LESS if value > 0 else NOT
