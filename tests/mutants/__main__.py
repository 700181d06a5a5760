"""Would the tests notice? Exit 1 where a mutant survives, 2 where the list of mutants is out of date."""

from __future__ import annotations

import argparse
import sys
import time

from .planting import BROKEN, LIST, SURVIVED, copied, listed, planted


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="mutants whose file and name hold this text")
    parser.add_argument("--list", action="store_true", help="tell the names and plant nothing")
    parser.add_argument("--sound", action="store_true", help="first see that the tests pass where nothing is planted")
    parser.add_argument("--limit-s", type=int, default=600, help="seconds of computing from which on a mutant hangs")
    asked = parser.parse_args()
    mutants = listed(LIST.read_text(encoding="utf-8"))
    chosen = [one for one in mutants if asked.only in f"{one.file}: {one.name}"]
    if not chosen:
        parser.error(f"no mutant has {asked.only!r} in file and name; --list tells them")
    stale = 0
    for mutant in chosen:
        try:
            planted(mutant)
        except (LookupError, SyntaxError) as error:
            print(f"out of date: {error}", flush=True)
            stale += 1
    if stale:
        return 2
    if asked.list:
        print("\n".join(f"{one.file}: {one.name}" for one in chosen))
        return 0
    survivors = []
    with copied() as copy:
        if asked.sound:
            tests = sorted({name for one in chosen for name in one.tests})
            verdict, told = copy.verdict(tests, 4 * asked.limit_s)
            if verdict != SURVIVED:
                print(f"nothing is planted, and the tests fail already: {told}")
                return 2
        for mutant in chosen:
            began_s = time.monotonic()
            with copy.holding(mutant):
                verdict, told = copy.verdict(mutant.tests, asked.limit_s)
            print(f"{verdict}: {mutant.file}: {mutant.name} ({time.monotonic() - began_s:.0f} s; {told})", flush=True)
            if verdict == BROKEN:
                return 2
            if verdict == SURVIVED:
                survivors.append(mutant.name)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed", *survivors, sep="\nsurvived: ")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
