"""The record: one line for the settings and for each part of a run. It compares nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .compare import LOOSE
from .prints import Code, Print, digest
from .runs import DATA

RECORD = DATA / "record.json"
_RULE = "A fingerprint may change only in a commit that says why. Written by: python -m tests.fingerprints record"


@dataclass
class Kept:
    """One run as it was recorded, with every setting written out."""

    kind: str
    settings: dict[str, Any]
    prints: dict[str, Print] = field(default_factory=dict)


def write(runs: Mapping[str, Kept], path: Path = RECORD) -> None:
    """Write the record. What most runs set alike stands once, and so do the keys that many trees have."""
    common = _most_common([one.settings for one in runs.values() if one.kind == "run"])
    keys = _Keys()
    lines = ["{", f'"rule": {_text(_RULE)},', '"settings": {']
    lines += [*_joined(f"  {_text(key)}: {_text(value)}" for key, value in common.items()), "},", '"runs": {']
    blocks = []
    for name, one in runs.items():
        own = {key: value for key, value in one.settings.items() if common.get(key, _absent) != value}
        without = [key for key in common if key not in one.settings]
        few = len(without) > len(own)
        head: dict[str, Any] = {"kind": one.kind, "settings": one.settings if few else own}
        head |= {"alone": True} if few else {"without": without} if without else {}
        parts = [f"  {_text(name)}: {{{_text(head)[1:-1]},"]
        packed = {part: _packed(kept, keys, whole=one.kind in LOOSE) for part, kept in one.prints.items()}
        parts += [*_joined(f"   {_text(part)}: {_text(kept)}" for part, kept in packed.items()), "  }"]
        blocks.append("\n".join(parts))
    lines += [",\n".join(blocks), "},", '"keys": {']
    lines += [
        *_joined(f"  {_text(short)}: {_text(long)}" for short, long in sorted(keys.long_of.items())),
        "}",
        "}",
        "",
    ]
    path.write_text("\n".join(lines))


def read(path: Path = RECORD) -> dict[str, Kept]:
    """The runs of a record; none where there is no record."""
    if not path.exists():
        return {}
    document = json.loads(path.read_text())
    found = {}
    for name, parts in document["runs"].items():
        kind, own, without = parts.pop("kind"), parts.pop("settings"), parts.pop("without", ())
        common = {} if parts.pop("alone", False) else document["settings"]
        alike = {key: value for key, value in common.items() if key not in without}
        unpacked = {part: _unpacked(kept, document["keys"]) for part, kept in parts.items()}
        found[name] = Kept(kind, alike | own, unpacked)
    return found


_absent = object()


def _most_common(all_settings: list[dict[str, Any]]) -> dict[str, Any]:
    found = {}
    for key in sorted({key for settings in all_settings for key in settings}):
        values = [_text(settings[key]) for settings in all_settings if key in settings]
        if len(values) * 2 > len(all_settings):
            found[key] = json.loads(max(set(values), key=lambda one: (values.count(one), one)))
    return found


class _Keys:
    """Short names for lists of keys that many prints have."""

    def __init__(self) -> None:
        self.long_of: dict[str, str] = {}

    def short(self, keys: Iterable[str]) -> str:
        long = "|".join(keys)
        short = digest(long.encode(), 3)
        assert self.long_of.setdefault(short, long) == long, f"two lists of keys are called {short}"
        return short


def _packed(one: Print, keys: _Keys, *, whole: bool) -> dict[str, Any]:
    """A table: the names of its columns by a short name. A tree: by first keys, the names below them likewise.

    Unless floats are wanted `whole`, those of a section after its first are told by their codes alone, in one text.
    """
    if "trail" in one:
        exact, sums = one["exact"], one["sums"]
        head = {"rows": one["rows"], "exact": [keys.short(exact), " ".join(exact.values())]}
        return {**head, "sums": [keys.short(sums), *sums.values()], "trail": one["trail"]}
    sections: dict[str, list[tuple[str, Any]]] = {}
    for key, value in one.items():
        section, dot, rest = key.partition(".")
        sections.setdefault(section, []).append((dot + rest, value))
    found = {}
    for section, leaves in sections.items():
        names, values, codes = [], [], ""
        for name, value in sorted(leaves, key=lambda leaf: leaf[0]):
            coded = isinstance(value, float) and not whole and any(type(other) is float for other in values)
            if coded or isinstance(value, Code):
                names.append(f"~{name}")
                codes += value if isinstance(value, Code) else Code.of(value)
            else:
                names.append(name)
                values.append(value)
        found[section] = [keys.short(names), *values, *([codes] if codes else [])]
    return found


def _unpacked(packed: Mapping[str, Any], keys: Mapping[str, str]) -> Print:
    if "trail" in packed:
        (exact, digests), (sums, *totals) = packed["exact"], packed["sums"]
        columns = {"exact": _zipped(keys[exact], digests.split()), "sums": _zipped(keys[sums], totals)}
        return {"rows": packed["rows"], **columns, "trail": packed["trail"]}
    found = {}
    for section, (short, *values) in packed.items():
        names = keys[short].split("|")
        coded = [name for name in names if name.startswith("~")]
        codes = values.pop() if coded else ""
        each = iter(values)
        for name in names:
            if name.startswith("~"):
                found[section + name[1:]], codes = Code(codes[:4]), codes[4:]
            else:
                found[section + name] = next(each)
    return found


def _zipped(long: str, values: Sequence[Any]) -> Print:
    return dict(zip(long.split("|") if long else [], values, strict=True))


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _joined(lines: Any) -> list[str]:
    found = list(lines)
    return [f"{line}," for line in found[:-1]] + found[-1:]
