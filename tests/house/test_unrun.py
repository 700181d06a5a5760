"""The list of lines that no test runs (`tests/kits/unrun.py`): what it names is there, and how it is judged."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import unrun

TOLD = unrun.reasons(unrun.REASONS.read_text(encoding="utf-8"))


def functions(node: ast.AST, above: str = "") -> Iterator[str]:
    """Names as coverage.py has them: `Class.method`, `function.inner`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield f"{above}{child.name}"
            yield from functions(child, f"{above}{child.name}.")
        else:
            yield from functions(child, above)


@pytest.mark.parametrize("file", sorted({file for file, _ in TOLD}))
def test_reasons_name_functions_that_are_there(file: str) -> None:
    names = list(functions(ast.parse((unrun.ROOT / file).read_text(encoding="utf-8"))))
    for named, pattern in TOLD:
        assert named != file or any(fnmatchcase(name, pattern) for name in names), pattern


def test_lines_without_a_reason_and_reasons_without_a_line_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    told = unrun.reasons("# a comment\n\nbackend/a.py: one, two*: no card: none\n")
    assert told == {("backend/a.py", "one"): "no card: none", ("backend/a.py", "two*"): "no card: none"}
    missing = {("backend/a.py", "twofold"): [3], ("backend/b.py", "one"): [4]}
    assert unrun.judged(missing, told) == ([("backend/b.py", "one")], [("backend/a.py", "one")])
    assert not unrun.report({("backend/b.py", "one"): (7, [4, 5])})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "backend/b.py: one: 4, 5"
    assert lines[-1] == "7 lines run, 2 in 1 functions run nowhere, 2 of them without a reason"


def test_what_is_kept_is_of_the_very_same_sources(tmp_path: Path) -> None:
    test = tmp_path / "test_a.py"
    test.write_text("")
    before = unrun.state(test)
    assert unrun.state(test) == before
    test.write_text("# another\n")
    assert unrun.state(test) != before
