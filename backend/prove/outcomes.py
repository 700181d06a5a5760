"""What each stage left behind, read into the summary: ceilings, operations, bars, errors, tests. It runs nothing.

A stage may have been killed at any moment: what cannot be read yet is not there.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

Document = dict[str, Any]

NOT_MEASURED = "not measured"
_STATE = "(?P<state>PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)"
_ENDED = (
    re.compile(rf"\[gw\d+\] +\[ *\d+%\] +{_STATE} +(?P<test>\S+\.py::.+?)\s*$"),
    re.compile(rf"(?P<test>\S+\.py::.+?) +{_STATE}\b"),
    re.compile(r"(?P<state>ERROR) (?P<test>\S+\.py)(?: - |$)"),
)
"""How pytest tells the end of a test with xdist and without, and a file that cannot be collected."""


def read_json(path: Path) -> Document | None:
    """A JSON object; None where it is not there, or not whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def merged(documents: Sequence[Document]) -> Document | None:
    """Several benchmark files as one: rows of all, each bar from where it was measured; None without any."""
    if not documents:
        return None
    first = documents[0]
    bars: dict[str, Any] = {}
    for document in documents:
        for bar in document["bars"]:
            known = bars.get(bar["name"])
            if known is None or (known["state"] == NOT_MEASURED and bar["state"] != NOT_MEASURED):
                bars[bar["name"]] = bar
    whole: Document = {**first, "bars": list(bars.values()), "rows": [], "cliffs": {}, "unfinished": {}, "clocks": {}}
    for document in documents:
        whole["rows"] += document["rows"]
        for key in ("cliffs", "unfinished", "clocks"):
            whole[key] |= document[key]
    whole["seconds"] = sum(document["seconds"] for document in documents)
    whole["finished"] = all(document["finished"] for document in documents)
    return whole


def prepare(work: Path) -> Document:
    return read_json(work / "prepare.json") or {}


def smoke(work: Path) -> Document:
    """Counts by state, and each operation's line."""
    found = read_json(work / "smoke.json") or {}
    lines = found.get("operations", [])
    return {"counts": dict(Counter(line["state"] for line in lines)), "operations": lines}


def bench_in(name: str) -> Callable[[Path], Document]:
    """How many rows a benchmark's file has, by state, its bars that were measured, and what did not run."""

    def read(work: Path) -> Document:
        found = read_json(work / name)
        if found is None:
            return {}
        rows = dict(Counter(row["state"] for row in found["rows"]))
        failed = [f"{row['case']}, {row['contender']}: {row['reason']}" for row in found["rows"]
                  if row["state"] == "failed" and row["ours"]]  # fmt: skip
        return {"rows": rows, "failed_of_ours": failed, "unfinished": found["unfinished"]}

    return read


def calibrate(work: Path) -> Document:
    """The errors that the profile tells of itself, as `calibrate --json` prints them; of a cut run what it had."""
    found = _last_object(work / "calibrate.stdout") or {}
    journal = work / "profile.journal.jsonl"
    entries = journal.read_bytes().count(b"\n") - 1 if journal.is_file() else 0
    return {"journal_entries": max(entries, 0), "profile": (work / "profile").is_dir(), **found}


def validate(work: Path) -> Document:
    """Verdict, twin check, and errors of steps and requests of the validation's document."""
    found = _last_object(work / "validate.stdout") or read_json(work / "validate" / "validate.json")
    if not found:
        return {}
    requests = {
        name: {key: value.get("error") for key, value in rows.items() if isinstance(value, Mapping)}
        for name, rows in found["requests"].items()
        if name in ("ttft_s", "tpot_s", "e2e_s", "throughput") and isinstance(rows, Mapping)
    }
    steps = {"all": found["steps"]["all"], **found["steps"]["by_kind"]}
    model = found["steps"].get("model")
    return {"verdict": found["verdict"], "twin": found["twin"], "steps": steps, "requests": requests, "model": model}


def tests(work: Path) -> Document:
    """Counts of the tests that ended so far, as pytest printed them, and who failed, with the JUnit file's reasons.

    The file alone would not do: where a run is interrupted it holds the tests under way, too.
    """
    try:
        lines = (work / "tests.stdout").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    ended = (match for line in lines for form in _ENDED if (match := form.match(line)))
    states: dict[str, str] = {}
    for one in ended:
        states.setdefault(one["test"], one["state"])
    if not states:
        return {}
    reasons = _reasons(work / "tests.xml")
    failed = [test for test, state in states.items() if state in ("FAILED", "ERROR")]
    skipped = sum(state == "SKIPPED" for state in states.values())
    counts = {"passed": len(states) - len(failed) - skipped, "failed": len(failed), "skipped": skipped}
    return {"counts": counts, "failed": [f"{test}: {reasons.get(test.rpartition('::')[2], '')}" for test in failed]}


def _reasons(path: Path) -> dict[str, str]:
    """The first lines of what failed, by the test's own name; empty where the file is not there."""
    try:
        suites = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return {}
    found: dict[str, str] = {}
    for case in suites.iter("testcase"):
        for problem in (*case.iter("failure"), *case.iter("error")):
            first = (problem.get("message") or "").strip().partition("\n")[0]
            found.setdefault(str(case.get("name")), first[:200])
    return found


def _last_object(path: Path) -> Document | None:
    """The JSON object that a command printed; None where there is none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    start = text.find("{")
    if start < 0:
        return None
    try:
        found, _ = json.JSONDecoder().raw_decode(text[start:])
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


READERS: Mapping[str, Callable[[Path], Document]] = {
    "prepare": prepare,
    "smoke": smoke,
    "bench": bench_in("bench.json"),
    "calibrate": calibrate,
    "fit": lambda work: _last_object(work / "fit.stdout") or {},
    "validate": validate,
    "tests": tests,
    "cliffs": bench_in("cliffs.json"),
    "generate": bench_in("generate.json"),
    "rest": bench_in("rest.json"),
}
"""By stage."""
