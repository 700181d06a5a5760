"""Scenarios small enough to run live on a CPU in a fraction of a second, and records made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sim import scenario
from sim.engine.batch import Outcome, Shape
from sim.results.steps import STEP_COLUMNS
from sim.validate.live import LiveRuns, run_live
from sim.validate.record import Decision, Record

REQUESTS = {
    "arrival_s": [0.0, 0.004, 0.009, 0.02, 0.03, 0.2],
    "prompt_tokens": [40, 20, 33, 50, 18, 40],
    "output_tokens": [12, 8, 10, 3, 14, 5],
}

AT_ONCE = {"arrival_s": [0.0] * 6, "output_tokens": [30, 30, 30, 3, 14, 5]}
"""All come at once, so that no decision depends on how fast the machine is; nine blocks are too few for them."""


def trace_file(folder: Path, **columns: Any) -> Path:
    path = folder / "few.csv"
    pd.DataFrame(REQUESTS | columns).to_csv(path, index=False)
    return path


def plan(trace: Path, **settings: Any) -> scenario.Scenario:
    """Small enough pools and budgets that requests wait, are cut and are preempted."""
    fixed = {
        "model": "tiny-llama",
        "executor": "live",
        "device": "cpu",
        "trace": str(trace),
        "kv_blocks": 11,
        "engine.max_num_seqs": 4,
        "engine.max_num_batched_tokens": 48,
        "engine.max_model_len": 96,
    }
    return scenario.build({}, fixed | settings)


def live(trace: Path, repeats: int = 1, **settings: Any) -> LiveRuns:
    return run_live(plan(trace, **settings), repeats)


def hand_record() -> Record:
    """Two requests: the first alone for two steps, idle, then the second for two.

    Step ends at 1.0, 1.5, 4.0, 4.25 s; request 0 came at 0, request 1 at 3.0 s.
    """
    requests = pd.DataFrame({"arrival_s": [0.0, 3.0], "prompt_tokens": [4, 6], "output_tokens": [2, 2]})
    seconds, start_s = [1.0, 0.5, 1.0, 0.25], [0.0, 1.0, 3.0, 4.0]
    ends_s = [1.0, 1.5, 4.0, 4.25]
    steps = pd.DataFrame({name: np.zeros(4, kind) for name, kind in STEP_COLUMNS.items()})
    steps = steps.assign(step=range(4), repeats=1, start_s=start_s, end_s=ends_s)
    entries = [((0, 4, 0),), (), ((1, 6, 0),), ()]
    joined = [(), ((0, 4),), (), ((1, 6),)]
    finished, first = [(), (0,), (), (1,)], [(0,), (), (1,), ()]
    decisions = [
        Decision(at, 1, start_s[at], entries[at], joined[at], (), (), (), (), (), (), (), first[at], finished[at])
        for at in range(4)
    ]
    shapes = [Shape(((4, 0),)), Shape((), 1, 5), Shape(((6, 0),)), Shape((), 1, 7)]
    results = [Outcome([one], [0.75 * one], 0.25 * one) for one in seconds]
    runs = np.array([[0, 0, 1], [1, 2, 3]], np.int64)
    return Record(requests, np.array([0.0, 3.0]), steps, decisions, shapes, results, runs)
