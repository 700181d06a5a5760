"""`python -m tests.fuzz`: random scenarios for so many minutes, until one law of the many is broken too often."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .case import Case
from .check import LAWS, Verdict, check, chosen, said
from .draw import draw
from .found import FOLDER, write_test
from .minimise import minimise


class Statistics:
    """How many scenarios ran, were refused, and had which value of which dimension."""

    def __init__(self) -> None:
        self.ran = self.refused = 0
        self.of: Counter[str] = Counter()
        self.ran_with: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()

    def add(self, case: Case, verdict: Verdict) -> None:
        told = set(dimensions(case))
        self.of.update(told)
        if verdict.refused:
            self.refused += 1
            self.reasons["".join("#" if letter.isdigit() else letter for letter in verdict.refused)[:90]] += 1
        else:
            self.ran += 1
            self.ran_with.update(told)

    def lines(self) -> Iterator[str]:
        """All of it, a line for each dimension."""
        yield f"{self.ran + self.refused} scenarios: {self.ran} ran, {self.refused} were refused with a sentence"
        by_key: dict[str, list[str]] = {}
        for name in sorted(self.of):
            key, _, value = name.partition("=")
            by_key.setdefault(key, []).append(f"{value} {self.ran_with[name]}/{self.of[name]}".strip())
        yield "dimension: value ran/drawn"
        yield from (f"  {key}: {', '.join(values)}" for key, values in by_key.items())
        yield "most frequent refusals"
        yield from (f"  {count} x {reason}" for reason, count in self.reasons.most_common(8))


def dimensions(case: Case) -> Iterator[str]:
    """What a scenario has of each dimension: settings by value, and of its requests what kinds there are."""
    for key, value in case.settings.items():
        yield f"{key}={value if isinstance(value, str | bool | int) and key != 'kv.blocks' else 'set'}"
    rows = case.rows
    yield f"prices={'constant' if case.cost else 'roofline'}"
    kinds: dict[str, Any] = {
        "ties": len({row.arrival_s for row in rows}) < len(rows),
        "sessions": any(row.after >= 0 for row in rows),
        "branching sessions": len({row.after for row in rows if row.after >= 0}) < sum(row.after >= 0 for row in rows),
        "thinking": any(row.think_s for row in rows),
        "no thinking": any(row.after >= 0 and not row.think_s for row in rows),
        "samples": any(row.samples > 1 for row in rows),
        "prefixes": any(row.prefix for row in rows) and not case.token_ids,
        "token ids": any(row.prefix for row in rows) and case.token_ids,
        "priorities": any(row.priority for row in rows),
        "own acceptance": any(row.acceptance is not None for row in rows),
        "no times": case.timeless,
        "one request": len(rows) == 1,
    }
    yield from (f"requests={name}" for name, there in kinds.items() if there)


def report(case: Case, verdict: Verdict, seed: int, folder: Path, seconds: float) -> None:
    """Make each failure small, write it down, and say where."""
    for law, text in verdict.broken:
        small = minimise(case, lambda one, law=law: bool(said(one, law)), seconds=seconds)
        told = said(small, law) or text
        path = write_test(small, law, told, seed, folder)
        print(f"seed {seed} breaks {law}: {told[:300]}\n  written to {path}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 where a law was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="the first seed; scenario n is that of seed + n")
    parser.add_argument("--count", type=int, default=0, help="stop after so many scenarios")
    parser.add_argument(
        "--laws",
        default="",
        help=f"by name, with commas: {', '.join(LAWS)}; by default those "
        "of one run, spans, and two in five of the others",
    )
    parser.add_argument(
        "--most", type=int, default=3, help="write so many failures of one law down, and count the others"
    )
    parser.add_argument("--shrink", type=float, default=60.0, help="seconds to make a failure small")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where failures are written")
    asked = parser.parse_args(arguments)
    names = [name for name in asked.laws.split(",") if name]
    if unknown := set(names) - set(LAWS):
        parser.error(f"unknown laws {', '.join(sorted(unknown))}; known: {', '.join(LAWS)}")
    statistics = Statistics()
    try:
        _go(asked, names, statistics)
    except KeyboardInterrupt:
        print("stopped", flush=True)
    print("\n".join(statistics.lines()))
    print(f"broken: {dict(statistics.broken) or 'nothing'}")
    return 1 if statistics.broken else 0


def _go(asked: argparse.Namespace, names: list[str], statistics: Statistics) -> None:
    started = told = time.monotonic()
    seed = asked.seed
    while time.monotonic() < started + 60 * asked.minutes and (not asked.count or seed < asked.seed + asked.count):
        case = draw(seed)
        verdict = check(case, names or chosen(seed))
        statistics.add(case, verdict)
        new = [one for one in verdict.broken if statistics.broken[one[0]] < asked.most]
        statistics.broken.update(law for law, _ in verdict.broken)
        report(case, Verdict(broken=tuple(new)), seed, asked.out, asked.shrink)
        seed += 1
        if time.monotonic() > told + 30:
            told = time.monotonic()
            minutes = (told - started) / 60
            print(
                f"{minutes:5.1f} min, next seed {seed}: {statistics.ran} ran, {statistics.refused} refused, "
                f"broken {dict(statistics.broken) or 'nothing'}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
