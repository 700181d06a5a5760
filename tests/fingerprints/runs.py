"""Makes a run through the public door, and prints what came out. It knows `sim.api`, the command and files alone."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import tomli_w

from sim import api
from sim.cli.main import main

from . import prints
from .pages import of_page

DATA = Path(__file__).resolve().parents[1] / "data" / "fingerprints"
SCHEDULES = Path(__file__).resolve().parents[3] / "shared" / "measured" / "vllm_v1_schedules"
MEASURED = (
    "first_scheduled_s", "first_token_s", "finish_s", "queue_s", "ttft_s", "tpot_s", "e2e_s", "max_itl_s",
    "engine_ttft_s", "engine_tpot_s", "engine_e2e_s",
)  # fmt: skip
"""Columns of a live run that a clock made; of its steps these are all that end in `_s`."""

DERIVED = ("verdict", "binding", "band")
"""Of a summary, what is told anew from what is recorded here: words and shares, which have tests of their own."""
_SPEED = ("Wall time", "Simulated in", "  simulated")


@dataclass
class Outcome:
    """What one run gave: the prints of its parts, and the tables themselves for whoever wants to see a row."""

    prints: dict[str, prints.Print] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    scenario: dict[str, Any] = field(default_factory=dict)
    """Every setting that the product knows, with what this run had."""

    def table(self, name: str, table: pd.DataFrame) -> None:
        self.tables[name] = table.reset_index(drop=True)
        self.prints[name] = prints.of_table(self.tables[name])

    def tree(self, name: str, tree: Any) -> None:
        self.prints[name] = prints.of_tree(tree)

    def page(self, path: Path) -> None:
        self.tree(path.name, of_page(path))


def make(kind: str, settings: Mapping[str, Any]) -> Outcome:
    """Make a run of a kind, in the folder of the data."""
    with contextlib.chdir(DATA):
        return KINDS[kind](dict(settings))


def impossible(kind: str) -> str:
    """Why runs of this kind cannot be made here; "" where they can."""
    if kind == "live" and not all(map(importlib.util.find_spec, ("torch", "safetensors"))):
        return "torch is not installed"
    if kind == "schedules" and not SCHEDULES.is_dir():
        return f"{SCHEDULES} is absent"
    return ""


def flat(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables under dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping):
            part = set(value) == {"name", "parameters"}
            section = {"name": value["name"], **value["parameters"]} if part else value
            found |= {f"{key}.{name}": inner for name, inner in flat(section).items()}
        else:
            found[key] = value
    return found


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested tables."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        *path, last = key.split(".")
        section = found
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    return found


def command(*words: object) -> str:
    """What `sim WORDS` prints; AssertionError where it could not (1 is an answer too: something is out of bounds)."""
    printed, before, code = io.StringIO(), sys.argv, None
    sys.argv = ["sim", *map(str, words)]
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()) as said:
            try:
                main()
            except SystemExit as end:
                code = end.code
    finally:
        sys.argv = before
    assert code in (None, 0, 1), f"sim {' '.join(map(str, words))}: exit code {code}: {said.getvalue()}"
    return printed.getvalue()


@contextlib.contextmanager
def _files(*scenarios: Mapping[str, Any]) -> Iterator[list[Path]]:
    """Scenario files, in a folder where results may be put beside them."""
    with tempfile.TemporaryDirectory() as folder:
        found = [Path(folder) / f"{'abc'[at]}.toml" for at in range(len(scenarios))]
        for path, one in zip(found, scenarios, strict=True):
            path.write_text(tomli_w.dumps(nested(one)))
        yield found


def _without_speed(summary: Mapping[str, Any]) -> dict[str, Any]:
    left_out = ("simulator", *DERIVED)
    return _without_version({key: value for key, value in summary.items() if key not in left_out})


def _run(settings: dict[str, Any]) -> Outcome:
    found, result = Outcome(), api.run(**settings)
    found.scenario = flat(dataclasses.asdict(result.scenario))
    summary = _without_speed(result.summary)
    # What was run stands in the settings already.
    summary["inputs"] = "\n".join(f"{key}={value}" for key, value in summary["inputs"].items())
    found.tree("summary", summary)
    found.table("requests", result.requests)
    found.table("steps", result.steps)
    if len(result.preempted):
        found.table("preempted", result.preempted)
    gap_s, counts = result.itl
    ends = [float(one.sum()) for one in result.step_end_s]
    gaps = {"count": int(counts.sum()), "sum_s": float((gap_s * counts).sum())}
    found.tree("clock", {"gaps": gaps, "steps": sum(map(len, result.step_end_s)), "end_s": ends})
    return found


def _live(settings: dict[str, Any]) -> Outcome:
    """Tokens and decisions of a real model; no time that was measured."""
    found, result = Outcome(), api.run(**settings)
    found.scenario = flat(dataclasses.asdict(result.scenario))
    found.table("tokens", result.tokens)
    found.table("requests", result.requests.drop(columns=list(MEASURED)))
    steps = result.steps
    found.table("steps", steps.drop(columns=[name for name in steps if name.endswith("_s")]))
    kept = ("requests", "computed", "speculation", "inputs")
    summary = {key: value for key, value in _without_speed(result.summary).items() if key in kept}
    if "speculation" in summary:
        del summary["speculation"]["drafting_share"]
    summary["inputs"] = {key: summary["inputs"][key] for key in ("executor", "model", "trace", "policy", "allocator")}
    found.tree("summary", summary)
    return found


def _written(settings: dict[str, Any]) -> Outcome:
    """What `sim run --out` writes and prints."""
    found = Outcome()
    with _files(settings) as (path,):
        out = path.parent / "out"
        text = command("run", path, "--out", out, "--quiet", "--perfetto", "--trace-window", "0:1000")
        for one in sorted(out.glob("*.parquet")):
            found.table(one.stem, pd.read_parquet(one))
        found.tree("summary.json", _without_speed(json.loads((out / "summary.json").read_text())))
        events = json.loads((out / "trace.perfetto.json").read_text())["traceEvents"]
        found.tree("perfetto", {"events": len(events), "text": prints.of_text(json.dumps(events))})
        found.tree("files", sorted(one.name for one in out.iterdir()))
        found.page(out / "report.html")
        again = command("report", out, "--json")
        kept = json.loads((out / "summary.json").read_text())
        kept.pop("run_id")
        found.tree("report", {"as printed": json.loads(again) == kept})
        found.tree("printed", prints.lines_of(text + command("run", path, "--quiet"), _SPEED))
    return found


def _compared(settings: dict[str, Any]) -> Outcome:
    """Scenarios side by side, as text and as JSON; the setting `compare` lists what each has of its own."""
    found, variants = Outcome(), settings.pop("compare")
    with _files(*({**settings, **one} for one in variants)) as paths:
        words = ("compare", *paths, "--quiet")
        found.tree("printed", prints.lines_of(command(*words), _SPEED))
        document = json.loads(command(*words, "--json", "--out", paths[0].parent / "out"))
        found.page(paths[0].parent / "out" / "compare.html")
    for at, (name, summary) in enumerate(document.items()):
        found.tree(f"summary {at}", {"name": Path(name).name, **_without_speed(summary)})
    return found


def _swept(settings: dict[str, Any]) -> Outcome:
    found = Outcome()
    settings.pop("executor")  # of a sweep this is where points run
    with tempfile.TemporaryDirectory() as folder:
        table = api.sweep(workers=1, out=folder, **settings)
        found.table("sweep", table.drop(columns="inputs.version"))
        found.tree("printed", prints.lines_of(command("report", folder), _SPEED))
        found.page(Path(folder) / "report.html")
    return found


def _planned(settings: dict[str, Any]) -> Outcome:
    """The capacity of a configuration."""
    found = Outcome()
    found.tree("plan", _without_version(api.plan(workers=1, **settings)))
    return found


def _chosen(settings: dict[str, Any]) -> Outcome:
    """The cheapest fleet, by the command line."""
    found = Outcome()
    options = ("--precision", settings.pop("precision"), "--requests", settings.pop("requests"), "--workers", 1)
    axes = {
        key: settings.pop(key) for key in [key for key, value in settings.items() if isinstance(value, list) and value]
    }
    words = [word for key, values in axes.items() for word in ("--set", f"{key}={','.join(map(str, values))}")]
    with _files(settings) as (path,):
        out = path.parent / "out"
        text = command("plan", path, *options, *words, "--out", out, "--quiet")
        found.tree("printed", prints.lines_of(text, _SPEED))
        found.tree("plan.json", _without_version(json.loads((out / "plan.json").read_text())))
        found.page(out / "report.html")
    return found


def _without_version(document: Mapping[str, Any]) -> dict[str, Any]:
    """Without what changes with the product's own files, or with a float's last bit."""
    kept = {key: value for key, value in document.items() if key not in ("run_id", "made_of")}
    if "inputs" in kept:
        kept["inputs"] = {key: value for key, value in kept["inputs"].items() if key != "version"}
    return kept


def _recorded_page(settings: dict[str, Any]) -> Outcome:
    """What a validation prints, and its page."""
    found = Outcome()
    with tempfile.TemporaryDirectory() as folder:
        text = command("validate", "--recorded", settings["recorded"], "--quiet", "--out", Path(folder) / "out")
        found.tree("printed", prints.lines_of(text, _SPEED))
        found.page(next((Path(folder) / "out").glob("*.html")))
    return found


def _recorded(settings: dict[str, Any]) -> Outcome:
    """Live runs that were recorded, computed again."""
    found = Outcome()
    words = ("validate", "--recorded", settings["recorded"], "--quiet")
    document = json.loads(command(*words, "--json"))
    found.tree("twin", document["twin"])
    for name, one in document["records"].items():
        told = {key: value for key, value in one.items() if key != "inputs"}
        errors = {key: one["requests"][key]["p50"]["error"] for key in ("ttft_s", "tpot_s", "e2e_s")}
        some = {"twin": one["twin"], "steps": one["steps"]["all"], "error": errors, "good": one["verdict"]["good"]}
        found.tree(name, {**some, "whole": prints.of_text(json.dumps(told))})
    return found


def _schedules(settings: dict[str, Any]) -> Outcome:
    """Schedules of vLLM's own scheduler: is each the same, and how long is it?"""
    found = Outcome()
    document = json.loads(command("validate", "--schedules", SCHEDULES, "--json", "--quiet"))
    found.table("schedules", pd.DataFrame(document["schedules"])[["name", "status", "steps"]])
    return found


KINDS: dict[str, Callable[[dict[str, Any]], Outcome]] = {
    "run": _run,
    "live": _live,
    "written": _written,
    "compared": _compared,
    "swept": _swept,
    "planned": _planned,
    "chosen": _chosen,
    "recorded": _recorded,
    "page": _recorded_page,
    "schedules": _schedules,
}
