"""Our loop beside another simulator's, in turns: `python -m tests.benchmarks.yardsticks --peer PYTHON`.

PYTHON is that of a virtual environment with `ai-dynamo-runtime==1.6.1`: NVIDIA Dynamo's mocker, in Rust, with which the
driver in `../shared/yardstick` replays the same traces, its cache of as many blocks. What is told are ratios of the
medians of CPU seconds of both loops, since seconds alone say nothing on a machine that others use. The loads without a
yardstick are compared with one of our own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.against import AZURE, ROOT, TRACES, installed_for, once

YARDSTICK = ROOT.parent / "shared" / "yardstick" / "drive_dynamo.py"
MOONCAKE = TRACES / "mooncake-fast25" / "conversation_trace.jsonl.gz"
# The peer is an engine without a server before it.
CHAT: dict[str, Any] = {"workload.trace": str(AZURE), "kv.blocks": 30_000, "front_end.name": "off"}
ALONE: dict[str, Any] = {**CHAT, "workload.rate": 5.0, "workload.limit": 19_200}
H200: dict[str, Any] = {**CHAT, "gpu": "h200"}
PEERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "azure": (CHAT, ["azure", "19366", "1", "azure"]),
    "azure at half the rate": ({**CHAT, "workload.rate_scale": 0.5}, ["azure", "19366", "2", "half"]),
    "mooncake, prefixes": (
        {
            "workload.trace": str(MOONCAKE),
            "front_end.name": "off",
            "allocator.name": "prefix",
            "kv.blocks": 30_000,
            "engine.max_model_len": 131_072,
        },
        ["mooncake", "0", "1", "mooncake", "8192", "256", "30000", "1", "1"],
    ),
}
"""Name -> our settings, and the driver's arguments."""
OWN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "64 replicas / one": (
        {**ALONE, "workload.rate": 320.0, "replicas": 64, "router.name": "least-outstanding"},
        ALONE,
    ),
    "imported profile / roofline": ({**H200, "cost.profile": "h200-llama-3.1-8b"}, H200),
}
"""Name -> two settings of ours: for as many requests."""


def ours(settings: dict[str, Any], place: Path = ROOT) -> float:
    """CPU seconds of our loop, in this tree or as it is installed for a Python."""
    return float(once(place, settings)["loop_s"])


def theirs(peer: str, arguments: list[str], folder: Path) -> float:
    """CPU seconds of the yardstick's replay."""
    environment = {**os.environ, "PEERS_DIR": str(folder)}
    done = subprocess.run(
        [peer, str(YARDSTICK), *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{YARDSTICK.name}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return float(json.loads(line.removeprefix("RESULT "))["loop_cpu_s"])


def told(name: str, mine: Callable[[], float], other: Callable[[], float], rounds: int) -> None:
    """Print the ratio of one load."""
    pairs = [(mine(), other()) for _ in range(rounds)]
    own_s, other_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    least, most = min(own / peer for own, peer in pairs), max(own / peer for own, peer in pairs)
    print(
        f"{name:28} {own_s / other_s:5.2f} ({least:.2f} to {most:.2f})  {own_s:.2f} and {other_s:.2f} CPU s", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.yardsticks", description=__doc__)
    parser.add_argument(
        "--peer", default="", help="the Python that has the yardstick's package; without it, ours alone"
    )
    parser.add_argument(
        "--python",
        type=installed_for,
        default=ROOT,
        help="take for ours what is installed for this Python (a compiled build, say) instead of this tree",
    )
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    for path in (AZURE, MOONCAKE, YARDSTICK):
        if not path.exists():
            sys.exit(f"needs {path.relative_to(ROOT.parent)} beside the checkout")
    print(f"CPU seconds of our loop over the other's, medians of {asked.rounds} turns (least to most)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        shutil.copy(AZURE, folder / "data" / "conv.csv")
        shutil.copy(MOONCAKE, folder / "data" / MOONCAKE.name)
        for load, (settings, arguments) in PEERS.items() if asked.peer else ():
            mine, peer = partial(ours, settings, asked.python), partial(theirs, asked.peer, arguments, folder)
            told(load, mine, peer, asked.rounds)
    for load, (settings, base) in OWN.items():
        told(load, partial(ours, settings, asked.python), partial(ours, base, asked.python), asked.rounds)


if __name__ == "__main__":
    main()
