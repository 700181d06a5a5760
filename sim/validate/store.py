"""Keeps the records of live runs in a folder, and reads them back: Parquet, a few bytes for each step.

`scenario.toml`, `about.json`, `trace.parquet`, and of live run N `live-N.steps.parquet` (a row for each step: the
columns of docs/metrics.md, the batch, its seconds) and `live-N.runs.parquet`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sim import scenario
from sim.engine.batch import Outcome, Shape
from sim.results import files, run_id
from sim.results.kv import with_kv_means
from sim.results.steps import EARLIER_STEP_COLUMNS
from sim.results.transaction import settle
from sim.validate.live import LiveRuns
from sim.validate.record import Decision, Record
from sim.validate.terms import TERMS
from traces import documents
from traces import files as inputs
from traces.late import pd
from traces.schema import InputError, Trace

SCHEMA = 2
ABOUT = "about.json"
PAGES = ("validate.json", "validate.html", "trace.perfetto.json")
"""What is made of the records, and stands beside them."""
LIVE = re.compile(r"live-\d+\.(steps|runs|arrivals)\.parquet")
RUNS = ("sequence", "first_step", "last_step")
LISTS = ("entries", "joined", "left", "tables", "evicted", "copies", "swaps", "sampled", "accepted", "first",
         "finished")  # fmt: skip
"""The parts of a decision that are lists: each is kept as JSON, which Parquet packs better than nested columns."""
EXTRA = ("planned_s", "shape", "seconds", "device_seconds", "host_seconds", "drafting_seconds", "right_drafts",
         "found_drafts", *LISTS)  # fmt: skip
TIMED = {f"{term}_seconds": term for term in TERMS}
"""Columns that are there where operations were timed."""


def mark_of(live: LiveRuns) -> str:
    """The id of records: every file of their folder has it, the pages made of them too."""
    record_tables = [
        table
        for record in live.records
        for table in (_step_table(record), _runs(record), pd.DataFrame({"s": record.arrival_s}))
    ]
    facts = {"about": live.about, "died": [record.died for record in live.records]}
    return run_id.digest(scenario.dump(live.scenario), json.dumps(facts), live.trace.requests, *record_tables)


def writers(live: LiveRuns, mark: str) -> dict[str, files.Writer]:
    """The files of a folder of records, by name (`sim.results.files.write_files`), with this id."""
    about = {
        "schema": SCHEMA,
        "lives": len(live.records),
        "died": [record.died for record in live.records],
        "same_step": [record.same_step for record in live.records],
        "inputs": live.about,
        "trace": {"name": live.trace.name, "kind": live.trace.kind, "synthetic": live.trace.synthetic},
    }
    by_name = {
        "scenario.toml": run_id.toml(scenario.dump(live.scenario), mark),
        ABOUT: run_id.document(about, mark),
        "trace.parquet": run_id.table(live.trace.requests, mark),
    }
    for number, record in enumerate(live.records):
        by_name[f"live-{number}.steps.parquet"] = _compact(_step_table(record), mark)
        by_name[f"live-{number}.runs.parquet"] = _compact(_runs(record), mark)
        came = pd.DataFrame({"arrival_s": record.arrival_s})
        by_name[f"live-{number}.arrivals.parquet"] = _compact(came, mark)
    return by_name


def _runs(record: Record) -> pd.DataFrame:
    return pd.DataFrame(record.runs, columns=list(RUNS))


def _compact(frame: pd.DataFrame, mark: str) -> files.Writer:
    """As `files.parquet`, smaller for a few hundred rows: no statistics and no dictionaries."""
    return run_id.table(frame, mark, use_dictionary=False, write_statistics=False)


def names(folder: Path) -> list[str]:
    """The files of the records in a folder; none where it holds none."""
    if not (folder / ABOUT).exists():
        return []
    live = sorted(path.name for path in folder.glob("live-*.parquet") if LIVE.fullmatch(path.name))
    return [name for name in (ABOUT, "scenario.toml", "trace.parquet", *live) if (folder / name).exists()]


def folders(folder: Path) -> list[Path]:
    """The folders of records within one that holds none itself, by name."""
    settle(folder)
    if inputs.exists(folder / ABOUT) or not inputs.is_dir(folder):
        return []
    return sorted(path.parent for path in folder.glob("*/about.json"))


def read(folder: Path, *, allow_code: bool = False) -> LiveRuns:
    """What `writers` wrote; `allow_code` as for `sim.scenario.read`.

    Raises:
        InputError: a file is missing or is not what it should be, clocks run backwards in it, or two files are of
            different records.
    """
    settle(folder)
    about = _about(folder)
    run_scenario = scenario.build(scenario.read(folder / "scenario.toml", allow_code=allow_code), {})
    requests = files.read_parquet(folder / "trace.parquet")
    for name in ("prefix_blocks", "prefix_starts", "token_ids", "output_token_ids"):
        if name in requests:
            requests[name] = pd.Series([np.asarray(ids) for ids in requests[name]], dtype=object)
    facts = about["trace"]
    trace = Trace(requests, facts["name"], facts["kind"], facts["synthetic"])
    ends = enumerate(zip(about["died"], about["same_step"], strict=True))
    records = tuple(_record(folder, number, requests, died, same_step) for number, (died, same_step) in ends)
    run_id.check_one(folder, [*names(folder), *PAGES])
    return LiveRuns(run_scenario, trace, records, about["inputs"])


def _about(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT
    try:
        about = documents.json_file(path, inputs.MAX_RESULT_BYTES)
        schema, _ = about["schema"], (about["died"], about["same_step"], about["inputs"], about["trace"]["name"])
    except (InputError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: no records of live runs here (about.json: {error})") from None
    if schema != SCHEMA:
        raise InputError(f"{path}: records of schema {schema}, and this version reads schema {SCHEMA}")
    return about  # type: ignore[no-any-return]


def _step_table(record: Record) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "planned_s": [decision.planned_s for decision in record.decisions],
        "shape": [json.dumps(shape) for shape in record.shapes],
        "seconds": [outcome.seconds[0] for outcome in record.results],
        "device_seconds": [outcome.device_s[0] for outcome in record.results],
        "host_seconds": [outcome.host_s for outcome in record.results],
        "drafting_seconds": [outcome.drafting_s for outcome in record.results],
        "right_drafts": [json.dumps(outcome.accepted) for outcome in record.results],
        "found_drafts": [json.dumps(outcome.proposed) for outcome in record.results],
    }
    for name in LISTS:
        columns[name] = [json.dumps(getattr(decision, name), separators=(",", ":")) for decision in record.decisions]
    if record.terms:
        for name, term in TIMED.items():
            columns[name] = np.array([terms.get(term, 0.0) for terms in record.terms], np.float32)
    return record.steps.assign(**columns)


def _record(folder: Path, number: int, requests: pd.DataFrame, died: str, same_step: int) -> Record:
    path = folder / f"live-{number}.steps.parquet"
    table = with_kv_means(files.read_parquet(path, (*EXTRA, *EARLIER_STEP_COLUMNS)), path)
    _check(table, path)
    arrival_s = files.read_parquet(folder / f"live-{number}.arrivals.parquet", ("arrival_s",))["arrival_s"].to_numpy(
        np.float64
    )
    if len(arrival_s) != len(requests):
        raise InputError(f"{folder}: live run {number} had {len(arrival_s)} requests, and the trace {len(requests)}")
    runs = files.read_parquet(folder / f"live-{number}.runs.parquet", RUNS)[list(RUNS)].to_numpy(np.int64)
    if len(runs) and (last := int(runs[:, 2].max())) >= len(table):
        if not died:
            raise InputError(
                f"{path}: it ends with step {len(table) - 1}, and a token came in step {last}: rows are missing"
            )
        runs = runs[runs[:, 2] < len(table)]
    try:
        shapes = [_shape(documents.loads(text)) for text in table["shape"]]
        decisions = list(_decisions(table))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: not a record of decisions: {error}") from None
    results = list(_results(table))
    timed = table[[name for name in TIMED if name in table]].rename(columns=TIMED)
    terms: Any = timed.astype(np.float64).to_dict("records") if len(timed.columns) else ()
    steps = table.drop(columns=[*EXTRA, *(name for name in TIMED if name in table)])
    return Record(requests, arrival_s, steps, decisions, shapes, results, runs, same_step, died, terms)


def _results(table: pd.DataFrame) -> Iterator[Outcome]:
    seconds = (table[name].tolist() for name in ("seconds", "device_seconds", "host_seconds", "drafting_seconds"))
    drafts = (map(documents.loads, table[name]) for name in ("right_drafts", "found_drafts"))
    for all_s, device_s, host_s, drafting_s, right, found in zip(*seconds, *drafts, strict=True):
        yield Outcome([all_s], [device_s], host_s, right, proposed=found, drafting_s=drafting_s)


def _check(table: pd.DataFrame, path: Path) -> None:
    for row, (seconds, start_s, end_s, step) in enumerate(
        zip(*(table[name].tolist() for name in ("seconds", "start_s", "end_s", "step")), strict=True)
    ):
        if not seconds >= 0 or end_s < start_s:
            raise InputError(f"{path}: the clock runs backwards in step {step}: {start_s} to {end_s} s")
        if step != row:
            raise InputError(f"{path}: row {row} is step {step}; steps are missing")


def _decisions(table: pd.DataFrame) -> Iterator[Decision]:
    lists = (map(documents.loads, table[name]) for name in LISTS)
    for step, repeats, planned_s, *parts in zip(
        *(table[name].tolist() for name in ("step", "repeats", "planned_s")), *lists, strict=True
    ):
        named = {name: _frozen(part) for name, part in zip(LISTS, parts, strict=True)}
        yield Decision(step, repeats, planned_s, **named)


def _shape(fields: list[Any]) -> Shape:
    """A step's shape; records of earlier versions tell the rows that verify drafts one by one, as (tokens, past)."""
    shape = Shape(*map(_frozen, fields))
    if any(len(group) == 2 for group in shape.verifies):
        shape = shape._replace(verifies=tuple((tokens, 1, past, 0) for tokens, past in shape.verifies))  # type: ignore[misc]
    return shape


def _frozen(value: Any) -> Any:
    freeze: Callable[[Any], Any] = _frozen
    return tuple(map(freeze, value)) if isinstance(value, list) else value
