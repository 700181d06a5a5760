"""Engines by name and version: their defaults by GPU, their rules, what they have, from the files in `engines/`.

A name is a file; a new version of an engine is a file with what changed, and the rules that it brought
(`sim.engine.rules`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from sim.catalog.memory_facts import accounting
from sim.specs.accounting import PLAIN, Accounting
from sim.specs.front_end import AUTO, CUSTOM, OFF
from sim.specs.model import GpuSpec
from traces import documents
from traces.schema import InputError

_FOLDER = Path(__file__).parent / "engines"
ANY = "any"
"""Among an engine's policies or allocators: all that there are, a user's own too."""
Settings = Mapping[str, Any]
"""Values by dotted key."""


class Asked(NamedTuple):
    """What a default may follow: what is set on top, the GPU, and the longest context, asked only where needed."""

    given: Settings
    gpu: GpuSpec
    longest: Callable[[], int]


def _seats_within_budget(told: Settings, asked: Asked) -> dict[str, Any]:
    given = asked.given
    if "engine.max_num_seqs" in given or "engine.max_num_batched_tokens" not in given:
        return {}
    tokens = given["engine.max_num_batched_tokens"]
    return {"engine.max_num_seqs": max(1, min(told["engine.max_num_seqs"], tokens))} if type(tokens) is int else {}


def _budget_of_longest(told: Settings, asked: Asked) -> dict[str, Any]:
    given = asked.given
    if "engine.max_num_batched_tokens" in given or given.get("engine.chunked_prefill") is not False:
        return {}
    return {"engine.max_num_batched_tokens": max(told["engine.max_num_batched_tokens"], asked.longest())}


_SGLANG_ROWS = ((160, 512), (60, 256), (35, 32), (20, 48), (0, 8))
"""Rows of the largest decode graph on GPUs of so many GiB and more, with less than four GPUs a replica."""


def _sglang_share(told: Settings, asked: Asked) -> dict[str, Any]:
    """`handle_gpu_memory_settings` of SGLang 0.5.23: 1 less what it sets aside, in MiB, over the GPU's memory."""
    gpu_mib = asked.gpu.memory_bytes / 2**20
    tp, tokens = asked.given.get("tp", 1), asked.given.get("engine.max_num_batched_tokens")
    tp = tp if isinstance(tp, int) else 1
    tokens = tokens if isinstance(tokens, int) else told["engine.max_num_batched_tokens"]
    rows = next(rows for least, rows in _SGLANG_ROWS if gpu_mib >= least * 1024)
    if tp >= 4:
        rows = {8: 8, 48: 160, 32: 160}.get(rows, 512)
    reserved = 512 + 1.5 * max(tokens, 2048) + tp / 8 * 1024 + 2 * rows
    if gpu_mib > 60 * 1024:
        reserved = max(reserved, 10 * 1024)
    return {"kv.gpu_memory_utilization": max(0.1, round((gpu_mib - reserved) / gpu_mib, 3))}


DERIVED: Mapping[str, Callable[[Settings, Asked], dict[str, Any]]] = {
    "seats within a budget that is set": _seats_within_budget,
    "budget of the longest context without chunks": _budget_of_longest,
    "SGLang's static share of memory": _sglang_share,
}
"""Defaults that follow what is set, by the name that an engine's file has for them (`EnginePreset.derives`)."""


class ByGpu(NamedTuple):
    """Defaults on GPUs of so many GiB and more whose name has one of `only` in it, where there are any, and none of
    `but`."""

    memory_gib: float
    only: tuple[str, ...]
    but: tuple[str, ...]
    settings: Settings

    def holds(self, gpu: GpuSpec) -> bool:
        name = gpu.name.lower()
        if gpu.memory_bytes < self.memory_gib * 2**30 or any(word in name for word in self.but):
            return False
        return not self.only or any(word in name for word in self.only)


@dataclass(frozen=True, slots=True)
class EnginePreset:
    """The facts of one engine's file.

    Attributes:
        rules: names of the switches of `sim.engine.rules.Rules` that are on.
        policies, allocators: those that it has, by our names; "any" is all.
        refuses: what it does not start with, by the names of `sim.serving.startup.REFUSALS`.
        lacks: what of it is not modelled, in words.
        settings: its defaults; `by_gpu` has those that hold on some GPUs, `derives` names of `DERIVED`.
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
    by_gpu: tuple[ByGpu, ...]
    derives: tuple[str, ...]
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
        return set(self.settings).union(*(row.settings for row in self.by_gpu))

    def defaults(
        self, gpu: GpuSpec, given: Settings = MappingProxyType({}), longest: Callable[[], int] = int
    ) -> dict[str, Any]:
        """What it sets where nobody says otherwise, by dotted key; of two rows for a GPU the larger memory's wins.

        Args:
            given: what is set on top, which some defaults follow.
            longest: tokens of the longest context, asked only where a default follows it.
        """
        told = dict(self.settings)
        for row in sorted(self.by_gpu, key=lambda row: row.memory_gib):
            if row.holds(gpu):
                told |= row.settings
        for part in ("policy", "allocator"):
            if given.get(f"{part}.name", told[f"{part}.name"]) != told[f"{part}.name"]:  # another has other parameters
                told = {key: value for key, value in told.items() if key.partition(".")[0] != part}
        for name in self.derives:
            told |= DERIVED[name](told, Asked(given, gpu, longest))
        return told

    def refusal(self, policies: Iterable[str], allocator: str) -> str | None:
        """Why the engine is not one with these, in a sentence; None where it has them."""
        asked = (("policy", policies, self.policies), ("allocator", (allocator,), self.allocators))
        for noun, some, known in asked:
            for name in some:
                if name not in known and ANY not in known:
                    return f"{self.name} has no {noun} {name!r}; it has {', '.join(known)}"
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
    if name in names():
        return _named(name)
    every = {stem: _named(stem) for stem in names()}
    spellings = {_plain(word): stem for stem, engine in every.items() for word in (stem, *engine.aliases)}
    if (stem := spellings.get(_plain(name))) is not None:
        return every[stem]
    near = get_close_matches(_plain(name), spellings, 1, 0.6)
    nearest = f"; the nearest is {spellings[near[0]]}" if near else ""
    raise InputError(f"unknown engine {name!r}; known are {', '.join(every)}{nearest}")


@lru_cache
def _named(stem: str) -> EnginePreset:
    return _read(_FOLDER / f"{stem}.toml")


def with_front_end(name: str) -> EnginePreset:
    """The engine of that name, where its front end is known; InputError names those that are."""
    try:
        found = load(name)
    except InputError:
        raise InputError(f"front_end.name is {name!r}; known: {_front_ends()}") from None
    if not found.front_end:
        raise InputError(f"front_end.name is {name}, an engine whose front end is not known; known: {_front_ends()}")
    return found


def _front_ends() -> str:
    return ", ".join((AUTO, OFF, CUSTOM, *(engine for engine in names() if load(engine).front_end)))


def of_line(engine: str, version: str) -> str:
    """The name of the file for an engine's version, such as vllm-0.33 for 0.33.1; whether there is one is not asked."""
    return f"{engine}-{'.'.join(version.split('.')[:2])}"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())


def _read(path: Path) -> EnginePreset:
    table = documents.toml(path)
    rows = tuple(
        ByGpu(row.get("memory_gib", 0), tuple(row.get("only", ())), tuple(row.get("but", ())), row["settings"])
        for row in table.get("by_gpu", ())
    )
    texts = {key: tuple(table[key]) for key in ("aliases", "rules", "policies", "allocators", "refuses", "lacks")}
    return EnginePreset(
        name=table["name"], description=table["description"], settings=table["settings"], by_gpu=rows,
        derives=tuple(table.get("derives", ())), front_end=table.get("front_end", {}), sources=table["sources"],
        memory=tuple(map(accounting, table.get("memory", ()))), **texts,
    )  # fmt: skip
