"""Engines by name and version: their defaults by GPU, their rules, what they have, from the files in `engines/`.

A name is a file; a new version of an engine is a file with what changed, and the rules that it brought
(`sim.engine.rules`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from sim.catalog.memory_facts import accounting
from sim.specs.accounting import PLAIN, Accounting
from sim.specs.front_end import CUSTOM, OFF
from sim.specs.model import GpuSpec
from traces import documents
from traces.schema import InputError

_FOLDER = Path(__file__).parent / "engines"
Settings = Mapping[str, Any]
"""Values by dotted key."""


@dataclass(frozen=True, slots=True)
class EnginePreset:
    """The facts of one engine's file.

    Attributes:
        rules: names of the switches of `sim.engine.rules.Rules` that are on.
        policies, allocators: those that it has, by our names.
        refuses: what it does not start with, by the names of `sim.serving.startup.REFUSALS`.
        lacks: what of it is not modelled, in words.
        settings: its defaults; `by_gpu` has those that hold on GPUs of so many GiB and more, but for some.
        front_end: what its front end costs, by the names of `sim.specs.front_end`; empty where that is not known.
        sources: of each part of the file, where it was read.
        memory: how it counts its memory at its start, and how earlier versions did that have no file; none: not known.
    """

    name: str
    aliases: tuple[str, ...]
    description: str
    rules: tuple[str, ...]
    policies: tuple[str, ...]
    allocators: tuple[str, ...]
    refuses: tuple[str, ...]
    lacks: tuple[str, ...]
    settings: Settings
    by_gpu: tuple[tuple[float, tuple[str, ...], Settings], ...]
    front_end: Settings
    sources: Mapping[str, str]
    memory: tuple[Accounting, ...] = ()

    @property
    def accounting(self) -> Accounting:
        """How it counts its memory at its start; the plain estimate where that is not known."""
        return self.memory[0] if self.memory else PLAIN

    @property
    def keys(self) -> set[str]:
        """All settings that it has a default for, on one GPU or another."""
        return set(self.settings).union(*(settings for _, _, settings in self.by_gpu))

    def defaults(self, gpu: GpuSpec) -> dict[str, Any]:
        """What it sets where nobody says otherwise, by dotted key; of two rows for a GPU the larger memory's wins."""
        told = dict(self.settings)
        for memory_gib, but, settings in sorted(self.by_gpu, key=lambda row: row[0]):
            if gpu.memory_bytes >= memory_gib * 2**30 and gpu.name not in but:
                told |= settings
        return told

    def refusal(self, policy: str, allocator: str) -> str | None:
        """Why the engine is not one with these, in a sentence; None where it has them."""
        for noun, name, known in (("policy", policy, self.policies), ("allocator", allocator, self.allocators)):
            if name not in known:
                return f"engine.preset is {self.name}, which has no {noun} {name!r}; it has {', '.join(known)}"
        return None


def names() -> list[str]:
    """Names of all engines, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def accountings() -> dict[str, Accounting]:
    """By name, of an engine and version: every way to count memory at the start that is known."""
    return {each.name: each for name in names() for each in load(name).memory}


def accounting_of(name: str, preset: str) -> Accounting:
    """By a name, or with `auto` that of an engine by its name, or the plain estimate of none.

    Raises InputError for an unknown name, with the known ones.
    """
    if name == "auto":
        return load(preset).accounting if preset else PLAIN
    known = {"plain": PLAIN, **accountings()}
    if name not in known:
        raise InputError(f"kv.accounting is {name!r}; known are auto, {', '.join(known)}")
    return known[name]


@lru_cache
def load(name: str) -> EnginePreset:
    """An engine by its name or an alias; InputError names the known ones and the nearest."""
    every = {stem: _read(_FOLDER / f"{stem}.toml") for stem in names()}
    spellings = {_plain(word): stem for stem, engine in every.items() for word in (stem, *engine.aliases)}
    if (stem := spellings.get(_plain(name))) is not None:
        return every[stem]
    near = get_close_matches(_plain(name), spellings, 1, 0.6)
    nearest = f"; the nearest is {spellings[near[0]]}" if near else ""
    raise InputError(f"unknown engine {name!r}; known are {', '.join(every)}{nearest}")


def with_front_end(name: str) -> EnginePreset:
    """The engine of that name, where its front end is known; InputError names those that are."""
    known = [engine for engine in names() if load(engine).front_end]
    listed = ", ".join((OFF, CUSTOM, *known))
    try:
        found = load(name)
    except InputError:
        raise InputError(f"front_end.name is {name!r}; known: {listed}") from None
    if not found.front_end:
        raise InputError(f"front_end.name is {name}, an engine whose front end is not known; known: {listed}")
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())


def _read(path: Path) -> EnginePreset:
    table = documents.toml(path)
    rows = tuple((row["memory_gib"], tuple(row.get("but", ())), row["settings"]) for row in table.get("by_gpu", ()))
    texts = {key: tuple(table[key]) for key in ("aliases", "rules", "policies", "allocators", "refuses", "lacks")}
    return EnginePreset(
        name=table["name"], description=table["description"], settings=table["settings"], by_gpu=rows,
        front_end=table.get("front_end", {}), sources=table["sources"],
        memory=tuple(map(accounting, table.get("memory", ()))), **texts,
    )  # fmt: skip
