"""The scenarios that come along: files of common deployments, found by their name."""

from __future__ import annotations

from pathlib import Path

from traces import files
from traces.schema import InputError

_FOLDER = Path(__file__).parent / "scenarios"


def scenarios() -> dict[str, Path]:
    """By name the file of each."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.toml"))}


def about(path: Path) -> str:
    """What a scenario that comes along is, as the first line of its file says."""
    return files.text(path).splitlines()[0].removeprefix("# ")


def located(path_or_name: str | Path) -> Path:
    """The path if it exists or has an ending, else the scenario of that name that comes along.

    Raises:
        InputError: there is none.
    """
    path, known = Path(path_or_name), scenarios()
    if files.exists(path) or path.suffix:
        return path
    if str(path_or_name) not in known:
        raise InputError(
            f"{files.named(path)} does not exist, and no scenario of that name comes along; known: {', '.join(known)}"
        )
    return known[str(path_or_name)]
