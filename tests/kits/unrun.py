"""`python tests/kits/unrun.py [argument of pytest ...]`: lines of backend/ and calibrate/ that these tests ran nowhere.

Child processes count, but for those that are killed. What Triton compiles is no line of Python and is left out: the
interpreter and the compiler in tests run those. `tests/data/unrun.txt` says by function why some run nowhere. Exit code
1 where a line runs nowhere and nothing there says why, or where something there is run by now. All rehearsals belong to
it: `-m "rehearsal or not rehearsal" tests/backend tests/calibrate`, which is what no arguments are.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("backend", "calibrate")
REASONS = ROOT / "tests" / "data" / "unrun.txt"
ALL = ("-m", "rehearsal or not rehearsal", "tests/backend", "tests/calibrate")
WATCHER = """
import atexit, json, os, sys, threading
ran = set()
roots = tuple(json.loads(os.environ["UNRUN_ROOTS"]))
def line(code, number):
    if code.co_filename.startswith(roots):
        ran.add((code.co_filename, number))
    return sys.monitoring.DISABLE
def within(frame, event, _):
    ran.add((frame.f_code.co_filename, frame.f_lineno))
    return within
def entered(frame, *_):
    return within(frame, "call", None) if frame.f_code.co_filename.startswith(roots) else None
if sys.version_info < (3, 12):
    threading.settrace(entered)
    sys.settrace(entered)
else:
    tool = sys.monitoring.COVERAGE_ID
    sys.monitoring.use_tool_id(tool, "unrun")
    sys.monitoring.register_callback(tool, sys.monitoring.events.LINE, line)
    sys.monitoring.set_events(tool, sys.monitoring.events.LINE)
@atexit.register
def write():
    with open(os.path.join(os.environ["UNRUN_FOLDER"], f"{os.getpid()}.json"), "w") as file:
        json.dump(sorted(ran), file)
"""


def ran(arguments: list[str]) -> tuple[int, set[tuple[str, int]]]:
    """(pytest's status, lines that ran) of the tests, each file in this one process and its children."""
    with TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(WATCHER)
        paths = [folder, str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "UNRUN_FOLDER": folder,
            "UNRUN_ROOTS": json.dumps([f"{ROOT / name}{os.sep}" for name in PACKAGES]),
        }
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n", "0", *arguments], cwd=ROOT, env=environment, check=False
        )
        told = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    return done.returncode, {(file, number) for each in told for file, number in each}


def lines(path: Path) -> dict[int, str]:
    """By each line of a file that runs the function that it is in, without the bodies of kernels and what says nothing
    but a contract."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    left_out = [
        range(node.body[0].lineno, (node.end_lineno or 0) + 1)
        for node in ast.walk(tree)
        if (isinstance(node, ast.FunctionDef) and (_is_kernel(node) or _is_contract(node)))
        or (isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"))
    ]

    def codes(code: CodeType) -> Iterator[CodeType]:
        yield code
        for one in code.co_consts:
            if isinstance(one, CodeType):
                yield from codes(one)

    found: dict[int, str] = {}
    for code in codes(compile(text, str(path), "exec")):
        name = code.co_qualname.replace(".<locals>", "")
        numbers = {number for *_, number in code.co_lines() if number}
        # A function's own first line is where it is called, and that of its making belongs to what is around it.
        found |= {number: name for number in numbers if number != code.co_firstlineno or number not in found}
    return {number: name for number, name in found.items() if not any(number in one for one in left_out)}


def _is_kernel(node: ast.FunctionDef) -> bool:
    return any("triton.jit" in ast.unparse(one) for one in node.decorator_list)


def _is_contract(node: ast.FunctionDef) -> bool:
    return all(isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) for one in node.body)


def unrun(done: set[tuple[str, int]]) -> dict[tuple[str, str], set[int]]:
    """Lines that are not among those done, by (file, function)."""
    missing: dict[tuple[str, str], set[int]] = {}
    for path in sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py")):
        ran_here = {number for file, number in done if file == str(path)}
        for number, function in lines(path).items():
            if number not in ran_here:
                missing.setdefault((path.relative_to(ROOT).as_posix(), function), set()).add(number)
    return missing


def reasons(text: str) -> dict[tuple[str, str], str]:
    """(file, pattern of functions): why; lines "file: pattern, pattern: why"."""
    told = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            file, patterns, why = line.split(": ", 2)
            told.update({(file, pattern.strip()): why for pattern in patterns.split(",")})
    return told


def judged(
    missing: Mapping[tuple[str, str], set[int]], told: Mapping[tuple[str, str], str]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(functions of which a line runs nowhere and nothing says why, reasons for what is run)."""

    def fits(what: tuple[str, str], reason: tuple[str, str]) -> bool:
        return what[0] == reason[0] and fnmatchcase(what[1], reason[1])

    without = [what for what in missing if not any(fits(what, one) for one in told)]
    return without, [one for one in told if not any(fits(what, one) for what in missing)]


def ranges(numbers: set[int]) -> str:
    """ "3-5, 9" of 3, 4, 5 and 9."""
    listed = sorted(numbers)
    starts = [listed[0], *(after for before, after in pairwise(listed) if after > before + 1)]
    ends = [*(before for before, after in pairwise(listed) if after > before + 1), listed[-1]]
    return ", ".join(f"{start}-{end}" if end > start else str(start) for start, end in zip(starts, ends, strict=True))


def main() -> int:
    status, done = ran(sys.argv[1:] or list(ALL))
    missing = unrun(done)
    without, stale = judged(missing, reasons(REASONS.read_text(encoding="utf-8")))
    for file, function in without:
        sys.stdout.write(f"{file}: {function}: {ranges(missing[file, function])}\n")
    for file, pattern in stale:
        sys.stdout.write(f"{REASONS.name}: {file}: {pattern} is run by now\n")
    counted = sum(map(len, missing.values()))
    sys.stdout.write(f"{counted} lines of {len(missing)} functions run nowhere, {len(without)} without a reason\n")
    return status or int(bool(without or stale))


if __name__ == "__main__":
    sys.exit(main())
