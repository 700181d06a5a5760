"""The compiled build: what it is made of, how it is refused, and that its classes are asked as pure ones are.

`.ci/compiled` builds it, and runs the laws and the fingerprints on it.
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest

from sim.engine.build import COMPILED, PURE, build, edited_since
from sim.specs.traits import check_traits, declared
from traces.schema import InputError

ROOT = Path(__file__).resolve().parents[2]
GETSET = vars(int)["real"]
"""What mypyc puts into a class for an attribute of its objects."""


def asked(**environment: str) -> str:
    """What setup.py says, in its last line, where it refuses."""
    words = [sys.executable, "setup.py", "--version"]
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode
    assert "Traceback" not in done.stderr
    return done.stderr.strip()


def test_what_cannot_be_built_is_refused_in_a_sentence() -> None:
    assert asked(FORETOKEN_COMPILE="yes") == (
        "FORETOKEN_COMPILE is 'yes'; it must be 1 (compiled), or 0 or unset (pure Python)"
    )
    refused = asked(FORETOKEN_COMPILE="1", CC="no-such-compiler -O2")
    assert refused == (
        "FORETOKEN_COMPILE=1 needs a C compiler, and there is no 'no-such-compiler' here (set CC, or leave it out)"
    )


def test_it_is_made_of_files_that_are_there_with_the_pinned_mypyc(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr("setuptools.setup", lambda **settings: told.append(settings))
    monkeypatch.delenv("FORETOKEN_COMPILE", raising=False)
    made = runpy.run_path(str(ROOT / "setup.py"))
    assert told == [{}]
    assert all((ROOT / path).is_file() for path in made["COMPILED"])
    pinned = re.findall(r"^mypy==(.*)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert made["MYPYC"] == f"mypy[mypyc]=={pinned[0]}"


def test_a_run_knows_its_build() -> None:
    from sim.engine import engine

    assert build() == (PURE if str(engine.__file__).endswith(".py") else COMPILED)


def test_a_file_that_was_edited_after_the_build_is_told(tmp_path: Path) -> None:
    library, package = tmp_path / "library.so", tmp_path / "sim"
    (package / "engine").mkdir(parents=True)
    step, opener = package / "engine" / "step.py", package / "engine" / f"step{EXTENSION_SUFFIXES[0]}"
    for file in (library, step, opener, package / "engine" / "pure.py"):
        file.touch()
    built_s = library.stat().st_mtime
    assert edited_since(library, package) is None
    os.utime(package / "engine" / "pure.py", (built_s + 3600, built_s + 3600))
    assert edited_since(library, package) is None, "it is not compiled"
    os.utime(step, (built_s + 59, built_s + 59))
    assert edited_since(library, package) is None, "an installer wrote it"
    os.utime(step, (built_s + 3600, built_s + 3600))
    assert edited_since(library, package) == "sim/engine/step.py"
    step.unlink()
    assert edited_since(library, package) is None


def test_what_objects_of_a_compiled_class_say_is_not_asked_of_the_class() -> None:
    native = type("Native", (), {"drafting": GETSET, "lookahead_tokens": GETSET})
    check_traits(native, "allocator", "native")
    assert declared(native, "allocator")["drafting"] is False
    assert declared(native, "allocator")["lookahead_tokens"] == 0
    own = type("Own", (native,), {"drafting": True})
    with pytest.raises(InputError, match="says drafting in its class, where the compiled Native does not look"):
        check_traits(own, "allocator", "own")
