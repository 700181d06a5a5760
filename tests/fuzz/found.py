"""Writes a case that breaks a law as a test that is ready to run."""

from __future__ import annotations

import re
from dataclasses import fields
from hashlib import sha256
from pathlib import Path

from .case import Case

FOLDER = Path(__file__).resolve().parents[1] / "fuzz_found"
_TEMPLATE = '''"""{law}, found by seed {seed}.

{said}
"""

from __future__ import annotations

from fuzz.case import Case, Row{steps}
from fuzz.check import broken

CASE = {case}


def test_{name}() -> None:
    assert broken(CASE, "{law}") == ""
'''


def write_test(case: Case, law: str, said: str, seed: int, folder: Path = FOLDER) -> Path:
    """The file of the test, whose name tells the law and the case."""
    text = code(case)
    name = f"{law}_{sha256(text.encode()).hexdigest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"test_{name}.py"
    steps = ", Steps" if case.cost is not None else ""
    told = re.sub(r'["\\]', "'", said[:400])
    lines = [told[at : at + 110] for at in range(0, len(told), 110)]
    path.write_text(
        _TEMPLATE.format(law=law, seed=seed, said="\n".join(lines), steps=steps, case=text, name=name),
        encoding="utf-8",
    )
    return path


def code(case: Case) -> str:
    """The case as Python, one setting and one request a line; what has its default is left out."""
    default = Case()
    lines = ["Case("]
    for one in fields(case):
        value = getattr(case, one.name)
        if value == getattr(default, one.name):
            continue
        if one.name == "settings":
            lines += ["    settings={", *(f"        {key!r}: {item!r}," for key, item in value.items()), "    },"]
        elif one.name == "rows":
            lines += ["    rows=(", *(f"        {_row(row)}," for row in value), "    ),"]
        else:
            lines.append(f"    {one.name}={value!r},")
    return "\n".join([*lines, ")"])


def _row(row: tuple[object, ...]) -> str:
    """`Row(0.0, 1, 1)` and then, by name, what differs from the default."""
    defaults = row._field_defaults  # type: ignore[attr-defined]
    told = [repr(value) for value in row[:3]]
    told += [f"{name}={getattr(row, name)!r}" for name, value in defaults.items() if getattr(row, name) != value]
    return f"Row({', '.join(told)})"
