"""The product's version, installed or not."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import CliRunner

from sim.cli.main import cli
from sim.engine.build import build
from traces import version

ROOT = Path(__file__).parents[2]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


@pytest.fixture
def _not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> NoReturn:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.setattr(version, "product_version", version.product_version.__wrapped__)


@pytest.mark.usefixtures("_not_installed")
def test_where_it_is_not_installed_its_source_tells() -> None:
    assert version.product_version() == DECLARED


def test_a_command_tells_it() -> None:
    done = CliRunner().invoke(cli, ["--version"], prog_name="sim")
    assert (done.exit_code, done.output) == (0, f"sim, version {version.product_version()} ({build()})\n")


@pytest.mark.usefixtures("_not_installed")
@pytest.mark.parametrize("text", [None, "not toml [", "[project]\nname = 'other'\nversion = '9'\n", "x = 1\n"])
def test_where_nothing_tells_it_is_unknown(text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "traces").mkdir()
    monkeypatch.setattr(version, "__file__", str(tmp_path / "traces" / "version.py"))
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    assert version.product_version() == version.UNKNOWN


def test_nothing_else_asks_for_the_version() -> None:
    """importlib.metadata knows installed packages alone."""
    asks = re.compile(r"\bversion\(.foretoken.\)|package_name=.foretoken.")
    users = [
        path.relative_to(ROOT).as_posix()
        for layer in ("traces", "sim", "backend", "calibrate")
        for path in (ROOT / layer).rglob("*.py")
        if asks.search(path.read_text(encoding="utf-8"))
    ]
    assert users == ["traces/version.py"]
