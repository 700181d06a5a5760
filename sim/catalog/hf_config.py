"""One config.json as a table, with lookups that name the file and the key that is wrong. It knows no architecture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from reprlib import Repr
from types import MappingProxyType
from typing import Any

from traces import documents
from traces.schema import InputError

REQUIRED = object()
_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxlong, _SHORT.maxstring = 2, 4, 2, 40, 60


def shown(value: object) -> str:
    """A value of a file as a sentence may show it, shortened where it is long."""
    return _SHORT.repr(value)


class Config:
    """The JSON object, with lookups that name the file and the key that is wrong."""

    def __init__(
        self, path: Path, table: dict[str, Any], prefix: str = "", spellings: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """`spellings` are what the file calls keys that it spells otherwise; both names are then known."""
        self.path = path
        self.table = {**table, **{key: table[own] for key, own in spellings.items() if table.get(own) is not None}}
        self.prefix = prefix
        self.spellings = spellings

    def named(self, key: str) -> str:
        """The key as the file spells it, with where it stands."""
        return self.prefix + self.spellings.get(key, key)

    @classmethod
    def read(cls, path: Path) -> Config:
        """The JSON object in a file."""
        table = documents.json_file(path)
        if not isinstance(table, dict):
            raise InputError(f"{path}: must hold a JSON object")
        return cls(path, table)

    def section(self, key: str) -> dict[str, Any]:
        """The object at `key`."""
        value = self._get(key, REQUIRED)
        if not isinstance(value, dict):
            raise InputError(f"{self.path}: {self.named(key)} must be an object")
        return value

    def count(self, key: str, default: object = REQUIRED) -> int:
        """The whole number at `key`; a null counts as absent."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{self.path}: {self.named(key)} = {shown(value)} must be a whole number")
        return value

    def within(self, key: str, least: int, most: int, default: object = REQUIRED) -> int:
        """The whole number at `key`, which must lie between two."""
        value = self.count(key, default)
        if not least <= value <= most:
            raise InputError(f"{self.path}: {self.named(key)} = {shown(value)} must lie between {least} and {most}")
        return value

    def either(self, *keys: str, default: object = REQUIRED) -> int:
        """The whole number at the first of these spellings that is there; the first is named where none is."""
        key = next((key for key in keys if self.table.get(key) is not None), keys[0])
        return self.count(key, default)

    def optional(self, key: str, default: int) -> int:
        """The whole number at `key`; a null is 0, and only an absent one the default."""
        return 0 if key in self.table and self.table[key] is None else self.count(key, default)

    def flag(self, key: str, default: bool) -> bool:
        """The truth value at `key`; a null counts as absent."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise InputError(f"{self.path}: {self.named(key)} = {shown(value)} must be true or false")
        return value

    def counts(self, key: str) -> list[int] | None:
        """The list of whole numbers at `key`; None where it is absent or null."""
        value = self.table.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or any(isinstance(x, bool) or not isinstance(x, int) for x in value):
            raise InputError(f"{self.path}: {self.named(key)} must be a list of whole numbers")
        return value

    def kinds(self, key: str, known: tuple[str, ...], layers: int) -> list[str] | None:
        """The list at `key` of a kind for each of so many layers; None where it is absent or null."""
        value = self.table.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or any(kind not in known for kind in value):
            names = f"{', '.join(known[:-1])} and {known[-1]}" if len(known) > 1 else known[0]
            raise InputError(f"{self.path}: {self.named(key)} must be a list of {names}")
        if len(value) != layers:
            raise InputError(
                f"{self.path}: {self.named(key)} has {len(value)} entries, one for each of {layers} layers is needed"
            )
        return value

    def demand(self, key: str, expected: object, meaning: str) -> None:
        """Refuse a variant that the arithmetic would get wrong."""
        if self._get(key, expected) != expected:
            raise InputError(f"{self.path}: {self.named(key)} = {shown(self.table[key])} is not supported ({meaning})")

    def _get(self, key: str, default: object) -> object:
        value = self.table.get(key)
        if value is not None:
            return value
        if default is REQUIRED:
            raise InputError(f"{self.path}: key {self.named(key)!r} is missing")
        return default
