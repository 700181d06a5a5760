"""What a point's numbers depend on beside its settings: the product, the files that settings name, the user's own code.

An ingredient is called `setting=value`, such as "policy.name=mypol:Mine", or PRODUCT; it is made of files by name, each
with the digest of its content.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import traces as traces_package
from sim import catalog
from sim.cost import profile
from sim.load import plug_in
from sim.serving.startup_log import log_file
from sim.study import user_code as code
from traces import files as inputs
from traces.schema import InputError
from traces.version import product_version

PRODUCT = "foretoken"
CODE = {
    "policy.name": "sim.policies",
    "allocator.name": "sim.allocators",
    "router.name": "sim.routers",
    "engine.name": "sim.engines",
    "workload.format": "traces.formats",
}
"""Settings that may name code, with the package that has the built-in ones."""
FILES = ("workload.trace", "workload.tokenizer", "model", "gpu", "cost.profile", "cost.fit", "speculation.draft_model",
         "speculation.acceptance", "kv.from_log")  # fmt: skip
"""Settings that may name a file or a folder."""
_ENDINGS = {"cost.fit": ".toml", "speculation.acceptance": ".json"}
"""Settings that name a file only where they end so."""
SOURCES = (".py", ".toml", ".csv", ".jsonl", ".gz", ".xz")
"""Of the product's own packages, what numbers come from: code, the catalog, the bundled traces."""

Digests = dict[str, str]
Made = dict[str, Digests]
Stamps = tuple[tuple[str, int, int, int, int], ...]
_known: dict[tuple[str, str], tuple[Stamps, Digests]] = {}
"""(working directory, ingredient) -> what its files looked like when their digests were made, and these."""


def ingredients(settings: Mapping[str, Any]) -> Iterator[str]:
    """What a point with these settings, by dotted key, is made of."""
    yield PRODUCT
    named = (*FILES, *CODE)
    for full, value in settings.items():
        key = full.split(".", 2)[2] if full.startswith("pools.") else full
        if key in named and isinstance(value, str) and value:
            yield f"{key}={value}"


def made_of(names: Iterable[str]) -> Made:
    """Each of these ingredients with its files; those that have none of their own (a built-in policy) are left out.

    Raises InputError: a file cannot be read.
    """
    files_of = {name: digests(name) for name in sorted(set(names))}
    return {name: files for name, files in files_of.items() if files}


def digests(ingredient: str) -> Digests:
    """The files of an ingredient by name, with the digest of each. Raises InputError where one cannot be read."""
    if ingredient == PRODUCT:
        return {PRODUCT: product_digest()}
    facts, paths = _parts(ingredient)
    stamp = tuple(map(_stamp, paths))
    place = os.getcwd(), ingredient
    if place not in _known or _known[place][0] != stamp:
        _known[place] = stamp, {_name(path): digest(path) for path in paths}
    return {**facts, **_known[place][1]}


def looks(ingredient: str) -> Stamps:
    """What the files of an ingredient look like from outside: another one whenever their content may be another."""
    return tuple(map(_stamp, _parts(ingredient)[1]))


def _parts(ingredient: str) -> tuple[Digests, list[Path]]:
    key, _, value = ingredient.partition("=")
    if key == "kv.from_log":
        return {}, [log] if (log := log_file(value)) is not None else []
    return _code(key, value) if key in CODE else ({}, _files(key, value))


def check_has_files(names: Iterable[str]) -> None:
    """Refuse code that is in no file, such as in a notebook's own cells; raises InputError."""
    for name in names:
        key, _, value = name.partition("=")
        plugged_in = plug_in(CODE[key], value) if key in CODE else None
        if plugged_in is not None and plugged_in[0] in sys.modules and not code.files_of(plugged_in[0]):
            raise InputError(
                f"{key} {value!r} is in no file, so that --out could not know when it changes; put it in one"
            )


def differing(there: Mapping[str, Digests], here: Mapping[str, Digests]) -> dict[str, list[str]]:
    """The ingredients that are not the same, each with the names of the files that differ."""
    changed = {}
    for name in sorted({*there, *here}):
        old, new = there.get(name, {}), here.get(name, {})
        if old != new:
            changed[name] = [file for file in sorted({*old, *new}) if old.get(file) != new.get(file)]
    return changed


@cache
def product_digest(packages: tuple[str, ...] = ("traces", "sim")) -> str:
    """One digest of the product's version and of the source files of these packages, the catalog among them."""
    sha, where = hashlib.sha256(product_version().encode()), Path(traces_package.__file__).parents[1]
    for package in packages:
        for path in sorted(path for path in (where / package).rglob("*") if path.suffix in SOURCES):
            sha.update(os.fsencode(path.relative_to(where)) + bytes.fromhex(digest(path)))
    return sha.hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of a file; raises InputError where it cannot be read."""
    return inputs.digest(path).hex()


def _stamp(path: Path) -> tuple[str, int, int, int, int]:
    """Another one whenever the content may be another: a file that is written gets a new time of change."""
    try:
        facts = path.stat()
    except OSError:
        return str(path), 0, 0, 0, 0
    return str(path), facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _name(path: Path) -> str:
    """As seen from the working directory, where it lies below that."""
    whole = Path(os.path.abspath(path))
    return str(whole.relative_to(os.getcwd())) if whole.is_relative_to(os.getcwd()) else str(whole)


def _files(key: str, value: str) -> list[Path]:
    """The files that are read for a setting; none where it names nothing that is there, or a part of the product."""
    path = Path(value)
    if key == "workload.trace":
        return sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else _there(path)
    if key == "workload.tokenizer":
        return _there(path)
    if key in _ENDINGS:
        return _there(path) if value.endswith(_ENDINGS[key]) else []
    if key == "cost.profile":
        folder = path.parent if path.name == profile.DESCRIPTION else path
        return [*_there(folder / profile.DESCRIPTION), *sorted(folder.glob("*.csv")), *_there(folder / profile.DEVICE)]
    user = catalog.user_path(value)  # model, gpu, draft_model
    if user is None:
        return []
    return _there(user / "config.json") if user.is_dir() else _there(user)


def _there(path: Path) -> list[Path]:
    return [path] if path.is_file() else []


def _code(key: str, value: str) -> tuple[Digests, list[Path]]:
    """(name and version of the distribution that brings it, the files) of code that is not the product's."""
    plugged_in = plug_in(CODE[key], value)
    if plugged_in is None:
        return {}, []
    module, facts = plugged_in
    return facts, code.files_of(module)
