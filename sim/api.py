"""The door: `run`, `sweep` and `plan` give tables and documents. The command line is thin over this file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sim import scenario
from sim.scenario import Scenario
from sim.serving.hooks import NO_HOOKS, Hooks, LiveSession, Progress
from sim.serving.run import Result, on_device, simulate
from sim.serving.servable import admissible
from traces.late import pd
from traces.schema import InputError

__all__ = [
    "NO_HOOKS",
    "Hooks",
    "LiveSession",
    "Progress",
    "Result",
    "admissible",
    "on_device",
    "plan",
    "run",
    "simulate",
    "sweep",
]


def run(
    base: Scenario | str | Path | None = None,
    /,
    *,
    progress: Progress | None = None,
    allow_code: bool = False,
    kv_ends: bool = False,
    band: bool = False,
    **settings: Any,
) -> Result:
    """Simulate a scenario.

    Args:
        base: a `Scenario` or the path of a TOML file; nothing for the defaults.
        progress: called now and then with (requests finished, requests in all).
        allow_code: let the file name code to import (`module:object`); a `Scenario` and settings always may.
        kv_ends: where an estimated KV capacity limits the run, also simulate the least and the most that it may be
            (`kv.ends` of the summary); two more runs.
        band: also simulate all steps as fast and as slow as their errors allow, for the summary's `band`, which without
            it is of first order (docs/band.md); two more runs.
        settings: scenario keys on top of it, such as `trace="azure.csv"`, `policy="sjf"` or, for a key in a section,
            `**{"engine.max_num_seqs": 64}`.

    Raises:
        InputError: anything that the user can mend, in one sentence.
    """
    loaded = scenario.load(base, settings, allow_code=allow_code)
    scenario.refuse_unread([loaded])
    if band and loaded.executor != "predicted":
        raise InputError("band: the steps of a live run are measured, so that no error of theirs is told; leave it out")
    result = simulate(loaded, progress=progress)
    if kv_ends:
        from sim.study.kv_ends import with_ends  # noqa: PLC0415

        result = with_ends(result, loaded)
    if band:
        from sim.study.band import with_band  # noqa: PLC0415

        result = with_band(result, loaded)
    return result


def sweep(
    base: Scenario | str | Path | None = None,
    /,
    *,
    points: str | Path | Sequence[Mapping[str, Any]] | None = None,
    seeds: int | Sequence[int] = 1,
    out: str | Path | None = None,
    workers: int | None = None,
    executor: str = "processes",
    most_points: int | None = 10_000,
    progress: Progress | None = None,
    told: Callable[[str], None] = lambda what: None,
    allow_code: bool = False,
    **settings: Any,
) -> pd.DataFrame:
    """Simulate every combination of the settings that are lists, such as `rate=[5, 10], policy=["sjf", "chunked"]`.

    One row a point, in the order of the combinations; columns: docs/sweep.md. A point that cannot run is a row with
    its reason.

    Args:
        base: as for `run`, like the other settings.
        points: a CSV or TOML file of points, or a list of settings, to combine with.
        seeds: how many, from the scenario's own on, or which.
        out: a folder for sweep.parquet and report.html. A sweep that was interrupted goes on from what is in it.
        workers: points at once; None for one on each core.
        executor: where they run: "processes", "ray" or "ray://host:port".
        most_points: refuse more; None for any number.
        progress: called with (points finished, points in all).
        told: called with a sentence where points in `out` run again, since what they are made of has changed.
        allow_code: as for `run`; also of a file of points.

    Raises:
        InputError: anything that the user can mend, in one sentence.
    """
    from sim.report.sweep.folder import page_of  # noqa: PLC0415
    from sim.study.sweep.question import Question  # noqa: PLC0415
    from sim.study.sweep.sweep import run as run_all  # noqa: PLC0415

    question = Question.of(base, settings, points=points, seeds=seeds, most_points=most_points, allow_code=allow_code)
    where = None if out is None else Path(out)
    return run_all(question, out=where, workers=workers, executor=executor, progress=progress, say=told, page=page_of)


def plan(
    base: Scenario | str | Path | None = None,
    /,
    *,
    precision: float = 0.03,
    attainment: float | None = None,
    most_gpus: int = 256,
    requests: int = 5000,
    budget_s: float | None = None,
    journal: str | Path | None = None,
    workers: int | None = None,
    run_on: str = "processes",
    curve: bool = False,
    keep: bool = False,
    told: Callable[[str], None] = lambda what: None,
    allow_code: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """The capacity of a configuration under its `slo`; with a `rate`, the cheapest configuration that takes it.

    The configurations are all combinations of the settings that are lists, such as `gpu=["h100", "a100-80"]`. The
    document that it returns: docs/plan.md; its `best` is None where nothing meets the SLO.

    Args:
        base: as for `run`, like the other settings.
        precision: half width of the capacity's 95 % interval, as a share of it.
        attainment: the share of requests that must meet every limit by their own values.
        most_gpus: no deployment is larger.
        requests: of one replication, at least.
        budget_s: of a plan with a `rate`, seconds after which the best answer so far is given.
        journal: a file that keeps its replications as they come; the same question goes on from it.
        workers: simulations at once; None for one on each core.
        run_on: where they run: "processes", "ray" or "ray://host:port".
        curve: also simulate rates far from the capacity, for plots.
        keep: without a `journal`, keep the replications in a temporary file (which is told) until the plan is done.
        told: called with a sentence now and then.
        allow_code: as for `run`.

    Raises:
        InputError: anything that the user can mend, in one sentence.
    """
    from sim.study.plan.choose import answered  # noqa: PLC0415
    from sim.study.plan.plan import Ask  # noqa: PLC0415

    kept = None if journal is None else Path(journal)
    ask = Ask(precision, attainment, workers, run_on, curve, most_gpus, requests, budget_s, kept, keep)
    return answered(scenario.tables_of(base, settings, allow_code=allow_code), settings, ask, told)
