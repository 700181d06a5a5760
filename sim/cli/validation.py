"""What `sim validate` answers to its options. It measures and compares nothing itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from sim.engines.environment import Installed
from sim.report.validation.drift import drift_view
from sim.report.validation.drift_page import render_drift
from sim.report.validation.page import lanes_json, render_validation
from sim.report.validation.terminal import collection_view, curve_view, schedules_view, validation_view
from sim.results import files, run_id
from sim.results.folder import taken
from sim.results.transaction import Claim
from sim.scenario import Scenario, load, refuse_unread
from sim.serving.hooks import Progress
from sim.specs.front_end import OFF
from sim.validate import store
from sim.validate.against import ALL, read_all
from sim.validate.against import read as read_results
from sim.validate.drift import Naming, drift, preset_of
from sim.validate.live import LiveRuns, run_live
from sim.validate.run import Pricing, Validation, validate
from sim.validate.schedules import store as schedules
from sim.validate.schedules.grades import GRADES
from sim.validate.schedules.verdicts import replay_folder
from sim.validate.served import against
from sim.validate.verdict import ON_CPU, ON_GPU, Bounds
from traces.schema import InputError

AGAINST = Bounds.all_within(0.10)
SOURCES = ("against", "recorded", "schedules", "against_engine")
"""Options that name what is compared with, instead of a live run."""


@dataclass(frozen=True, slots=True)
class ValidateOptions:
    """The options of the command; at most one of those in `SOURCES` is given."""

    settings: dict[str, Any]
    file: str | None = None
    repeats: int = 1
    clock: str | None = None
    within: float | None = None
    against: Path | None = None
    run: str = ""
    recorded: Path | None = None
    schedules: Path | None = None
    against_engine: str | None = None
    record: Path | None = None
    out: Path | None = None
    allow_code: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """`document` is the JSON, `view` the same for a terminal, `written` the files of the folder asked for."""

    document: dict[str, Any]
    view: RenderableType
    written: Sequence[Path] = ()


def answer(options: ValidateOptions, naming: Naming | None = None) -> Answer:
    """Do what the options ask for.

    Raises:
        InputError: anything that the user can mend, in one sentence.
    """
    sources = [name.replace("_", "-") for name in SOURCES if getattr(options, name) is not None]
    if len(sources) > 1:
        raise InputError(f"--{sources[0]} and --{sources[1]} exclude one another")
    if sources and (options.repeats > 1 or options.clock):
        raise InputError(f"--repeats and --clock are of a live run, and with --{sources[0]} nothing runs live")
    if options.run and options.against is None:
        raise InputError("--run chooses a run of the results given with --against")
    if options.within is not None and not 0 < options.within < 1000:
        raise InputError(f"--within is {options.within:g}; it must lie between 0 and 1000 percent")
    if options.record is not None and options.against_engine is None:
        raise InputError(
            "--record keeps the schedule of an engine named by --against-engine; name one, or leave it out"
        )
    if options.against_engine is not None:
        return _against_engine(options, options.against_engine, naming)
    progress = None if naming is None else partial(naming, "running live")
    if options.schedules is not None:
        return _schedules(options, options.schedules)
    if options.recorded is not None and (folders := store.folders(options.recorded)):
        return _collection(options, folders)
    with nullcontext() if options.out is None else taken(options.out, "validation") as claim:
        return (
            _against(options, options.against, claim)
            if options.against is not None
            else _records(options, progress, claim)
        )


def _against(options: ValidateOptions, results: Path, claim: Claim | None) -> Answer:
    if claim is not None and store.names(claim.folder):
        raise InputError(f"{claim.folder} holds records of live runs; give another --out, or delete that folder")
    scenario, bounds = _scenario(options, {"executor": "predicted"}), _bounds(options, AGAINST)
    how: dict[str, Any] = {"skip_bad": scenario.workload.skip_bad, "tokenizer": scenario.workload.tokenizer}
    if options.run == ALL:
        if claim is not None:
            raise InputError(f"--run {ALL} tells a line for each run; give one of them (--run 1) to write its page")
        runs = read_all(results, **how)
        unusable = {label: str(one) for label, one in runs.items() if isinstance(one, InputError)}
        usable = {label: one for label, one in runs.items() if not isinstance(one, InputError)}
        documents = {label: against(scenario, one, bounds).document for label, one in usable.items()}
        return _curve(documents, unusable)
    served = read_results(results, options.run, **how)
    validation = against(scenario, served, bounds)
    return _written(validation, claim, run_id.digest(validation.document), ())


def _curve(documents: Mapping[str, dict[str, Any]], unusable: Mapping[str, str]) -> Answer:
    """Several benchmarks of one server, such as a sweep over rates: a line for each, and why some have none."""
    out = [label for label, document in documents.items() if not document["verdict"]["good"]]
    reason = f"{out[0]}: {documents[out[0]]['verdict']['reason']}" if out else "every run is within its bounds"
    document = {
        "twin": {"identical": None, "steps": 0, "first_difference": None},
        "runs": documents,
        "unusable": unusable,
        "verdict": {"good": not out, "reason": reason, "out": out},
    }
    return Answer(document, curve_view(document))


def _against_engine(options: ValidateOptions, engine: str, progress: Naming | None) -> Answer:
    if options.within is not None:
        raise InputError("--against-engine compares decisions, without bounds: leave out --within")
    if options.out is not None and options.record is not None and options.out.resolve() == options.record.resolve():
        raise InputError(f"--out and --record are both {options.out}; give each a folder of its own")
    preset = {} if "engine.preset" in options.settings else {"engine.preset": preset_of(Installed.of(engine)).name}
    asked = [key for key in options.settings if key.startswith("front_end")]
    if asked and options.settings.get("front_end.name") != OFF:
        raise InputError(
            f"--against-engine compares what schedulers decide, with no front end before them: leave out {asked[0]}"
        )
    scenario = _scenario(options, {"executor": "predicted", "front_end.name": OFF, **preset})
    with (
        nullcontext() if options.out is None else taken(options.out, "validation") as claim,
        nullcontext() if options.record is None else schedules.taken(options.record) as record,
    ):
        found = drift(scenario, engine, progress, record)
        written: list[Path] = []
        if claim is not None:
            mark = run_id.digest(found.document)
            pages = {
                "validate.json": run_id.document(found.document, mark),
                "validate.html": run_id.page(render_drift(found), mark),
            }
            written = claim.write(pages, stale=[*store.names(claim.folder), *store.PAGES])
    return Answer(found.document, drift_view(found.document), written)


def _collection(options: ValidateOptions, folders: Sequence[Path]) -> Answer:
    if options.out is not None:
        raise InputError(
            f"{options.recorded} holds {len(folders)} folders of records; give one of them to write its page"
        )
    documents = {folder.name: _records(replace(options, recorded=folder), None, None).document for folder in folders}
    different = [name for name, document in documents.items() if not document["twin"]["identical"]]
    out = [name for name, document in documents.items() if not document["verdict"]["good"]]
    steps = sum(document["twin"]["steps"] for document in documents.values())
    first = {"record": different[0], **documents[different[0]]["twin"]["first_difference"]} if different else None
    reason = f"{out[0]}: {documents[out[0]]['verdict']['reason']}" if out else "every record is within its bounds"
    document = {
        "twin": {"identical": not different, "steps": steps, "first_difference": first},
        "records": documents,
        "verdict": {"good": not out, "reason": reason, "out": out},
    }
    return Answer(document, collection_view(document))


def _records(options: ValidateOptions, progress: Progress | None, claim: Claim | None) -> Answer:
    written: Sequence[Path] = ()
    mark = ""
    if options.recorded is not None:
        record = store.read(options.recorded, allow_code=options.allow_code)
        if set(options.settings) - {"cost.profile"} or options.file:
            raise InputError("with --recorded the scenario is the recorded one; only --profile may be given beside it")
        if options.settings:
            cost = replace(record.scenario.cost, profile=options.settings["cost.profile"])
            record = replace(record, scenario=replace(record.scenario, cost=cost))
    else:
        record = _live(options, progress)
    if claim is not None:  # first of all: a live run costs the most
        mark = store.mark_of(record)
        written = claim.write(store.writers(record, mark), stale=[*store.names(claim.folder), *store.PAGES])
    on_cpu, profile = record.scenario.device == "cpu", record.scenario.cost.profile
    fit = profile == "roofline" and options.settings.get("cost.profile") != "roofline"
    if on_cpu and profile == "roofline" and not fit:
        raise InputError("a roofline is of a GPU, and the live run's device is a CPU: leave out --profile")
    bounds = _bounds(options, ON_CPU if on_cpu else ON_GPU)
    pricing = Pricing.fitted_to(record) if fit else Pricing.of_profile(record)
    validation = validate(record, bounds, pricing, own_capacity=record.about.get("kv_blocks") == "derived")
    return _written(validation, claim, mark, written)


def _live(options: ValidateOptions, progress: Progress | None) -> LiveRuns:
    clock = {"live.clock": options.clock} if options.clock else {}
    # A live run has no front end, and a file that a simulation wrote may name one.
    alone = {} if "front_end.name" in options.settings else {"front_end.name": OFF}
    scenario = _scenario(options, {"executor": "live", **clock, **alone})
    refuse_unread([scenario])
    record = run_live(scenario, options.repeats, progress)
    own = not scenario.kv.blocks and "gpu" in options.settings and record.scenario.device.startswith("cuda")
    return replace(record, about=record.about | {"kv_blocks": "derived" if own else "matched"})


def _scenario(options: ValidateOptions, fixed: dict[str, Any]) -> Scenario:
    return load(options.file, options.settings | fixed, allow_code=options.allow_code)


def _bounds(options: ValidateOptions, usual: Bounds) -> Bounds:
    return usual if options.within is None else Bounds.all_within(options.within / 100)


def _written(validation: Validation, claim: Claim | None, mark: str, written: Sequence[Path]) -> Answer:
    if claim is not None:
        pages = {
            "validate.json": run_id.document(validation.document, mark),
            "validate.html": run_id.page(render_validation(validation), mark),
            "trace.perfetto.json": files.text(lanes_json(validation, mark)),
        }
        written = [*written, *claim.write(pages)]
    return Answer(validation.document, validation_view(validation.document), written)


def _schedules(options: ValidateOptions, folder: Path) -> Answer:
    """Recorded schedules in the frame of a validation: a twin check of the engine alone."""
    if options.settings or options.file or options.within is not None or options.out:
        raise InputError("--schedules replays what was recorded, with the recorded settings: give no other option")
    verdicts = replay_folder(folder)
    compared = [verdict for verdict in verdicts if verdict.status != "unsupported"]
    different = [verdict for verdict in compared if verdict.status == "different"]
    first = {"schedule": different[0].name, **(different[0].first_difference or {})} if different else None
    if different:
        reason = f"{different[0].name} differs at {different[0].detail}"
    elif compared:
        reason = "no step differs" + (f" ({len(verdicts) - len(compared)} unsupported)" if verdicts != compared else "")
    else:
        reason = "every schedule is unsupported, and none was compared"
    good = bool(compared) and not different
    document = {
        "twin": {"identical": good, "steps": sum(verdict.steps for verdict in verdicts), "first_difference": first},
        "grades": {grade: sum(verdict.grades[grade].steps for verdict in compared) for grade in GRADES},
        "schedules": [asdict(verdict) for verdict in verdicts],
        "verdict": {"good": good, "reason": reason, "out": [verdict.name for verdict in different]},
    }
    return Answer(document, schedules_view(verdicts))
