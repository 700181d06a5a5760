"""What `sim validate` was asked and what it answers. It measures and compares nothing itself."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from sim import scenario
from sim.report.validation.page import lanes_json, render_validation
from sim.report.validation.terminal import collection_view, schedules_view, validation_view
from sim.results import files
from sim.results import run_id as marks
from sim.results.folder import taken
from sim.results.transaction import Claim
from sim.serving.run import Progress
from sim.validate import store
from sim.validate.against import read as read_results
from sim.validate.live import Kept, run_live
from sim.validate.run import Pricing, Validation, validate
from sim.validate.schedules.grades import GRADES
from sim.validate.schedules.verdicts import replay_folder
from sim.validate.served import against
from sim.validate.verdict import ON_CPU, ON_GPU, Bounds
from traces.schema import InputError

AGAINST = Bounds.all_within(0.10)


@dataclass(frozen=True, slots=True)
class Asked:
    """The options of the command; at most one of `against`, `recorded` and `schedules` is given."""

    settings: dict[str, Any]
    file: str | None = None
    repeats: int = 1
    clock: str | None = None
    within: float | None = None
    against: Path | None = None
    recorded: Path | None = None
    schedules: Path | None = None
    out: Path | None = None
    allow_code: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """`document` is the JSON, `view` the same for a terminal, `written` the files of the folder asked for."""

    document: dict[str, Any]
    view: RenderableType
    written: Sequence[Path] = ()


def answer(asked: Asked, progress: Progress | None = None) -> Answer:
    """Do what was asked.

    Raises:
        InputError: anything that the user can mend, in one sentence.
    """
    sources = [name for name in ("against", "recorded", "schedules") if getattr(asked, name) is not None]
    if len(sources) > 1:
        raise InputError(f"--{sources[0]} and --{sources[1]} exclude one another")
    if sources and (asked.repeats > 1 or asked.clock):
        raise InputError(f"--repeats and --clock are of a live run, and with --{sources[0]} nothing runs live")
    if asked.within is not None and not 0 < asked.within < 1000:
        raise InputError(f"--within is {asked.within:g}; it must lie between 0 and 1000 percent")
    if asked.schedules is not None:
        return _schedules(asked, asked.schedules)
    if asked.recorded is not None and (folders := store.folders(asked.recorded)):
        return _collection(asked, folders)
    with nullcontext() if asked.out is None else taken(asked.out, "validation") as claim:
        return _against(asked, asked.against, claim) if asked.against is not None else _records(asked, progress, claim)


def _against(asked: Asked, results: Path, claim: Claim | None) -> Answer:
    if claim is not None and store.names(claim.folder):
        raise InputError(f"{claim.folder} holds records of live runs; give another --out, or delete that folder")
    found = against(_plan(asked, {"executor": "predicted"}), read_results(results), _bounds(asked, AGAINST))
    return _told(found, claim, marks.digest(found.document), ())


def _collection(asked: Asked, folders: Sequence[Path]) -> Answer:
    """Several folders of records, each compared by itself."""
    if asked.out is not None:
        raise InputError(
            f"{asked.recorded} holds {len(folders)} folders of records; give one of them to write its page"
        )
    found = {one.name: _records(replace(asked, recorded=one), None, None).document for one in folders}
    different = [name for name, one in found.items() if not one["twin"]["identical"]]
    out = [name for name, one in found.items() if not one["verdict"]["good"]]
    steps = sum(one["twin"]["steps"] for one in found.values())
    first = {"record": different[0], **found[different[0]]["twin"]["first_difference"]} if different else None
    reason = f"{out[0]}: {found[out[0]]['verdict']['reason']}" if out else "every record is within its bounds"
    document = {
        "twin": {"identical": not different, "steps": steps, "first_difference": first},
        "records": found,
        "verdict": {"good": not out, "reason": reason, "out": out},
    }
    return Answer(document, collection_view(document))


def _records(asked: Asked, progress: Progress | None, claim: Claim | None) -> Answer:
    written: Sequence[Path] = ()
    mark = ""
    if asked.recorded is not None:
        kept = store.read(asked.recorded, allow_code=asked.allow_code)
        if set(asked.settings) - {"cost.profile"} or asked.file:
            raise InputError("with --recorded the scenario is the recorded one; only --profile may be given beside it")
        if asked.settings:
            profile = asked.settings["cost.profile"]
            kept = replace(kept, scenario=replace(kept.scenario, cost=replace(kept.scenario.cost, profile=profile)))
    else:
        kept = _live(asked, progress)
    if claim is not None:  # first of all: a live run costs the most
        mark = store.mark_of(kept)
        written = claim.write(store.writers(kept, mark), stale=[*store.names(claim.folder), *store.PAGES])
    plan = kept.scenario
    on_cpu = plan.device == "cpu"
    fit = plan.cost.profile == "roofline" and asked.settings.get("cost.profile") != "roofline"
    if on_cpu and plan.cost.profile == "roofline" and not fit:
        raise InputError("a roofline is of a GPU, and the live run's device is a CPU: leave out --profile")
    bounds = _bounds(asked, ON_CPU if on_cpu else ON_GPU)
    pricing = Pricing.fitted_to(kept) if fit else Pricing.of_profile(kept)
    found = validate(kept, bounds, pricing, own_capacity=kept.about.get("kv_blocks") == "derived")
    return _told(found, claim, mark, written)


def _live(asked: Asked, progress: Progress | None) -> Kept:
    clock = {"live.clock": asked.clock} if asked.clock else {}
    plan = _plan(asked, {"executor": "live", **clock})
    kept = run_live(plan, asked.repeats, progress)
    own = not plan.kv.blocks and "gpu" in asked.settings and kept.scenario.device.startswith("cuda")
    return replace(kept, about=kept.about | {"kv_blocks": "derived" if own else "matched"})


def _plan(asked: Asked, fixed: dict[str, Any]) -> scenario.Scenario:
    settings = asked.settings | fixed
    given = scenario.read(asked.file, settings, allow_code=asked.allow_code) if asked.file else {}
    return scenario.build(given, settings)


def _bounds(asked: Asked, usual: Bounds) -> Bounds:
    return usual if asked.within is None else Bounds.all_within(asked.within / 100)


def _told(found: Validation, claim: Claim | None, mark: str, written: Sequence[Path]) -> Answer:
    if claim is not None:
        pages = {
            "validate.json": marks.document(found.document, mark),
            "validate.html": marks.page(render_validation(found), mark),
            "trace.perfetto.json": files.text(lanes_json(found, mark)),
        }
        written = [*written, *claim.write(pages)]
    return Answer(found.document, validation_view(found.document), written)


def _schedules(asked: Asked, folder: Path) -> Answer:
    """Recorded schedules in the frame of a validation: a twin check of the engine alone."""
    if asked.settings or asked.file or asked.within is not None or asked.out:
        raise InputError("--schedules replays what was recorded, with the recorded settings: give no other option")
    verdicts = replay_folder(folder)
    compared = [one for one in verdicts if one.status != "unsupported"]
    different = [one for one in compared if one.status == "different"]
    first = {"schedule": different[0].name, **(different[0].first_difference or {})} if different else None
    if different:
        reason = f"{different[0].name} differs at {different[0].detail}"
    elif compared:
        reason = "no step differs" + (f" ({len(verdicts) - len(compared)} unsupported)" if verdicts != compared else "")
    else:
        reason = "every schedule is unsupported, and none was compared"
    good = bool(compared) and not different
    document = {
        "twin": {"identical": good, "steps": sum(one.steps for one in verdicts), "first_difference": first},
        "grades": {grade: sum(one.grades[grade].steps for one in compared) for grade in GRADES},
        "schedules": [asdict(one) for one in verdicts],
        "verdict": {"good": good, "reason": reason, "out": [one.name for one in different]},
    }
    return Answer(document, schedules_view(verdicts))
