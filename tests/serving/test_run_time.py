"""The work of a run grows with its requests and not faster: counted, so that no other process can disturb it.

Seconds are compared in `tests/benchmarks/test_speed.py`, which also sees what the interpreter does inside one call.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pandas as pd
import pytest

import sim
from sim import api, scenario
from traces.rows import from_frame
from traces.schema import Trace

SIM = str(Path(next(iter(sim.__path__))))
REQUESTS = 50
SHORT = {"engine.max_num_seqs": 8, "kv.blocks": 300, "engine.max_model_len": 512}
CASES: dict[str, dict[str, Any]] = {
    "chunked": {},
    "static": {"policy": "static", "allocator": "contiguous-max"},
    "sjf, prefix": {"policy": "sjf", "allocator": "prefix"},
    "priority, preempting": {"policy": "priority", "kv.blocks": 40},
    "synchronous": {"engine.async_scheduling": False},
    "drafts": {"policy": "speculative", "speculation.k": 3, "speculation.acceptance": 0.6},
    "closed loop": {"concurrency": 6},
    "replicas": {"replicas": 3, "router": "least-outstanding"},
}


def instructions(plan: Any, trace: Trace) -> int:
    """Instructions of the interpreter in the simulator's own files."""
    count = 0

    def inside(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        count += event == "opcode"
        return inside

    def called(frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(SIM):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return inside

    before = sys.gettrace()
    sys.settrace(called)
    try:
        api.simulate(plan, trace=trace)
    finally:
        sys.settrace(before)
    return count


def repeated(copies: int, gap_s: float) -> Trace:
    """The same requests again and again, each copy `gap_s` after the one before."""
    rng = np.random.default_rng(1)
    rows = pd.DataFrame(
        {
            "arrival_s": np.sort(rng.uniform(0.0, gap_s / 2, REQUESTS)),
            "prompt_tokens": rng.integers(20, 300, REQUESTS),
            "output_tokens": rng.integers(1, 30, REQUESTS),
        }
    )
    parts = [rows.assign(arrival_s=rows["arrival_s"] + gap_s * copy) for copy in range(copies)]
    return from_frame(pd.concat(parts, ignore_index=True), name=f"{copies} copies")


@pytest.mark.parametrize("gap_s", [100.0, 0.0], ids=["one copy after the other", "all at once"])
@pytest.mark.parametrize("case", CASES)
def test_the_work_is_linear_in_the_requests(case: str, gap_s: float) -> None:
    plan = scenario.build({}, {**SHORT, **CASES[case]})
    api.simulate(plan, trace=repeated(1, gap_s))  # imports, and tables made once
    one, four = (instructions(plan, repeated(copies, gap_s)) for copies in (1, 4))
    assert one > 20_000
    assert four < 4.6 * one, f"{four / one:.2f} times the work for four times the requests"
