"""From other people's files to a profile: recognise, read, check, describe. It prints nothing and writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calibrate.importers import formats
from calibrate.importers.draft import Draft, ImportOptions, LeftOut
from calibrate.importers.held_out import accuracies
from calibrate.importers.limits import clean
from calibrate.importers.sheet import Sheet, open_sheets
from sim import catalog
from sim.cost.description import Meta
from sim.cost.profile import Profile
from sim.cost.tables import Table
from traces import files
from traces.schema import InputError


@dataclass(frozen=True, slots=True)
class Imported:
    """A profile, what was left out of it and why, and the files that hold nothing that a profile has a table for."""

    profile: Profile
    left_out: tuple[LeftOut, ...]
    skipped_files: tuple[str, ...]


def import_profile(
    sources: list[Path],
    gpu: str,
    *,
    format_name: str | None = None,
    dtype: str | None = None,
    model: str | None = None,
    tp: int | None = None,
    exchanges: bool = False,
) -> Imported:
    """The profile in files and folders of one format, recognised by their columns.

    `gpu` is a catalog name or the user's TOML file, which then goes into the profile; its data sheet decides which rows
    can be true. `dtype`, `model` and `tp` say what some files do not. `exchanges`: also keep what `fit-roofline` reads
    and no profile prices.

    Raises:
        InputError: an unknown format or column, a fact that nobody said, a table that is mostly impossible.
    """
    options = ImportOptions(catalog.load_gpu(gpu), dtype=dtype, model=model, tp=tp, exchanges=exchanges)
    sheets = open_sheets(sources)
    name = format_name or formats.recognise(sheets)
    reader = formats.load(name)
    known = [sheet for sheet in sheets if reader.table_of(sheet) is not None]
    for sheet in sheets:
        if sheet not in known and sheet.path in sources:
            raise InputError(f"{sheet.path}: no table of {name} has its columns ({', '.join(sheet.header[:12])})")
    if not known:
        raise InputError(f"{sources[0]}: none of its {len(sheets)} tables is one of {name} by its columns")
    draft = reader.read(known, options)
    options.check_used(name)
    tables = clean(draft, options.gpu)
    meta = _meta(draft, tables, options, name, known)
    own = Path(gpu).is_file() and options.gpu.name not in catalog.names("gpus")
    text = files.text(Path(gpu)) if own else ""
    profile = Profile(meta, tables, options.gpu if text else None, text)
    skipped = tuple(str(sheet.path) for sheet in sheets if sheet not in known)
    return Imported(profile, tuple(draft.left_out()), skipped)


def _meta(draft: Draft, tables: dict[str, Table], options: ImportOptions, name: str, sheets: list[Sheet]) -> Meta:
    files = [f"{sheet.path.name} (sha256 {sheet.digest()})" for sheet in sheets]
    left = [f"Left out: {one}." for one in draft.left_out()]
    return Meta(
        name=f"{options.gpu.name}-{name}".lower(),
        gpu=options.gpu.name,
        device=draft.device or options.gpu.description,
        kind="imported",
        source=f"{draft.source}; imported, not measured by this project; its licence is the source's",
        date=draft.date,
        notes=(f"Read from {', '.join(files)}; times in {draft.unit}.", *draft.notes, *left),
        software=draft.facts,
        included={term: table for term, table in draft.included.items() if table in tables},
        decode_splits=draft.decode_splits,
        grid={table: f"{len(rows)} points" for table, rows in tables.items()},
        accuracy=accuracies(tables, options.gpu),
    )
