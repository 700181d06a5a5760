"""Does our engine decide as the installed one? Random scenarios, drawn anew by seed; exit 1 where one differs."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kits"))

from oracle_cases import KINDS, compared

from sim.engines.environment import Installed
from sim.engines.pipe import SchedulerProcess
from sim.validate.schedules.verdicts import described


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description=__doc__)
    parser.add_argument("engine", help="such as vllm==0.33.0; `sim engine` makes its environment")
    parser.add_argument("--scenarios", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="the first one's")
    parser.add_argument("--kind", choices=KINDS, default="plain", help="what the scenarios are about")
    asked = parser.parse_args()
    installed = Installed.of(asked.engine)
    version = ".".join(installed.version.split(".")[:2])
    process = SchedulerProcess(installed.command, str(installed))
    steps, different, started = 0, 0, time.process_time()
    for seed in range(asked.seed, asked.seed + asked.scenarios):
        comparison, count = compared(seed, version, process, asked.kind)
        steps += count
        if comparison.first_difference is not None:
            different += 1
            print(f"{asked.kind} seed {seed}: {described(comparison.first_difference)}", flush=True)
    last = asked.seed + asked.scenarios - 1
    seconds = time.process_time() - started
    print(
        f"{asked.engine}, {asked.kind}, seeds {asked.seed} to {last}: {asked.scenarios - different} of "
        f"{asked.scenarios} identical in {steps:,} steps ({seconds:.0f} CPU s of ours)"
    )
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
