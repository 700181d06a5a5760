"""What a results folder holds, and taking one for a result before anything takes its time. It draws no page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sim.results import files, run_id
from sim.results.tables import RUN_FILES, SUMMARY, SUMMARY_KEYS
from sim.results.transaction import Claim, settle
from traces import files as inputs
from traces.schema import InputError

PAGE, PLAN, ANSWERS = "report.html", "plan.json", "answers.parquet"
KINDS = {SUMMARY: "run", "sweep.toml": "sweep", PLAN: "plan", "about.json": "validation", "validate.json": "validation"}
"""By the file that it is known by, what a folder holds."""


FILES = {
    "run": RUN_FILES,
    "sweep": ("sweep.toml", "sweep.parquet", PAGE),
    "plan": (PLAN, PAGE),
    "validation": ("about.json", "scenario.toml", "trace.parquet", "validate.json", "validate.html",
                   "trace.perfetto.json"),
}  # fmt: skip
"""By kind, the names that it writes."""
COMPARISON = ("compare.json", "compare.html", "compare.parquet")
BESIDE = {"comparison": COMPARISON, "claims": ("claims.json", "claims.html")}
"""What may lie beside a result of another kind, since none of its names is that result's."""


def held(folder: Path) -> list[str]:
    """What a folder holds, of `KINDS`; what a killed command left in it is put right first. Raises InputError."""
    settle(folder)
    return list(dict.fromkeys(kind for name, kind in KINDS.items() if inputs.exists(folder / name)))


def check_free(folder: Path, kind: str) -> None:
    """Refuse a folder that holds a result of another kind, whose page would be lost, or files of the user's own.

    Raises InputError.
    """
    for other in held(folder):
        if other != kind:
            raise InputError(f"{folder} holds a {other}; give another --out, or delete that folder")
    if kind not in held(folder) or (kind == "run" and not _is_summary(folder / SUMMARY)):
        check_own(folder, FILES[kind])


def _is_summary(path: Path) -> bool:
    """Whether a summary.json is that of a run, of whatever version; anyone may call a file so."""
    return bool(run_id.mark_of(path)) or not set(SUMMARY_KEYS).isdisjoint(files.read_json(path))


def check_own(folder: Path, names: Iterable[str]) -> None:
    """Refuse where one of these files is there and no command wrote it (it has no run id); raises InputError."""
    for name in names:
        if (folder / name).is_file() and not run_id.mark_of(folder / name):
            raise InputError(f"{folder / name} is there and is no file of a result; move it, or give another --out")


def taken(folder: Path, kind: str) -> Claim:
    """The folder for a result of this kind, from before anything takes its time until it is written.

    Raises InputError: it holds something else, another command writes to it, or the operating system refuses.
    """
    claim = Claim(folder)
    try:
        if kind in FILES:
            check_free(folder, kind)
        elif not (folder / BESIDE[kind][0]).exists():
            check_own(folder, BESIDE[kind])
    except BaseException:
        claim.release()
        raise
    return claim
