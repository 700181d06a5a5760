"""How many kernels are compiled on the pretended H200 with a cache that was carried there, by what is launched.

`python tests/kits/warm_hits.py CACHE WHAT`: WHAT is `norms`, or a run of `pretend_runs`. A process of its own.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pretend_gpu
import torch
import triton

pretend_gpu.install()

from backend.ops import for_device  # noqa: E402  (the device has to be there before the backend looks for it)


def norms() -> None:
    """One of those that the benchmark launches, at another number of rows."""
    x, weight = (torch.ones(*shape, 4096, device="cuda", dtype=torch.bfloat16) for shape in ((7,), ()))
    for_device("cuda").rms_norm(x, weight, 1e-5, torch.ones_like(x))


def live(name: str) -> None:
    from pretend_runs import RUNS, answers

    answers("cuda", {"dtype": "bf16", **RUNS[name]})


if __name__ == "__main__":
    made: list[tuple[str, bool]] = []

    def told(*, src: Any, cache_hit: bool, **_: Any) -> None:
        made.append((src.name, cache_hit))

    knobs: Any = triton.knobs
    knobs.cache.dir, knobs.compilation.listener = sys.argv[1], told
    norms() if sys.argv[2] == "norms" else live(sys.argv[2])
    print(json.dumps({"hit": [n for n, hit in made if hit], "compiled": [n for n, hit in made if not hit]}))
