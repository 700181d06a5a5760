"""The verdicts on benchmark rows: cliffs between neighbours, bars that are met or missed, and what is printed."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from backend.bench.attention import causal_flops
from backend.bench.cliff import CliffPoint, judge
from backend.bench.inputs import Heads
from backend.bench.record import ABSENT, MEASURED, BenchRow, Report, Stats
from backend.bench.verdict import MET, MISSED, NOT_MEASURED, bars, show
from traces.schema import InputError


def points(times: list[tuple[int, float, int]]) -> list[CliffPoint]:
    return [CliffPoint(work, 4096, work * 1000, seconds, parts) for work, seconds, parts in times]


@given(st.lists(st.integers(1, 500), min_size=2, max_size=9, unique=True), st.floats(0, 10), st.floats(0.01, 10))
def test_a_start_up_and_a_bandwidth_are_no_cliff(work: list[int], start: float, rate: float) -> None:
    told = judge(points([(one, start + rate * one, one % 3) for one in sorted(work)]))
    assert told.findings == ()
    assert max(told.fall, told.jump, told.switch_jump) < 1e-9


def test_cliffs_are_found() -> None:
    told = judge(points([(10, 10.0, 4), (11, 11.0, 4), (12, 24.0, 1), (13, 20.0, 1)]))
    assert told.jump == told.switch_jump == pytest.approx(24 / 11 / (12 / 11) - 1)
    assert told.fall == pytest.approx(1 - 20 / 24)
    assert told.findings == (
        "time grows by 100.0% beyond its bytes from 11 sequences of 4096 to 12 sequences of 4096, "
        "where the cut changes from 4 to 1 parts",
        "time falls by 16.7% from 12 sequences of 4096 to 13 sequences of 4096",
    )
    unswitched = judge(points([(10, 10.0, 4), (11, 14.0, 4)]))
    assert unswitched.switch_jump == 0.0 < unswitched.jump


def row(group: str, case: str, contender: str, median_s: float, **more: Any) -> BenchRow:
    ours = contender.startswith("ours")
    time = Stats(median_s, median_s, median_s, 5)
    return BenchRow(group=group, case=case, contender=contender, state=MEASURED, ours=ours, time=time, **more)


def gpu_report(name: str, slower: float = 1.0) -> Report:
    """A run that meets every bar; all of ours and the recorded step take `slower` times as long."""
    report = Report({"device_type": "cuda", "device": name, "small": False, "vllm_step_s": 1.2})
    gb = 2 * 10**9
    for cache, tb_per_s in (("bf16", 4.2), ("fp8", 3.6)):
        sizes = {"cache": cache, "sequences": 32, "context": 8192}
        best = gb / tb_per_s / 1e12
        report.rows += [
            row("decode", f"decode {cache}", "ours, block 16", best * slower, bytes=gb, sizes=sizes),
            row("decode", f"decode {cache}", "ours, planned before", best / 2, bytes=gb, sizes=sizes),
            row("decode", f"decode {cache}", "FlashInfer paged", best, bytes=gb, sizes=sizes),
        ]
    middle = {"cache": "bf16", "sequences": 8, "context": 4096}
    for contender, seconds in (("ours, block 16", 0.5), ("fa3-fwd", 1.0)):
        report.rows.append(row("decode", "middle", contender, seconds, bytes=10**8, sizes=middle))
    small = {"cache": "bf16", "sequences": 1, "context": 128}
    report.rows.append(row("decode", "small", "ours, block 16", 1.0, bytes=10**6, sizes=small))
    flops = causal_flops(Heads(32, 8, 128), 8192, 0)
    whole, chunk = ({"new_tokens": new, "past_tokens": past} for new, past in ((8192, 0), (512, 8192)))
    report.rows += [
        row("prefill", "prefill 8192", "ours, block 128", flops / 620e12 * slower, flops=flops, sizes=whole),
        row("chunk", "chunk", "ours, block 16", 1.0 * slower, sizes=chunk),
        row("chunk", "chunk", "fa3-fwd", 0.9, sizes=chunk),
        row("copy", "copy", "torch copy_", 1.0, bytes=4 * 10**12),
        row("step", "step", "ours, eager", 9.0, bytes=4 * 10**12, sizes={"sequences": 1}),
        row("step", "step", "ours, CUDA graph", 1.1 * slower, bytes=4 * 10**12, sizes={"sequences": 1}),
    ]
    report.cliffs["batch"] = {"fall": 0.01, "jump": 0.04 * slower, "switch_jump": 0.0, "points": 9, "findings": []}
    return report


def test_bars_are_met_missed_or_set_for_another_gpu() -> None:
    states = [bar.state for bar in bars(gpu_report("NVIDIA H200"))]
    assert states == [MET] * 10
    slow = {bar.name: bar for bar in bars(gpu_report("NVIDIA H200", 1.5))}
    missed = [name for name, bar in slow.items() if bar.state == MISSED]
    assert len(missed) == 8
    assert {name for name in slow if name not in missed} == {
        "decode time falls with more work",
        "the same where the cut changes",
    }
    assert slow["decode time over the best peer, from 64 MB on"].found == pytest.approx(1.5)
    assert slow["batch-1 step over vLLM's own"].found == pytest.approx(1.65 / 1.2)
    other = {bar.name: bar for bar in bars(gpu_report("NVIDIA H100 80GB HBM3"))}
    assert other["decode bf16, 1 GB of KV and more"].state == NOT_MEASURED
    assert other["decode bf16, 1 GB of KV and more"].found == pytest.approx(4.2)
    assert other["prefill 8192, first"].state == MET


def test_bars_without_their_cases_are_not_measured() -> None:
    empty = Report({"device_type": "cuda", "device": "NVIDIA H200", "small": False})
    assert {bar.state for bar in bars(empty)} == {NOT_MEASURED}
    alone = gpu_report("NVIDIA H200")
    alone.rows = [one for one in alone.rows if one.ours]
    told = {bar.name: bar for bar in bars(alone)}
    assert told["chunk 512 on 8192, speed over the best peer"].why == "no peer was measured beside ours"
    alone.environment = {**alone.environment, "vllm_step_s": None}
    told = {bar.name: bar for bar in bars(alone)}
    assert told["batch-1 step over vLLM's own"].why == "vLLM's own step was not told (--vllm-step-ms)"
    small = gpu_report("NVIDIA H200")
    small.environment = {**small.environment, "small": True}
    assert {bar.why for bar in bars(small)} == {"small shapes"}


def test_what_is_printed_says_what_is_missing() -> None:
    report = gpu_report("NVIDIA H200")
    report.rows.append(BenchRow(group="decode", case="decode bf16", contender="peer", state=ABSENT, reason="not here"))
    report.unfinished["swap 64"] = "3 s left, it wants 5 s"
    report.bars = [bar.as_dict() for bar in bars(report)]
    console = Console(width=150, record=True, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    with console.file:
        show(report, console)
    text = console.export_text()
    assert "peer: absent: not here (decode bf16)" in text
    assert "not run: swap 64: 3 s left" in text
    assert "prefill 8192, then" in text
    assert "4,200" in text


def test_a_report_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        Report({}).write(tmp_path / "none" / "bench.json")
    report = Report({}, rows=[row("x", "x", "ours", 1.0, error=math.inf)])
    with pytest.raises(ValueError, match="JSON compliant"):
        report.write(tmp_path / "bench.json")
    assert list(tmp_path.iterdir()) == []
