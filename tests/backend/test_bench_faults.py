"""What goes wrong within the benchmark: no time, no memory, a contender or a device that fails; each is a line."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from backend.bench import attention as bench_attention
from backend.bench import cliff as bench_cliff
from backend.bench import model as bench_model
from backend.bench import run as bench_run
from backend.bench.record import FAILED, SKIPPED, Report
from backend.bench.timing import NO_TIME, Bench, BenchTask, Offer
from backend.ops import for_device

TASK = BenchTask(group="copy", case="copy")


def small_bench(left_s: float = 1e4) -> Bench:
    made = Bench(torch.device("cpu"), for_device("cpu"), True, time.monotonic() + left_s, Report({}))
    made.target_s = 0.0
    return made


def test_without_time_contenders_are_skipped_and_lines_unfinished() -> None:
    late = small_bench(left_s=-1.0)
    (row,) = late.compare(TASK, [Offer("ours", lambda: lambda _: None, ours=True)])
    assert (row.state, row.reason) == (SKIPPED, NO_TIME)
    shapes = bench_attention.shapes(True)
    line = bench_cliff.lines(True)[0]
    bench_cliff.check(late, shapes, line)
    assert late.report.unfinished[f"cliff, {line.name}"] == f"no time left after 0 of {len(line.points)} points"


def test_time_that_ends_while_contenders_get_ready_is_told() -> None:
    bench = small_bench()

    def build() -> Any:
        def call(_: int) -> None:
            bench.deadline_s = 0.0

        return call

    (row,) = bench.compare(TASK, [Offer("ours", build, ours=True)])
    assert (row.state, row.reason) == (SKIPPED, NO_TIME)


def test_a_line_ends_at_the_point_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def measure(_bench: Bench, _pool: object, sequences: int, *_: object) -> Any:
        asked.append(sequences)
        return SimpleNamespace(time=None, state=FAILED)

    monkeypatch.setattr(bench_cliff, "_measure", measure)
    bench_cliff.check(small_bench(), bench_attention.shapes(True), bench_cliff.lines(True)[0])
    assert len(asked) == 1


def test_memory_is_counted_and_given_back_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, told, freed = small_bench(), iter((100, 350)), []
    bench.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: next(told))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: next(told))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(1))
    assert bench._peak(lambda _: None) == 250
    bench._forget(Offer("peer", lambda: lambda _: None), torch.OutOfMemoryError("no room"))
    assert freed == [1]


def test_a_device_that_is_lost_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure\nmore")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    bench, said = small_bench(), []
    bench.device, bench.clock = torch.device("cuda"), SimpleNamespace(wait=lost)  # type: ignore[assignment]
    monkeypatch.setattr(bench_run.ClockLog, "start", lambda _: None)
    cases = [bench_run.BenchCase("copy", name, lambda _: None) for name in ("first", "second", "third")]
    bench_run.run(bench, cases, None, said.append)
    why = "the device was lost in 'first': CUDA error: unspecified launch failure"
    assert bench.report.unfinished == {"second": why, "third": why}
    assert len(said) == 1
    assert not bench.report.finished


def test_a_live_run_that_fails_is_a_failed_row() -> None:
    def waves() -> Any:
        yield 1.0
        raise ValueError("no such block")

    row = bench_model._told(small_bench(), TASK, Offer("ours, live", lambda: bench_model._never, ours=True), waves())
    assert (row.state, row.reason) == (FAILED, "ValueError: no such block")
    with pytest.raises(AssertionError, match="timed by the run itself"):
        bench_model._never(0)


def test_a_peer_that_stops_early_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SimpleNamespace(generate=lambda prompts, **_: prompts)
    model.eval = lambda: model
    there = SimpleNamespace(LlamaConfig=lambda **_: None, LlamaForCausalLM=lambda _: model)
    monkeypatch.setitem(sys.modules, "transformers", there)
    waves = bench_model._transformers(small_bench(), bench_model.spec_of(True), 2, 16, 4)
    with pytest.raises(RuntimeError, match="generated 0 tokens instead of 4"):
        next(waves)
