"""Calibration on a device of known laws: coefficients recovered, bad points found, interruptions survived."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bench_kit import LawBench
from hypothesis import given, settings
from hypothesis import strategies as st
from profile_kit import EFFICIENCY, GPU, MODEL, llama_profile, meta

from calibrate import device as devices
from calibrate import harness
from calibrate import measure as measuring
from calibrate.cases import BETWEEN, DENSITIES, GRID, STEPS, Case, Range, cases, chosen
from calibrate.check import suspects
from calibrate.derive import derive
from calibrate.evaluate import kind_of, shape_of
from calibrate.fit import best_forms
from calibrate.run import Calibration, Job, Settings, calibrate, journal_path, prepare
from sim.catalog import load_gpu
from sim.cost.profile import Profile, read, write
from sim.cost.profiled import Profiled
from sim.cost.tables import Table, Value
from sim.engine.batch import Shape
from traces.schema import InputError

CPU = devices.Target(torch.device("cpu"), "cpu", "a law")
LIMITS = Range(256, 16, 1024, 16 * 1024)


@pytest.fixture(autouse=True, scope="module")
def _no_repeats() -> Iterator[None]:
    """The laws answer at once and would be asked seven times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "SHORT_REPEATS", 1)
        yield


def job(*, passes: int = 2, ratio: int = 4) -> Job:
    made = prepare(Settings(gpu="cpu", tokens=256, rows=16, context=1024, budget_s=1e6), CPU)
    density = replace(DENSITIES[0], passes=passes, repeats=1, ratio=ratio, random=24)
    (name, subject), *_ = made.subjects.items()
    return replace(made, density=density, subjects={name: replace(subject, cases=cases(made.limits, density, 0))})


def calibrated(made: Job, bench: LawBench, out: Path, *, resume: bool = False) -> Calibration:
    return calibrate(
        made,
        lambda _spec, _limits: bench,
        out,
        name="law",
        date="2026-01-01",
        resume=resume,
        progress=lambda _what, _done, _total: None,
    )


def bench(**how: object) -> LawBench:
    spec = next(iter(job().subjects.values())).spec
    return LawBench(spec, **how)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    return calibrated(job(), bench(), tmp_path_factory.mktemp("exact") / "p")


def test_a_law_without_noise_is_recovered(exact: Calibration) -> None:
    """Everything but attention over prompts (a square of their length) is straight, and is found to the digit."""
    accuracy = exact.profile.meta.accuracy
    for name in ("gemm", "decode_attention", "elementwise", "sampling", "copy", "swap", "launch", "host"):
        assert accuracy[name].mean < 1e-4, name
        assert set(accuracy[name].form.split(", ")) == {"linear"}
    assert accuracy["prefill_attention"].mean < 0.03
    for kind, error in exact.profile.meta.step_accuracy.items():
        assert error.mean < 0.02, kind
    assert suspects(exact.profile) == []


def test_the_profile_says_what_it_is(exact: Calibration, tmp_path: Path) -> None:
    told = exact.profile.meta
    assert (told.gpu, told.device, told.kind, told.synchronous) == ("cpu", "a law", "measured", True)
    assert told.software["torch"] == torch.__version__
    assert len(told.software["kernels_sha256"]) == 16
    assert "fitted" in told.grid["cases"]
    write(exact.profile, tmp_path / "p")
    again = read(tmp_path / "p")
    spec = next(iter(job().subjects.values())).spec
    shape = Shape(decodes=5, decode_context=5 * 300, decode_longest=300)
    (mine_s,), _ = Profiled(spec, exact.profile.gpu(), exact.profile).span_s(shape, 1)
    (read_s,), _ = Profiled(spec, again.gpu(), again).span_s(shape, 1)
    assert read_s == pytest.approx(mine_s, rel=1e-4)
    assert "roofline" not in {term.source for term in Profiled(spec, again.gpu(), again).explain(shape).values()}


def test_noise_is_told_and_averages_out(tmp_path: Path) -> None:
    found = calibrated(job(passes=3), bench(noise=0.05), tmp_path / "p").profile.meta
    assert 0.01 < found.accuracy["gemm"].mean < 0.06
    assert 0.015 < (found.accuracy["gemm"].repeat_mean or 0.0) < 0.06
    assert found.step_accuracy["all"].mean < 0.04
    assert abs(found.step_accuracy["all"].bias) < 0.02


def test_uneven_batches_are_priced_by_their_longest_too(tmp_path: Path) -> None:
    found = calibrated(job(passes=1), bench(uneven=0.7), tmp_path / "p").profile
    assert found.meta.step_accuracy["uneven_decode"].mean < 0.02
    even = replace(found, tables={**found.tables, "decode_attention": _even_only(found.tables["decode_attention"])})
    spec = next(iter(job().subjects.values())).spec
    shape = Shape(decodes=8, decode_context=8 * 100, decode_longest=800)
    with_longest, mean_only = (Profiled(spec, one.gpu(), one).explain(shape) for one in (found, even))
    assert with_longest["decode attention"].seconds > 1.5 * mean_only["decode attention"].seconds


def _even_only(table: Table) -> Table:
    rows = [row for row in table.rows() if row["max_context_tokens"] == row["mean_context_tokens"]]
    return Table.of("decode_attention", rows)


def test_a_planted_bad_point_is_found(tmp_path: Path) -> None:
    def spoil(table: str, row: dict[str, object]) -> float:
        return 4.0 if table == "gemm" and (row["k"], row["n"], row["tokens"]) == (256, 512, 64) else 1.0

    found = suspects(calibrated(job(), bench(spoil=spoil, noise=0.02), tmp_path / "p").profile)
    assert [(one.table, one.where) for one in found] == [
        ("gemm", "dtype fp32, weight_dtype fp32, k 256, n 512, tokens 64")
    ]
    assert found[0].error == pytest.approx(-0.75, abs=0.1)


def test_an_interrupted_calibration_goes_on(tmp_path: Path) -> None:
    made, out, undisturbed = job(), tmp_path / "p", bench(noise=0.1)
    whole, whole_runs = calibrated(made, undisturbed, tmp_path / "whole"), undisturbed.runs
    first = bench(noise=0.1, stop_after=60)
    with pytest.raises(KeyboardInterrupt):
        calibrated(made, first, out)
    journal = journal_path(out)
    assert journal.exists()
    assert not out.exists()
    with pytest.raises(InputError, match=r"from an interrupted run; go on with --resume"):
        calibrated(made, bench(), out)
    kept = journal.read_bytes()
    journal.write_bytes(kept + b'{"model": "tiny-ll')  # killed in the middle of a line
    second = bench(noise=0.1)
    found = calibrated(made, second, out, resume=True)
    assert first.runs < second.runs + first.runs < 1.3 * whole_runs
    assert journal.read_bytes().startswith(kept)
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    keys = [(line["model"], line["case"], line["measured_in"]) for line in lines[1:]]
    assert len(keys) == len(set(keys)) == made.density.passes * (len(next(iter(made.subjects.values())).cases) + 1)
    assert {name: len(table) for name, table in found.profile.tables.items()} == {
        name: len(table) for name, table in whole.profile.tables.items()
    }
    with pytest.raises(InputError, match=r"was begun with seed = 0, and now it is 1"):
        calibrated(replace(made, settings=replace(made.settings, seed=1)), bench(), out, resume=True)
    journal.write_text("nonsense\n")
    with pytest.raises(InputError, match=r"journal.jsonl:1: not a line of a calibration's journal"):
        calibrated(made, bench(), out, resume=True)


def test_the_budget_binds_in_the_first_pass(tmp_path: Path) -> None:
    made = job(passes=3)
    late = replace(made, settings=replace(made.settings, budget_s=0.0))
    out = tmp_path / "p"
    found = calibrated(late, bench(), out)
    assert len(journal_path(out).read_text().splitlines()) == 2  # the header, and the very first case
    assert "gemm" in found.profile.tables
    assert any("of 3 passes are whole" in note for note in found.profile.meta.notes)


# ---- what is measured ---------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(16, 2048), st.integers(1, 64), st.integers(64, 4096), st.sampled_from(DENSITIES), st.integers(0, 99))
def test_cases_stay_in_range_and_are_told_apart(
    tokens: int, rows: int, context: int, density: object, seed: int
) -> None:
    limits = Range(min(tokens, context), rows, context, rows * context)
    made = cases(limits, density, seed)  # type: ignore[arg-type]
    assert made == cases(limits, density, seed)  # type: ignore[arg-type]
    assert len({case.name for case in made}) == len(made)
    assert GRID in {case.role for case in made} <= {GRID, BETWEEN, STEPS}
    for case in made:
        assert limits.holds(case)
        assert all(new >= 1 and past >= 0 for new, past in case.prefills)
        assert all(length >= 2 for length in case.decodes)
        assert len(case.decodes) <= rows
    fitted = {replace(case, role="") for case in made if case.role == GRID}
    assert not fitted & {replace(case, role="") for case in made if case.role != GRID}


def test_tile_edges_are_measured_on_both_sides() -> None:
    sizes = {case.prefills[0][0] for case in cases(LIMITS, DENSITIES[0], 0) if case.role == GRID and case.prefills}
    assert {16, 17, 64, 65, 128, 129} <= sizes


def test_the_budget_chooses_how_fine_the_grid_is() -> None:
    def seconds(measured: list[Case], density: object) -> float:
        return float(len(measured) * density.passes)  # type: ignore[attr-defined]

    assert chosen(LIMITS, 1e9, 0, seconds)[0] == DENSITIES[0]
    coarse, expected_s = chosen(LIMITS, 0.0, 0, seconds)
    assert coarse == DENSITIES[-1]
    assert expected_s > 0.0


def test_steps_keep_their_shape_and_kind() -> None:
    row = {"prefills": "512+0;7+30", "decodes": 3, "decode_context_tokens": 30, "max_context_tokens": 12, "graph": 0}
    assert shape_of(row) == Shape(((512, 0), (7, 30)), 3, 30, decode_longest=12)
    assert kind_of(row) == "mixed"
    assert kind_of({**row, "prefills": "-"}) == "decode"
    assert kind_of({**row, "prefills": "-", "max_context_tokens": 25, "graph": 1}) == "uneven_decode_graph"
    with pytest.raises(InputError, match="prefills '512' must be new"):
        shape_of({**row, "prefills": "512"})


def test_forms_are_chosen_by_what_predicts_left_out_points() -> None:
    """Of attention over prompts, the square root along new tokens; of what is straight, straight lines."""
    sizes = [2**power for power in range(4, 13)]
    rows = [{**_HEADS, "sequences": 1, "past_tokens": 0, "new_tokens": n, "us": 12.0 + 1e-4 * n * n} for n in sizes]
    table = Table.of("prefill_attention", rows)
    assert best_forms(table, GPU, EFFICIENCY)[-1] in ("sqrt", "efficiency")
    straight = Table.of("prefill_attention", [{**row, "us": 5.0 + 0.1 * row["new_tokens"]} for row in rows])  # type: ignore[operator]
    assert best_forms(straight, GPU, EFFICIENCY) == ["linear", "linear", "linear"]


_HEADS = {"dtype": "bf16", "kv_dtype": "bf16", "heads": 32, "kv_heads": 8, "head_dim": 128, "window": 0}


# ---- derived profiles ---------------------------------------------------------------------------------------------


def test_a_derived_profile_scales_by_regime_and_says_so() -> None:
    measured, goal = llama_profile(1.3), load_gpu("h200")
    made = derive(measured, goal, name="h200-from-h100", date="2026-01-01")
    assert (made.meta.kind, made.meta.gpu, made.meta.accuracy) == ("derived", "h200", {})
    assert "Not checked against any measurement." in made.meta.notes
    cost = Profiled(MODEL, goal, made)
    shape = Shape(decodes=16, decode_context=16 * 4096)
    before, after = Profiled(MODEL, GPU, measured).explain(shape), cost.explain(shape)
    assert {term.source for name, term in after.items() if name != "sampling"} <= {"derived"}
    memory = GPU.memory_bytes_per_s / goal.memory_bytes_per_s
    assert after["decode attention"].seconds == pytest.approx(memory * before["decode attention"].seconds, rel=0.1)
    large = Shape(prefills=((4096, 0),))
    flops = GPU.bf16_flops_per_s / goal.bf16_flops_per_s
    before, after = Profiled(MODEL, GPU, measured).explain(large), cost.explain(large)
    assert after["mlp up"].seconds == pytest.approx(flops * before["mlp up"].seconds, rel=0.02)


def test_a_derived_profile_is_checked_where_it_can_be() -> None:
    slower = derive(llama_profile(1.3), load_gpu("h200"), name="a", date="2026-01-01")
    truth = Profile(replace(slower.meta, name="truth", kind="measured"), slower.tables)
    halved = Profile(truth.meta, {"gemm": _times(truth.tables["gemm"], 2.0)})
    made = derive(llama_profile(1.3), load_gpu("h200"), name="b", date="2026-01-01", check=halved)
    assert made.meta.accuracy["gemm"].bias == pytest.approx(-0.5, abs=1e-3)
    assert "Checked against truth." in made.meta.notes


def _times(table: Table, factor: float) -> Table:
    rows = [{key: value for key, value in row.items() if key != "origin"} for row in table.rows()]
    return Table.of(table.spec.name, [{**row, "us": factor * float(row["us"])} for row in rows])


def test_deriving_what_cannot_be_is_refused(exact: Calibration) -> None:
    with pytest.raises(InputError, match="whose data sheet scales to no GPU"):
        derive(exact.profile, load_gpu("h200"), name="a", date="2026-01-01")
    with pytest.raises(InputError, match="is of h100 already"):
        derive(llama_profile(), GPU, name="a", date="2026-01-01")
    with pytest.raises(InputError, match="is of h100, and cannot check one of h200"):
        derive(llama_profile(), load_gpu("h200"), name="a", date="2026-01-01", check=llama_profile())
    fp32 = Table.of("gemm", [{"dtype": "bf16", "weight_dtype": "bf16", "k": 4096, "n": 4096, "tokens": 1, "us": 90.0}])
    with pytest.raises(InputError, match="no row of profile 'made-up' is of a type that t4 computes"):
        derive(Profile(meta(), {"gemm": fp32}), load_gpu("t4"), name="a", date="2026-01-01")


def test_whole_steps_and_types_without_units_are_not_scaled() -> None:
    """A T4 computes no bf16: of two tables rows in fp16 are left, and it is said how many went."""
    step: dict[str, Value] = {
        "model": "llama-3.1-8b", "dtype": "fp16", "weight_dtype": "fp16", "kv_dtype": "fp16", "graph": 0,
        "prefills": "64+0", "decodes": 0, "decode_context_tokens": 0, "max_context_tokens": 0, "device_us": 900.0,
        "host_us": 5.0,
    }  # fmt: skip
    product: dict[str, Value] = {"k": 4096, "n": 4096, "tokens": 1, "us": 90.0}
    kinds: list[dict[str, Value]] = [{"dtype": kind, "weight_dtype": kind, **product} for kind in ("fp16", "bf16")]
    tables = {"gemm": Table.of("gemm", kinds), "steps": Table.of("steps", [step])}
    made = derive(Profile(meta(), tables), load_gpu("t4"), name="a", date="2026-01-01")
    assert [(name, len(table)) for name, table in made.tables.items()] == [("gemm", 1)]
    assert "1 rows of types that t4 has no units for were left out." in made.meta.notes


@pytest.mark.parametrize("asked", [{"context": 32}, {"tokens": -1}, {"rows": -1}])
def test_a_grid_that_holds_no_case_is_refused(asked: dict[str, int]) -> None:
    with pytest.raises(
        InputError, match="--max-tokens and --max-rows must be at least 1, and --max-context at least 64"
    ):
        prepare(Settings(gpu="cpu", **asked), CPU)


def test_a_card_that_records_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("CUDA error: operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(harness, "CudaRecorder", lambda: None)
    here, live = SimpleNamespace(troubles=[]), SimpleNamespace(capture=fails)
    assert harness.Harness._captured(here, live, LIMITS) is None  # type: ignore[arg-type]
    assert here.troubles == ["steps could not be captured as CUDA graphs: CUDA error: operation not permitted"]
