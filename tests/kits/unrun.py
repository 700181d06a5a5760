"""`python tests/kits/unrun.py [argument of pytest ...]`: lines of backend/ and calibrate/ that these tests ran nowhere.

Child processes count, but for those that are killed. What Triton compiles is no line of Python and is left out. Needs
Python 3.12 (`sys.monitoring`) and tells it in a sentence otherwise.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("backend", "calibrate")
WATCHER = """
import atexit, json, os, sys
watch, tool, ran = sys.monitoring, sys.monitoring.COVERAGE_ID, set()
roots = tuple(json.loads(os.environ["UNRUN_ROOTS"]))
def line(code, number):
    if code.co_filename.startswith(roots):
        ran.add((code.co_filename, number))
    return watch.DISABLE
watch.use_tool_id(tool, "unrun")
watch.register_callback(tool, watch.events.LINE, line)
watch.set_events(tool, watch.events.LINE)
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


def lines(path: Path) -> set[int]:
    """Lines of a file that run, without the bodies of kernels."""
    text = path.read_text(encoding="utf-8")
    kernels = [
        range(node.body[0].lineno, (node.end_lineno or 0) + 1)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and any("triton.jit" in ast.unparse(one) for one in node.decorator_list)
    ]

    def codes(code: CodeType) -> Iterator[CodeType]:
        yield code
        for one in code.co_consts:
            if isinstance(one, CodeType):
                yield from codes(one)

    found = {number for code in codes(compile(text, str(path), "exec")) for *_, number in code.co_lines() if number}
    return {number for number in found if not any(number in kernel for kernel in kernels)}


def ranges(numbers: set[int]) -> str:
    """ "3-5, 9" of 3, 4, 5 and 9."""
    listed = sorted(numbers)
    starts = [listed[0], *(after for before, after in pairwise(listed) if after > before + 1)]
    ends = [*(before for before, after in pairwise(listed) if after > before + 1), listed[-1]]
    return ", ".join(f"{start}-{end}" if end > start else str(start) for start, end in zip(starts, ends, strict=True))


def main() -> int:
    if sys.version_info < (3, 12):
        sys.stderr.write("unrun: needs Python 3.12 or later, which tells what ran\n")
        return 2
    status, done = ran(sys.argv[1:] or ["tests/backend", "tests/calibrate"])
    for path in sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py")):
        missing = lines(path) - {number for file, number in done if file == str(path)}
        if missing:
            sys.stdout.write(f"{path.relative_to(ROOT)}: {ranges(missing)}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
