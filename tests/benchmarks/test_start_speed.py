"""CPU seconds until a command answers. Out of the default run: `pytest tests/benchmarks --benchmark-only`.

Which modules a command imports is a test of the default run (tests/cli/test_start.py); here are the seconds of it.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Modules stay compiled, as those do that pip installed, also where Python is told to write nothing down: compiling
    them anew takes half as long as such a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path_factory.mktemp("compiled")))
        yield


def cpu_s(*words: object) -> float:
    """CPU seconds of a child process, the least of five runs; the first, which compiles modules, aside."""
    seconds = []
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *map(str, words)], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return min(seconds[1:])


def test_help(benchmark) -> None:
    """A tenth of a second is Python and click."""
    found = benchmark.pedantic(cpu_s, ("-m", "sim.cli", "--help"), rounds=1)
    benchmark.extra_info["cpu_s"] = round(found, 3)
    assert found < 0.15


FEW = "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{at / 10},{50 + 7 * at},{5 + at}\n" for at in range(10))
MANY = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 {at // 3600 % 24:02}:{at // 60 % 60:02}:{at % 60:02}.6805900,{50 + at % 700},{5 + at % 300}\n"
    for at in range(19_366)
)


@pytest.mark.parametrize("rows", [FEW, MANY], ids=["of ten", "of 19,366"])
def test_a_small_run(benchmark, tmp_path: Path, rows: str) -> None:
    """Ten requests of a file, all of which is looked at: at most 0.6 s, or on a slow machine what importing pandas
    takes one and a half times; no such run imports it."""
    trace = tmp_path / "some.csv"
    trace.write_text(rows)
    pandas_s = cpu_s("-c", "import pandas")
    words = ("-m", "sim.cli", "run", "--trace", trace, "--limit", 10, "--quiet")
    found = benchmark.pedantic(cpu_s, words, rounds=1)
    benchmark.extra_info |= {"cpu_s": round(found, 2), "times_pandas": round(found / pandas_s, 2)}
    assert found < max(0.6, 1.5 * pandas_s)
