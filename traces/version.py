"""Which version of the product this is, installed or run from its source. It knows nothing else."""

from __future__ import annotations

from functools import cache
from pathlib import Path

UNKNOWN = "unknown"


@cache
def product_version() -> str:
    """The installed package's version; where it runs from its source alone, that of the pyproject.toml beside it.

    "unknown" where neither is there, as of packages that were copied out of their checkout.
    """
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - as slow as all of `sim --help`

    try:
        return version("foretoken")
    except PackageNotFoundError:
        return _beside(Path(__file__).resolve().parents[1] / "pyproject.toml")


def _beside(path: Path) -> str:
    """The version that a project file tells; UNKNOWN where there is none, or it is another project's."""
    import tomllib  # noqa: PLC0415 - see above

    try:
        project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):
        return UNKNOWN
    return str(project.get("version", UNKNOWN)) if project.get("name") == "foretoken" else UNKNOWN
