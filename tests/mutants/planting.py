"""Plants mutants in a copy of the source and asks the nearest tests. It knows no list of them."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
LIST = Path(__file__).with_name("list.txt")
KILLED, SURVIVED, BROKEN = "killed", "survived", "broken"


class Mutant(NamedTuple):
    """One mistake: `old` stands in the file once. `tests` are the nearest, the quickest to notice first."""

    name: str
    file: str
    tests: tuple[str, ...]
    old: str
    new: str


def listed(text: str) -> list[Mutant]:
    """The mutants of a list: `== file`, its tests, then of each mutant `# name`, `- old` lines and `+ new` lines.

    Raises:
        ValueError: a line that is none of these, by its number.
    """
    found: list[Mutant] = []
    file, tests = "", ()
    for number, line in enumerate(text.splitlines(), 1):
        mark, rest = line[:1], line[2:]
        if mark == "=":
            file, tests = line[3:], ()
        elif line.startswith("   ") and not tests:
            tests = tuple(line.split())
        elif mark == "#":
            found.append(Mutant(rest, file, tests, "", ""))
        elif mark == "-":
            found[-1] = found[-1]._replace(old=found[-1].old + rest + "\n")
        elif mark == "+":
            found[-1] = found[-1]._replace(new=found[-1].new + rest + "\n")
        elif line:
            raise ValueError(f"line {number} of the list of mutants is neither of =, #, - and +: {line}")
    return [one._replace(old=one.old[:-1], new=one.new[:-1]) for one in found]


def planted(mutant: Mutant, root: Path = ROOT) -> str:
    """The file's text with the mutant in it.

    Raises:
        LookupError: the list is out of date: the file is gone, or the old text is not there once.
        SyntaxError: what comes out is no Python.
    """
    path = root / mutant.file
    if not path.exists():
        raise LookupError(f"{mutant.name}: there is no {mutant.file}")
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise LookupError(f"{mutant.name}: {mutant.old!r} is {text.count(mutant.old)} times in {mutant.file}, not once")
    changed = text.replace(mutant.old, mutant.new)
    compile(changed, mutant.file, "exec")
    return changed


class Copy:
    """The checkout copied to `root`, to be spoilt."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._writes = 0

    @contextmanager
    def holding(self, mutant: Mutant) -> Iterator[None]:
        path = self.root / mutant.file
        sound = path.read_text(encoding="utf-8")
        self._write(path, planted(mutant, self.root))
        try:
            yield
        finally:
            self._write(path, sound)

    def _write(self, path: Path, text: str) -> None:
        """With a time of its own: byte code is told from older by whole seconds and the size."""
        self._writes += 1
        path.write_text(text, encoding="utf-8")
        begun_s = int(ROOT.stat().st_mtime)
        os.utime(path, (begun_s + self._writes, begun_s + self._writes))

    def verdict(self, tests: Sequence[str], limit_s: int) -> tuple[str, str]:
        """(killed, survived or broken; what pytest told last) of the copy as it is.

        Whoever computes for longer than `limit_s` hangs, and is killed; how busy the machine is does not count.
        """
        words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", "--tb=no"]
        done = subprocess.run(
            [*words, *(f"tests/{name}" for name in tests)],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(self.root)},
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s)),
        )
        if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            return KILLED, f"still computing after {limit_s} s"
        lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        told = (lines or done.stdout.splitlines() or done.stderr.splitlines() or [""])[-1]
        return {0: SURVIVED, 1: KILLED, 2: KILLED}.get(done.returncode, BROKEN), told


@contextmanager
def copied() -> Iterator[Copy]:
    """A copy of the checkout in a temporary folder, the real traces and measurements beside it as beside this one."""
    with TemporaryDirectory(prefix="mutants-") as folder:
        shutil.copytree(ROOT, Path(folder, "checkout"), ignore=LEFT_OUT)
        shared = ROOT.parent / "shared"
        if shared.is_dir():
            Path(folder, "shared").symlink_to(shared)
        yield Copy(Path(folder, "checkout"))
