"""A run's summary as a short table: stages, ceilings, operations that failed, bars, errors. It judges nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

MOST_FAILURES, MOST_NOTES = 10, 3
WIDTH = 150


def lines(summary: Mapping[str, Any]) -> list[str]:
    """About thirty lines, none longer than WIDTH: one that is cut ends in dots."""
    by_name = {stage["name"]: stage for stage in summary["stages"]}
    made = [f"{'stage':10} {'state':8} {'box s':>6} {'took s':>6}  found"]
    for stage in summary["stages"]:
        about = stage["finding"] or stage["reason"]
        found = "; ".join(part for part in (about, _found(stage)) if part)
        made.append(f"{stage['name']:10} {stage['state']:8} {stage['box_s']:6.0f} {stage['seconds']:6.1f}  {found}")
    made += _bars(summary["bars"])
    made += _calibration(by_name.get("fit", {}).get("result") or by_name.get("calibrate", {}).get("result", {}))
    made += _validation(by_name.get("validate", {}).get("result", {}))
    made += _failures(by_name)
    made += [f"left out: {name}, {why}" for name, why in summary["left_out"].items()]
    return [line if len(line) <= WIDTH else f"{line[: WIDTH - 4]} ..." for line in made]


def _found(stage: Mapping[str, Any]) -> str:
    result = stage["result"]
    return _BY_STAGE.get(stage["name"], _rows)(result) if result else ""


def _journal(result: Mapping[str, Any]) -> str:
    return f"{result['journal_entries']} entries, {'a profile' if result['profile'] else 'no profile'}"


def _rows(result: Mapping[str, Any]) -> str:
    unfinished = f"; {len(result['unfinished'])} cases unfinished" if result["unfinished"] else ""
    return f"rows: {_counted(result['rows'])}{unfinished}"


def _ceilings(result: Mapping[str, Any]) -> str:
    told = [str(result.get("device", ""))]
    if "copy_bytes_per_s" in result:
        told.append(f"copy {result['copy_bytes_per_s'] / 1e12:.3g} TB/s")
    if "matrix_flops_per_s" in result:
        told.append(f"matrices {result['matrix_flops_per_s'] / 1e12:.3g} TFLOP/s")
    packages = result.get("packages", {})
    return ", ".join([*told, f"torch {packages.get('torch')}", f"triton {packages.get('triton')}"])


def _counts(result: Mapping[str, Any]) -> str:
    return _counted(result.get("counts", {}))


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def _bars(bars: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for bar in bars:
        found = "-" if bar["found"] is None else f"{bar['found']:.4g}"
        yield f"bar {bar['name']}: asked {bar['asked']}, found {found}: {bar['state']} ({bar['why']})"


def _calibration(result: Mapping[str, Any]) -> Iterator[str]:
    for kind in ("operations", "steps"):
        errors = result.get(kind)
        if isinstance(errors, Mapping) and errors:
            each = (f"{name} {100 * one['mean']:.1f}" for name, one in errors.items() if isinstance(one, Mapping))
            yield f"profile's mean error, {kind}, %: {', '.join(each)}"

    notes = result.get("notes", ())
    yield from (f"profile: {note}" for note in notes[:MOST_NOTES])
    if len(notes) > MOST_NOTES:
        yield f"and {len(notes) - MOST_NOTES} more notes, in profile.tgz"


def _validation(result: Mapping[str, Any]) -> Iterator[str]:
    if not result:
        return
    steps = (
        f"{kind} bias {100 * one['bias']:+.1f} MAPE {100 * one['mape']:.1f}"
        for kind, one in result["steps"].items()
        if isinstance(one, Mapping) and one.get("bias") is not None
    )
    same = "identical" if result["twin"]["identical"] else "NOT identical"
    yield f"validation, steps, %: {', '.join(steps)}; decisions {same}"
    errors = (
        f"{name} {key} {100 * value:+.1f}"
        for name, rows in result["requests"].items()
        for key, value in rows.items()
        if isinstance(value, float) and key in ("p50", "p90", "p99", "output_tokens_per_s")
    )
    yield f"validation, requests, %: {', '.join(errors)}"


def _failures(by_name: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    failed = [
        f"smoke {line['name']}: {line.get('reason', '')}"
        for line in by_name.get("smoke", {}).get("result", {}).get("operations", [])
        if line["state"] == "failed"
    ]
    failed += [f"bench {line}" for line in by_name.get("bench", {}).get("result", {}).get("failed_of_ours", [])]
    failed += [f"test {line}" for line in by_name.get("tests", {}).get("result", {}).get("failed", [])]
    yield from failed[:MOST_FAILURES]
    if len(failed) > MOST_FAILURES:
        yield f"and {len(failed) - MOST_FAILURES} more failures, in summary.json"


_BY_STAGE: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "prepare": _ceilings,
    "smoke": _counts,
    "tests": _counts,
    "calibrate": _journal,
    "fit": lambda _result: "a profile",
    "validate": lambda result: str(result["verdict"]["reason"]),
}
"""What a stage's line says of its result; of the others, how many rows they have."""
