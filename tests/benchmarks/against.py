"""How fast this tree is beside another commit, run in turns: `python -m tests.benchmarks.against --commit REV`.

Or beside what is installed for another Python, `--python PYTHON`: a compiled build, say (CONTRIBUTING.md).

Each version replays the same loads in processes of its own, one after the other, so that whatever else the machine does
meets both. What is compared is CPU time: of the process from before the run to its end, trace and imports left out. It
knows the product by `sim.api` alone, so that the two may be laid out differently.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TRACES = ROOT.parent / "shared" / "traces"
AZURE = TRACES / "azure-llm-2023" / "AzureLLMInferenceTrace_conv.csv"
CHAT: dict[str, Any] = {"workload.trace": str(AZURE) if AZURE.exists() else "chatbot_arena.jsonl"}
BUSY: dict[str, Any] = {**CHAT, "workload.limit": 6000, "workload.sessions": False}
SHARING: dict[str, Any] = {"workload.trace": "chatbot_arena.jsonl", "workload.limit": 6000, "workload.rate": 40.0}
LOADS: dict[str, dict[str, Any]] = {
    "default": CHAT,
    "prefixes": {**SHARING, "allocator.name": "prefix", "kv.blocks": 6000},
    "drafts": {
        **BUSY,
        "policy.name": "speculative",
        "speculation.drafter": "eagle",
        "speculation.k": 3,
        "workload.limit": 1500,
    },
    "8 replicas": {**BUSY, "workload.rate": 100.0, "replicas": 8, "router.name": "least-outstanding"},
    "short of memory": {**BUSY, "workload.rate": 40.0, "kv.blocks": 4000, "engine.max_model_len": 16384},
}
ONE = """
import gc, json, sys, time
from sim import api
settings = json.loads(sys.argv[1])
small = {**settings, "workload.limit": 20}
api.run(**small)
def cpu_s(settings):
    gc.collect()
    before_s = time.process_time()
    result = api.run(**settings)
    return time.process_time() - before_s, result
cpu_s(small)
whole_s, result = cpu_s(settings)
speed = result.summary.get("simulator", {})
print(json.dumps({
    "cpu_s": whole_s, "loop_s": speed.get("cpu_s", speed.get("wall_s")), "steps": speed.get("steps"),
    "end_s": result.summary["duration_s"], "completed": result.summary["requests"]["completed"],
    "build": speed.get("build", "pure Python"),
}))
"""


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """The commit in a worktree of its own, which is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "other"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--detach", "-q", path, commit], check=True)
        try:
            yield path
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", path], check=True)


def once(place: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """One replay in a fresh process by the product in a tree, or by the one that is installed for a Python."""
    tree, python = (place, sys.executable) if place.is_dir() else (None, str(place))
    environment = {**os.environ, "PYTHONPATH": str(tree or ""), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    words = [python, "-c", ONE, json.dumps(settings)]
    # With -c Python looks in the folder that it starts in first, which is to have no product where one is installed.
    folder = tree or Path(python).parent
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{place}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def installed_for(text: str) -> Path:
    """A Python for which the product is installed."""
    path = Path(text).absolute()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} is no Python; it must be that of a virtual environment")
    return path


def compared(name: str, here: Path, other: Path, rounds: int) -> float:
    """Print a line about a load; returns the other's median seconds over ours: above 1, this tree is faster."""
    ours, theirs = [], []
    for at in range(rounds):
        turns = ((here, ours), (other, theirs)) if at % 2 else ((other, theirs), (here, ours))
        for tree, taken in turns:
            taken.append(once(tree, LOADS[name]))
    ratios = {}
    for key in ("cpu_s", "loop_s"):
        mine, other_s = ([one[key] for one in taken] for taken in (ours, theirs))
        if None in mine or None in other_s:
            continue
        ratios[key] = (min(other_s) / min(mine), statistics.median(other_s) / statistics.median(mine))
    alike = all(ours[0][key] == theirs[0][key] for key in ("steps", "end_s", "completed"))
    least, median = ratios["cpu_s"]
    loop = "  loop {:5.3f} / {:5.3f}".format(*ratios["loop_s"]) if "loop_s" in ratios else ""
    spread = max(one["cpu_s"] for one in ours) / min(one["cpu_s"] for one in ours) - 1
    print(
        f"{name:16} CPU {least:5.3f} / {median:5.3f}{loop}  {min(one['cpu_s'] for one in ours):6.2f} s, "
        f"spread {spread:4.0%}{'' if alike else '  OTHER RESULT'}",
        flush=True,
    )
    return median


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.against", description=__doc__)
    other_one = parser.add_mutually_exclusive_group(required=True)
    other_one.add_argument("--commit", help="the other version")
    other_one.add_argument("--python", type=installed_for, help="the Python for which the other one is installed")
    parser.add_argument("--rounds", type=int, default=5, help="replays of each load by each version")
    parser.add_argument("--loads", default=",".join(LOADS), help=f"of {', '.join(LOADS)}")
    parser.add_argument("--least", type=float, default=0.0, help="exit code 1 where a median is below this ratio")
    asked = parser.parse_args()
    names = [name.strip() for name in asked.loads.split(",")]
    if unknown := [name for name in names if name not in LOADS]:
        parser.error(f"unknown load {unknown[0]!r}; known: {', '.join(LOADS)}")
    print(
        f"the speed of this tree over that of {asked.commit or asked.python} (above 1: faster here), "
        f"least / median of {asked.rounds}"
    )
    with nullcontext(asked.python) if asked.python else checked_out(asked.commit) as other:
        medians = [compared(name, ROOT, other, asked.rounds) for name in names]
    if min(medians) < asked.least:
        raise SystemExit(f"{min(medians):.3f} is below {asked.least}")


if __name__ == "__main__":
    main()
