"""The documentation is true: its Python runs, its commands run, its scenarios parse."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from sim import scenario
from sim.cli.main import cli
from sim.scenario import SETTINGS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks run in order, in one namespace and one empty folder per page; `sh` blocks run their `sim` commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    namespace: dict[str, object] = {"__name__": "documentation"}
    for language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(code, f"{page.name}", "exec"), namespace)
        elif language == "toml":
            tomllib.loads(code)
            if code.startswith("# scenario"):
                scenario.build(tomllib.loads(code))
        elif language == "sh":
            for line in re.sub(r"\\\n", " ", code).splitlines():
                run_line(line)


def run_line(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[:1] != ["sim"] or "DIR" in words:
        return
    outcome = CliRunner().invoke(cli, words[1:], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output


def test_settings_are_called_by_their_names() -> None:
    """Of `kv` and `speculation` a summary has keys, too; their settings are tried by the pages' commands."""
    for page in PAGES:
        for key in re.findall(r"`((?:workload|engine|offload|price|live)\.[a-z_]+)[`=]", page.read_text("utf-8")):
            assert key in SETTINGS, page.name


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
