"""A sum of products is that of numpy, and the same on any number of cores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE_S

from sim.results.sums import dot

ROOT = Path(__file__).resolve().parents[2]
LONG = """
import numpy as np
from sim.results.sums import dot
rng = np.random.default_rng(0)
print(dot(rng.normal(size=55_000), rng.normal(size=55_000)).hex())
"""


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 100)), max_size=50))
def test_short_ones_are_numpys(items: list[tuple[float, int]]) -> None:
    values, weights = np.array([value for value, _ in items]), np.array([weight for _, weight in items], np.int32)
    assert dot(values, weights) == float(np.dot(values, weights))


def test_long_ones_leave_nothing_out() -> None:
    values = np.arange(25_001.0)
    assert dot(values, values) == pytest.approx(float((values**2).sum()), rel=1e-12)


def test_long_ones_do_not_depend_on_how_many_threads_there_are() -> None:
    told = set()
    for threads in ("1", "2", "3"):
        done = subprocess.run(
            [sys.executable, "-c", LONG],
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE_S,
        )
        told.add(done.stdout)
    assert len(told) == 1
