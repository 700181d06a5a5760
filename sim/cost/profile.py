"""A profile: a folder of measured tables with a description, read, checked, written and found by name.

`profile.toml` says what was measured on which device by whom, and how far off prices from it are; one CSV per operation
holds the measurements (`sim.cost.schema`). It is data only: text that a person can review. It knows no prices.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from sim import catalog
from sim.cost.description import SCHEMA, Accuracy, Meta, plain, read_meta
from sim.cost.schema import TABLES
from sim.cost.speed import too_fast
from sim.cost.step import Constant
from sim.cost.tables import Table, read_table
from sim.specs.gpu import GpuSpec
from traces import files
from traces.schema import InputError

__all__ = ["SCHEMA", "Accuracy", "Meta", "Profile", "Table", "find", "names", "read", "write"]

DESCRIPTION, DEVICE = "profile.toml", "device.toml"
_FOLDER = Path(catalog.__file__).parent / "profiles"


@dataclass(frozen=True, slots=True)
class Profile:
    """A description and its tables. `device` is the GPU's own data sheet where the catalog has none (a CPU)."""

    meta: Meta
    tables: Mapping[str, Table]
    device: GpuSpec | None = None
    device_text: str = ""
    """device.toml as it stands in the folder."""

    def __post_init__(self) -> None:
        for name, table in self.tables.items():
            if table.spec is not TABLES.get(name):
                raise InputError(f"profile {self.meta.name!r}: {name!r} holds rows of table {table.spec.name!r}")
        if not self.tables:
            raise InputError(f"profile {self.meta.name!r} has no tables")

    def gpu(self) -> GpuSpec:
        """The data sheet of the device measured: the profile's own, or the catalog's."""
        return self.device or catalog.load_gpu(self.meta.gpu)

    def describe(self) -> list[Constant]:
        """Its tables with their numbers of rows and errors, and the errors of whole steps."""
        meta = self.meta
        constants = [Constant("profile", len(self.tables), f"{meta.name}: {meta.kind}, {meta.source}, {meta.date}")]
        for name, table in self.tables.items():
            error = meta.accuracy.get(name)
            how = "error not measured"
            if error is not None:
                how = f"held out: mean error {error.mean:.1%}, bias {error.bias:+.1%}, {error.points} points"
            constants.append(Constant(f"{name}_rows", len(table), how))
        for kind, error in meta.step_accuracy.items():
            how = f"{error.points} whole steps, bias {error.bias:+.1%}"
            constants.append(Constant(f"step_error_{kind}", error.mean, how))
        return constants

    def check_speed(self) -> None:
        """Raise InputError for the first row that the device's data sheet says is impossible (`too_fast`).

        A profile's own device.toml is made from its measurements, so nothing can be checked against it.
        """
        if self.device is not None:
            return
        gpu = self.gpu()
        for name, table in self.tables.items():
            for row, why in too_fast(table, gpu):
                raise InputError(f"profile {self.meta.name!r}, {name}.csv:{row + 2}: {why}")


def names() -> list[str]:
    """Names of the catalog's profiles, sorted."""
    return sorted(path.parent.name for path in _FOLDER.glob(f"*/{DESCRIPTION}"))


def gpu_of(name: str, gpu: str) -> GpuSpec:
    """The data sheet that a run goes by: the profile's own, where it has one (a CPU is in no catalog), or `gpu`'s."""
    if name == "roofline":
        return catalog.load_gpu(gpu)
    folder = _folder(name)
    # Its tables may have tens of thousands of rows, and say nothing of the GPU.
    return _device(folder, read_meta(folder / DESCRIPTION)) or catalog.load_gpu(gpu)


def find(name: str) -> Profile:
    """The profile of a folder, or of the catalog by name; InputError lists the known ones."""
    return read(_folder(name))


def _folder(name: str) -> Path:
    path = Path(name)
    if files.is_file(path / DESCRIPTION) or path.name == DESCRIPTION:
        return path.parent if path.name == DESCRIPTION else path
    if name in names():
        return _FOLDER / name
    raise InputError(
        f"unknown profile {name!r}; known are {', '.join(['roofline', *names()])}, or the path of a folder with a "
        f"{DESCRIPTION}"
    )


def read(folder: Path) -> Profile:
    """The profile in a folder, every number checked.

    Raises:
        InputError: a fault, by file and line or key; another schema version; a row faster than the device can be.
    """
    meta = read_meta(folder / DESCRIPTION)
    tables = {}
    for file in sorted(folder.glob("*.csv")):
        if file.stem not in TABLES:
            raise InputError(f"{file}: no table of a profile; known are {', '.join(f'{name}.csv' for name in TABLES)}")
        tables[file.stem] = read_table(file)
    device = _device(folder, meta)
    text = files.text(folder / DEVICE) if device is not None else ""
    try:
        profile = Profile(meta, {name: tables[name] for name in TABLES if name in tables}, device, text)
        profile.check_speed()
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    return profile


def _device(folder: Path, meta: Meta) -> GpuSpec | None:
    """The data sheet that stands beside the tables, if any does."""
    path = folder / DEVICE
    device = catalog.load_gpu(str(path)) if files.is_file(path) else None
    if device is not None and device.name != meta.gpu:
        raise InputError(f"{path}: is about {device.name!r}, and {DESCRIPTION} says gpu = {meta.gpu!r}")
    return device


def write(profile: Profile, folder: Path, *, replace: bool = False, extra: Mapping[str, str] | None = None) -> None:
    """Write the folder, which appears whole or not at all; read back before it does. `extra` are more files, by name.

    Raises:
        InputError: it is there already and not to be replaced, or holds something else than a profile.
    """
    if files.exists(folder) and not (replace and (files.is_file(folder / DESCRIPTION) or not any(folder.iterdir()))):
        raise InputError(f"{folder} is there already; remove it, or give another --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        (made / DESCRIPTION).write_text(tomli_w.dumps(plain(profile.meta)), encoding="utf-8")
        for name, table in profile.tables.items():
            (made / f"{name}.csv").write_text(table.csv(), encoding="utf-8")
        if profile.device_text:
            (made / DEVICE).write_text(profile.device_text, encoding="utf-8")
        for name, text in (extra or {}).items():
            (made / name).write_text(text, encoding="utf-8")
        read(made)
        made.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
            os.replace(folder, old / folder.name)
            os.replace(made, folder)
            shutil.rmtree(old)
        else:
            os.replace(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
