"""`python tests/kits/unrun.py [--kept FOLDER] [file of tests ...]`: lines of backend/ and calibrate/ that no test ran.

Child processes count, but for those that are killed. What Triton compiles is no line of Python and is left out
(pyproject.toml, `tool.coverage`): the interpreter and the compiler in tests run those. `tests/data/unrun.txt` says by
function why some run nowhere. Exit code 1 where a line runs nowhere and nothing there says why, where something there
is run by now, or where tests failed. No files are all of both packages, rehearsals too. With --kept what each file of
tests ran is kept, and used where neither it nor the packages nor what tests share has changed since.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
REASONS = ROOT / "tests" / "data" / "unrun.txt"
TESTED = ("tests/backend", "tests/calibrate")
DECIDE = ("backend", "calibrate", "tests/kits")
"""Folders whose files say, with a file of tests, what that runs."""
COVERAGE = [sys.executable, "-m", "coverage"]


def state(test: Path) -> str:
    """A digest of a file of tests and of what decides which lines it runs."""
    digest = hashlib.sha256()
    for path in [test, *sorted(path for name in DECIDE for path in (ROOT / name).rglob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def environment(data: Path) -> dict[str, str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": paths, "COVERAGE_FILE": str(data)}


def ran(test: Path, folder: Path) -> bool:
    """Whether the tests of a file pass; what they ran of the packages is in the folder's .coverage file then."""
    data = folder / f"{test.stem}-{state(test)}.coverage"
    if data.exists():
        return True
    with TemporaryDirectory(dir=folder) as parts:
        whole = Path(parts, ".coverage")
        tests = ["pytest", "-q", "-n", "0", "-m", "rehearsal or not rehearsal", str(test)]
        done = subprocess.run([*COVERAGE, "run", "-m", *tests], cwd=ROOT, env=environment(whole), check=False)
        if done.returncode:
            return False
        subprocess.run([*COVERAGE, "combine", "-q", parts], cwd=ROOT, env=environment(whole), check=True)
        whole.rename(data)
    return True


def functions(kept: Iterable[Path], folder: Path) -> dict[tuple[str, str], tuple[int, list[int]]]:
    """(lines that ran, numbers of those that did not) by (file, function) of both packages, "" for what is in none."""
    whole, told = folder / "whole", folder / "told.json"
    for command in (["combine", "-q", "--keep", *map(str, kept)], ["json", "-q", "-o", str(told)]):
        subprocess.run([*COVERAGE, *command], cwd=ROOT, env=environment(whole), check=True)
    files: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))["files"]
    return {
        (file, name): (len(one["executed_lines"]), one["missing_lines"])
        for file, all_of in files.items()
        for name, one in all_of["functions"].items()
    }


def reasons(text: str) -> dict[tuple[str, str], str]:
    """(file, pattern of functions): why; lines "file: pattern, pattern: why"."""
    told = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            file, patterns, why = line.split(": ", 2)
            told.update({(file, pattern.strip()): why for pattern in patterns.split(",")})
    return told


def judged(
    missing: Mapping[tuple[str, str], list[int]], told: Mapping[tuple[str, str], str]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(functions of which a line runs nowhere and nothing says why, reasons for what is run)."""

    def fits(what: tuple[str, str], reason: tuple[str, str]) -> bool:
        return what[0] == reason[0] and fnmatchcase(what[1], reason[1])

    without = [what for what in missing if not any(fits(what, one) for one in told)]
    return without, [one for one in told if not any(fits(what, one) for what in missing)]


def report(found: Mapping[tuple[str, str], tuple[int, list[int]]]) -> bool:
    """Prints what runs nowhere without a reason, and what has one and runs; whether there is neither."""
    missing = {what: lines for what, (_, lines) in found.items() if lines}
    without, stale = judged(missing, reasons(REASONS.read_text(encoding="utf-8")))
    for file, function in without:
        sys.stdout.write(f"{file}: {function}: {', '.join(map(str, missing[file, function]))}\n")
    for file, pattern in stale:
        sys.stdout.write(f"{REASONS.name}: {file}: {pattern} is run by now\n")
    runs, rest = sum(count for count, _ in found.values()), sum(map(len, missing.values()))
    unsaid = sum(len(missing[what]) for what in without)
    sys.stdout.write(
        f"{runs} lines run, {rest} in {len(missing)} functions run nowhere, {unsaid} of them without a reason\n"
    )
    return not without and not stale


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", type=Path, metavar="FOLDER")
    parser.add_argument("tests", nargs="*", type=Path, metavar="file of tests")
    asked = parser.parse_args()
    tests = [path.resolve() for path in asked.tests]
    tests = tests or sorted(path for folder in TESTED for path in (ROOT / folder).rglob("test_*.py"))
    with TemporaryDirectory() as scratch:
        folder = (asked.kept or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        failed = [test for test in tests if not ran(test, folder)]
        kept = [folder / f"{test.stem}-{state(test)}.coverage" for test in tests if test not in failed]
        good = report(functions(kept, Path(scratch))) if kept else False
    for test in failed:
        sys.stdout.write(f"{test.relative_to(ROOT)} failed, and what it runs is not counted\n")
    return int(bool(failed) or not good)


if __name__ == "__main__":
    sys.exit(main())
