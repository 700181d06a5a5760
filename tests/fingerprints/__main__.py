"""The commands: record, check, show, list."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import __doc__ as usage
from . import store
from .cases import cases
from .compare import differences
from .runs import Outcome, impossible, make
from .settings import not_written, written_out
from .store import Kept


def changes(name: str, kept: Kept) -> tuple[Outcome, list[str]]:
    """A run made again, and what is not as recorded."""
    try:
        new = make(kept.kind, kept.settings)
    except Exception as error:
        return Outcome(), [f"{name}: does not run: {type(error).__name__}: {error}"]
    told = [f"{name}: {one}" for one in differences(kept.kind, new, kept.prints)]
    if kept.kind in ("run", "live"):
        for key in not_written(kept.settings, new.scenario):
            told.append(f"{name}: the setting {key} = {new.scenario[key]!r} is not written out in the record")
    return new, told


def unrecorded(runs: dict[str, Kept]) -> list[str]:
    """Runs that are listed and not recorded, the other way round, or recorded with other settings."""
    listed = cases()
    found = [f"{name}: is listed in cases.py and not recorded" for name in listed if name not in runs]
    found += [f"{name}: is recorded and no longer listed in cases.py" for name in runs if name not in listed]
    for name in filter(runs.__contains__, listed):
        if not _as_listed(runs[name], listed[name].kind, listed[name].settings):
            found.append(f"{name}: is listed with other settings than recorded")
    return found


def _as_listed(kept: Kept, kind: str, told: dict[str, Any]) -> bool:
    """Are the settings of the list those of the record, as far as the list says any?"""
    if kept.kind != kind or ("compare" in told) != ("compare" in kept.settings):
        return False
    absent = object()
    pairs = zip(told.get("compare", [{}]), kept.settings.get("compare", [{}]), strict=True)
    return all(
        {**kept.settings, **own}.get(key, absent) == value
        for one, own in pairs
        for key, value in {**told, **one}.items()
        if key != "compare"
    )


def check(names: Sequence[str]) -> int:
    runs = store.read()
    found, left_out, started = [] if names else unrecorded(runs), {}, time.process_time()
    for name, kept in runs.items():
        if names and not any(one in name for one in names):
            continue
        reason = impossible(kept.kind)
        if reason:
            left_out[name] = reason
            continue
        found += changes(name, kept)[1]
    _tell(found)
    for name, reason in left_out.items():
        print(f"not made: {name}: {reason}")
    print(f"{len(runs)} runs recorded, {len(left_out)} not made; {time.process_time() - started:.1f} CPU seconds")
    return 1 if found else 0


def _tell(found: list[str]) -> None:
    print("\n".join(found) if found else "every fingerprint is as recorded")
    if found:
        runs = Counter(line.partition(": ")[0] for line in found)
        print(f"\n{len(runs)} runs differ in {len(found)} places.")


def record(afresh: bool) -> int:
    """Settings that the last record writes out stay as they are there; `afresh` takes today's defaults."""
    before, after, found = store.read(), {}, []
    for name, (kind, told) in cases().items():
        reason, old = impossible(kind), before.get(name)
        if reason:
            print(f"not made, {'kept as it was' if old else 'left out'}: {name}: {reason}")
            after |= {name: old} if old else {}
            continue
        keep = old is not None and not afresh and _as_listed(old, kind, told)
        try:
            settings = dict(old.settings) if old and keep else written_out(kind, told)
            new = make(kind, settings)
        except Exception as error:
            print(f"nothing is recorded: {name} does not run: {type(error).__name__}: {error}")
            return 1
        settings |= {key: new.scenario[key] for key in not_written(settings, new.scenario)}
        after[name] = Kept(kind, settings, new.prints)
        found += _against(name, after[name], old, new)
    found += [f"{name}: is gone" for name in before if name not in after]
    store.write(after)
    _tell(found)
    print(f"{len(after)} runs, {store.RECORD.stat().st_size / 1e3:.0f} kB in {store.RECORD}")
    return 0


def _against(name: str, now: Kept, old: Kept | None, new: Outcome) -> Iterator[str]:
    if old is None:
        yield f"{name}: is new"
        return
    for key in (*old.settings, *(key for key in now.settings if key not in old.settings)):
        if old.settings.get(key) != now.settings.get(key):
            yield f"{name}: setting {key} is {now.settings.get(key)!r}, was {old.settings.get(key)!r}"
    yield from (f"{name}: {one}" for one in differences(now.kind, new, old.prints))


def show(name: str, folder: Path) -> int:
    kept = store.read()[name]
    made = make(kept.kind, kept.settings)
    folder.mkdir(parents=True, exist_ok=True)
    for part, table in made.tables.items():
        table.to_csv(folder / f"{part}.csv", index=True, index_label="row")
    for part, tree in made.prints.items():
        if "trail" not in tree:
            (folder / f"{part}.txt").write_text("".join(f"{key} = {value!r}\n" for key, value in tree.items()))
    print(f"{', '.join(sorted(path.name for path in folder.iterdir()))} in {folder}")
    return 0


def main(words: list[str]) -> int:
    match words:
        case ["check", *names]:
            return check(names)
        case ["record"] | ["record", "--afresh"]:
            return record(words[-1] == "--afresh")
        case ["show", name, folder]:
            return show(name, Path(folder))
        case ["list"]:
            print("\n".join(cases()))
            return 0
        case _:
            print(usage)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
