"""The benchmark: inputs are what they say, timing is fair, the file survives, bars judge; small shapes on a CPU."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from patience import PATIENCE_S, wait_for

from backend.bench import attention as bench_attention
from backend.bench import cliff as bench_cliff
from backend.bench import model as bench_model
from backend.bench import peers as bench_peers
from backend.bench import run as bench
from backend.bench.cliff import CliffLine, _beside_switches, cuts
from backend.bench.clock import LateError, within
from backend.bench.inputs import BenchPool, BenchSequences, Heads
from backend.bench.record import ABSENT, FAILED, MEASURED, SKIPPED, ClockLog, Report, Stats
from backend.bench.timing import AbsentError, Bench, BenchTask, Check, Offer
from backend.bench.verdict import NOT_MEASURED
from backend.cache.kvcache import KvCache
from backend.kernels.prefill_attention import attention_reference
from backend.model.loader import random_model
from backend.model.weights import Weight
from backend.ops import for_device

CPU = torch.device("cpu")
QUICK = ",".join(group for group in bench.GROUPS if group != "generate")
"""transformers takes seconds to import."""


def small_bench(left_s: float = PATIENCE_S, **more: Any) -> Bench:
    """A small one on the CPU."""
    made = Bench(CPU, for_device("cpu"), True, time.monotonic() + left_s, Report({"device_type": "cpu"}), **more)
    made.target_s = 0.0
    return made


# ---- the whole command ----------------------------------------------------------------------------------------------


def test_a_small_run_measures_every_group_and_no_bar(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = CliRunner().invoke(bench.main, ["--device", "cpu", "--small", "--only", QUICK, "--out", str(out)])
    assert done.exit_code == 0, done.output
    told = json.loads(out.read_text())
    assert told["schema"] == "foretoken-bench/1"
    assert told["finished"] is True
    assert told["unfinished"] == {}
    for key in ("date", "command", "device", "git_commit", "source_sha256", "python", "packages"):
        assert key in told["environment"]
    assert told["environment"]["packages"]["torch"] == torch.__version__
    groups = {row["group"] for row in told["rows"]}
    assert groups == set(bench.GROUPS) - {"generate"}
    for row in told["rows"]:
        check_row(row)
    for group in groups - {"copy"}:
        assert any(row["ours"] and row["state"] == MEASURED for row in told["rows"] if row["group"] == group), group
    assert len(told["bars"]) == 10
    assert {bar["state"] for bar in told["bars"]} == {NOT_MEASURED}
    assert {bar["why"] for bar in told["bars"]} == {"no GPU"}
    assert set(told["cliffs"]) == {"batch at 64", "context of 2"}
    assert "not measured" in done.output
    assert "FlashInfer paged: absent" in done.output
    assert list(tmp_path.iterdir()) == [out]


def check_row(row: dict[str, Any]) -> None:
    """The schema of a row, and numbers that can be."""
    assert row["state"] in (MEASURED, ABSENT, SKIPPED), row  # on a CPU nothing fails
    if row["state"] != MEASURED:
        assert row["reason"]
        assert row["time"] is None
        return
    taken = row["time"]
    assert 0 < taken["low_s"] <= taken["median_s"] <= taken["high_s"] < 60
    assert taken["samples"] >= 3
    assert row["bytes"] + row["flops"] + row["tokens"] > 0
    if row["bytes"]:
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / 1e9 / taken["median_s"])
        assert row["gb_per_s"] < 10_000
    if row["group"] in ("decode", "prefill", "chunk", "standard", "norms", "gemm", "step"):
        assert row["error"] is not None
        assert 0 <= row["error"] < 0.06


def test_without_a_budget_everything_is_unfinished_and_told(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    arguments = ["--device", "cpu", "--small", "--budget-s", "0", "--out", str(out)]
    done = CliRunner().invoke(bench.main, arguments)
    assert done.exit_code == 0
    told = json.loads(out.read_text())
    assert told["finished"] is False
    assert set(told["unfinished"]) == {case.name for case in bench.cases(True)}
    assert told["rows"] == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--device", "cpu", "--only", "decode,flops"], "bench: --only names 'flops'; known are copy, decode"),
        (["--device", "cpu", "--only", ","], "bench: --only names none; known are copy, decode"),
        (["--device", "abacus"], "bench: device 'abacus' is unknown"),
        (["--device", "cuda:99"], "bench: device 'cuda:99'"),
        (["--device", "cpu", "--small", "--only", "copy", "--out", "{}/none/b.json"], "bench: cannot write"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_measured(
    arguments: list[str], sentence: str, tmp_path: Path
) -> None:
    done = CliRunner().invoke(bench.main, [one.format(tmp_path) for one in arguments])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(sentence)


def test_names_are_unique_and_the_bars_cases_come_first() -> None:
    for small in (False, True):
        names = [case.name for case in bench.cases(small)]
        assert len(set(names)) == len(names)
        assert names[0] == "copy"
    full = [case.name for case in bench.cases(False)]
    early = (
        "decode bf16 32x8192",
        "decode fp8 32x16384",
        "prefill 8192",
        "step",
        "chunk 512 on 8192",
        "cliff, batch at 4096",
    )
    assert max(full.index(name) for name in early) < 14


def test_a_killed_run_leaves_what_was_measured(tmp_path: Path) -> None:
    out, made = tmp_path / "bench.json", small_bench()

    def killed(bench: Bench) -> None:
        raise KeyboardInterrupt

    listed = [*bench.chosen("copy", True), bench.BenchCase("decode", "killed", killed)]
    with pytest.raises(KeyboardInterrupt):
        bench.run(made, listed, out, lambda line: None)
    told = json.loads(out.read_text())
    assert [row["case"] for row in told["rows"]] == ["copy"]
    assert told["finished"] is False


def test_a_case_that_fails_is_told_and_the_next_one_runs(tmp_path: Path) -> None:
    def broken(bench: Bench) -> None:
        raise RuntimeError("no such kernel\nand more")

    made = small_bench()
    bench.run(made, [bench.BenchCase("decode", "broken", broken), *bench.chosen("copy", True)], None, lambda line: None)
    assert made.report.unfinished["broken"].startswith("RuntimeError: no such kernel")
    assert [row.case for row in made.report.rows] == ["copy"]
    assert not made.report.finished


# ---- contenders -----------------------------------------------------------------------------------------------------


def test_whoever_cannot_take_part_is_a_row_with_its_reason() -> None:
    expected = torch.arange(4.0, dtype=torch.float64)
    calls: list[str] = []

    def right(turn: int) -> tuple[torch.Tensor, str]:
        calls.append("right")
        return expected.float(), "and more"

    def absent() -> Any:
        raise AbsentError("takes no such cache")

    def missing() -> Any:
        raise ModuleNotFoundError("No module named 'flash'")

    def raising(turn: int) -> Any:
        raise ValueError("bad shape\nlong trace")

    def late() -> Any:
        signal.raise_signal(signal.SIGALRM)

    made = small_bench(ready_s=PATIENCE_S)
    offers = [
        Offer("right", lambda: right, ours=True),
        Offer("off", lambda: lambda turn: expected * 1.1),
        Offer("nan", lambda: lambda turn: expected / 0.0),
        Offer("absent", absent),
        Offer("missing", missing),
        Offer("raising", lambda: raising),
        Offer("late", late),
    ]
    task = BenchTask(group="x", case="x", check=Check(lambda out: out, expected, 0.01), rounds=5)
    rows = {row.contender: row for row in made.compare(task, offers)}
    assert list(rows) == [offer.name for offer in offers]
    assert {name: row.state for name, row in rows.items()} == {
        "right": MEASURED, "off": FAILED, "nan": FAILED, "absent": ABSENT, "missing": ABSENT, "raising": FAILED,
        "late": FAILED,
    }  # fmt: skip
    assert rows["off"].reason == "is 0.1 off the float64 reference, 0.01 is allowed"
    assert rows["absent"].reason == "takes no such cache"
    assert rows["raising"].reason == "ValueError: bad shape"
    assert rows["right"].error == 0.0
    assert made.report.rows == list(rows.values())
    again = {row.contender: row for row in made.compare(task, offers)}
    assert again["late"].state == ABSENT
    assert "given up" in again["late"].reason


def test_the_limit_on_getting_ready_is_lifted_afterwards() -> None:
    with pytest.raises(LateError, match="not ready within"), within(0.01):
        time.sleep(PATIENCE_S)
    before = signal.getsignal(signal.SIGALRM)
    with within(PATIENCE_S):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0.0
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before


class OrderClock:
    """A clock that ticks once at each mark and notes what happens."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self._now = 0

    def hold(self, seconds: float) -> None:
        self.events.append("hold")

    def cool(self) -> None:
        self.events.append("cool")

    def mark(self) -> int:
        self._now += 1
        return self._now

    def seconds(self, begin: int, end: int) -> float:
        return float(end - begin)

    def wait(self) -> None:
        """Nothing is under way."""


def test_contenders_take_turns_on_rotating_sets() -> None:
    clock = OrderClock()
    made = small_bench(clock=clock)
    made.target_s = 60.0
    seen: list[tuple[str, int]] = []

    def offer(name: str) -> Offer:
        return Offer(name, lambda: lambda turn: seen.append((name, turn)))

    rows = made.compare(BenchTask(group="x", case="x", sets=3, rounds=6), [offer("a"), offer("b")])
    timed = seen[2:]  # after each has run once to get ready
    assert [turn for _, turn in timed] == [at % 3 for at in range(12)]
    firsts = [timed[at][0] for at in range(0, 12, 2)]
    assert firsts == ["a", "b"] * 3
    assert all(sorted(name for name, _ in timed[at : at + 2]) == ["a", "b"] for at in range(0, 12, 2))
    for row in rows:
        assert row.time == Stats(1.0, 1.0, 1.0, 6)
    assert clock.events.count("hold") == 12


def test_stats_are_median_and_percentiles() -> None:
    told = Stats.of([float(at) for at in range(100, -1, -1)])
    assert told == Stats(50.0, 10.0, 90.0, 101)
    assert told.spread == pytest.approx(0.8)
    assert Stats.of([2.0]) == Stats(2.0, 2.0, 2.0, 1)


def test_a_step_moves_the_bytes_of_the_weights_and_the_context() -> None:
    spec = bench_model.spec_of(True)
    weights = random_model(spec, CPU).weights
    there: list[Weight] = [weights.final_norm, weights.lm_head]
    for layer in weights.layers:
        there += [layer.input_norm, layer.qkv, layer.output, layer.post_norm, layer.mlp.gate_up, layer.mlp.down]
    cache = KvCache.allocate(spec, 1, 16)
    token_bytes = cache.bytes // 32  # the null block and one more, of 16 tokens
    rows = 2 * spec.hidden * 4
    assert bench_model.step_bytes(spec, 2, 100) == sum(one.nbytes for one in there) + rows + 2 * 100 * token_bytes


def test_generating_runs_live_and_tells_that_transformers_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    made = small_bench()
    bench_model.generate(made, 2, 5, 3)
    ours, theirs = made.report.rows
    assert (ours.contender, ours.state, theirs.state) == ("ours, live", MEASURED, ABSENT), ours.reason
    assert ours.time is not None
    assert ours.time.samples == bench_model.WAVES
    assert ours.tokens == 6
    assert 0 < ours.time.median_s < bench_model.WAVE_S


class FakeFlashInfer:
    """FlashInfer's wrappers by their documentation: starts, pages and last page lengths say what is attended."""

    def __init__(self, room: torch.Tensor, layout: str, use_tensor_cores: bool = False) -> None:
        assert layout == "NHD"

    def plan(self, *given: Any, causal: bool = False, sm_scale: float, **types: Any) -> None:
        *queries, starts, pages, last, _heads, _kv_heads, _dim, page_tokens = given
        self.starts, self.pages, self.last, self.page_tokens = starts.tolist(), pages.long(), last, page_tokens
        self.queries = queries[0].tolist() if queries else list(range(len(starts)))
        self.scale = sm_scale
        assert types["kv_data_type"] is not None

    def run(self, q: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        keys: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        for at, begin in enumerate(self.starts[:-1]):
            pages = self.pages[begin : self.starts[at + 1]]
            tokens = (len(pages) - 1) * self.page_tokens + int(self.last[at])
            for stored, found in zip(cache, (keys, values), strict=True):
                found.append(stored[pages].flatten(0, 1)[:tokens].double())
        out, _ = attention_reference(q, keys, values, self.queries, scale=self.scale)
        return out.to(q.dtype)


def test_flashinfer_is_told_the_same_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(
        BatchDecodeWithPagedKVCacheWrapper=FakeFlashInfer, BatchPrefillWithPagedKVCacheWrapper=FakeFlashInfer
    )
    monkeypatch.setattr(bench_peers, "_module", lambda bench, name: module)
    monkeypatch.setattr(bench_peers, "WORKSPACE_BYTES", 8)
    made = small_bench()
    bench_attention.decode(made, Heads(4, 2, 16), "fp32", 2, 37, compiled=False)
    bench_attention.prefill(made, Heads(4, 2, 16), "fp32", 5, 40, compiled=False)
    told = [one for one in made.report.rows if one.contender == "FlashInfer paged"]
    assert [one.state for one in told] == [MEASURED, MEASURED], told


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")
def test_the_kernels_own_cut_is_used_and_told() -> None:
    pool = BenchPool(Heads(4, 2, 16), BenchSequences.room(1, 256, 1), torch.float32, CPU)
    inputs = BenchSequences(pool, 1, 256, 1, 1)
    out, _ = bench_attention._planned(inputs, 16)(0)
    check = Check(lambda out: out[0], inputs.expected(1, 16), 1e-5)
    assert check.error(out) < 1e-5
    assert cuts(pool, inputs.q, inputs.kv_lens) > 1
    assert cuts(pool, inputs.q, torch.ones(1, dtype=torch.int32)) == 1
    places = _beside_switches(small_bench(), pool, CliffLine("context of 1", ((1, 64), (1, 512))))
    assert places
    assert all(rows == 1 and context % 64 == 0 for rows, context in places)
    for (_, before), (_, after) in zip(places[::2], places[1::2], strict=True):
        sides = [cuts(pool, inputs.q, torch.full((1,), side, dtype=torch.int32)) for side in (before, after)]
        assert after == before + 64
        assert sides[0] != sides[1]


# ---- where it ran ---------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nvidia-smi that tells two readings and one of a GPU that does not tell, and waits to be ended."""
    path = tmp_path / "nvidia-smi"
    path.write_text(
        "#!/bin/sh\necho '1980, 2619, 650.5, 60'\necho '[N/A], 1, 2, 3'\necho '1700, 2619, 700.5, 62'\nexec sleep 600\n"
    )
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return path


def test_clocks_are_logged_where_nvidia_smi_is(fake_smi: Path) -> None:
    log, begun = ClockLog(), time.monotonic()
    log.start()
    wait_for(lambda: log.since(begun).get("celsius", [0, 0, 0])[2] == 62)
    told = log.since(begun)
    log.stop()
    assert told["sm_mhz"] == [1700, 1840, 1980]
    assert told["power_w"] == [650.5, 675.5, 700.5]
    assert log.since(time.monotonic()) == {}


def test_without_nvidia_smi_nothing_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    log = ClockLog()
    log.start()
    assert log.since(0.0) == {}
    log.stop()


# ---- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_small_shapes_on_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = CliRunner().invoke(bench.main, ["--device", "cuda", "--small", "--only", QUICK, "--out", str(out)])
    assert done.exit_code == 0, done.output
    told = json.loads(out.read_text())
    assert told["unfinished"] == {}
    assert told["environment"]["l2_bytes"] > 0
    wrong = [row for row in told["rows"] if row["ours"] and row["state"] != MEASURED]
    assert wrong == []


def test_the_full_shapes_fit_an_80_gb_gpu() -> None:
    shapes = bench_attention.shapes(False)
    token_bytes = {cache: 2 * 8 * 128 * (2 if cache == "bf16" else 1) for cache in ("bf16", "fp8", "int8")}
    for cache, sequences, context in shapes.decode:
        one = BenchSequences.room(sequences, context, 1) * token_bytes[cache]
        assert max(2 * one, one + 200 * 2**20) < 10 * 2**30
    for line in bench_cliff.lines(False):
        assert max(BenchSequences.room(rows, context, 2) for rows, context in line.points) * 4096 < 10 * 2**30
