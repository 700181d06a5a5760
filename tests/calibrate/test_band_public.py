"""Bands beside real servers' runs, each by figures that leave its own card's tables out; where figures are from.

`pytest tests/calibrate/test_band_public.py -sq` prints what docs/band.md and docs/accuracy.md tell. No figure comes
from a server's run, so that all runs here are judged by a band that was made without them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from importer_kit import RTX_PRO_6000

from calibrate.importers.build import import_profile
from sim import api
from sim.catalog import load_gpu, load_model
from sim.cost import errors
from sim.cost.capacity import kv_capacity
from sim.cost.efficiency import Efficiency
from sim.cost.errors import DECODE_ATTENTION, NORMAL_P90, PREFILL_ATTENTION
from sim.cost.interpolation import PriceGrid
from sim.cost.kernels import Kernels, guide_of
from sim.cost.lookup import forms_of, points_of
from sim.cost.profile import Profile
from sim.cost.profiled import Profiled
from sim.cost.roofline import Roofline
from sim.cost.step import StepCost
from sim.cost.terms import PRODUCTS
from sim.engine.batch import Shape
from sim.results.band import step_errors
from sim.results.terms import StepTerms
from sim.scenario import Scenario, load
from sim.serving.hooks import NO_HOOKS, Hooks
from sim.serving.run import simulate
from sim.specs.parallel import Parallel
from sim.study.band import with_band

pytestmark = pytest.mark.shared

FOLDERS = {"h100": "h100", "a100-80": "a100", "l40s": "l40s", "b200": "b200"}
NEAREST = {"h100": "a100-80", "a100-80": "h100", "l40s": "a100-80", "b200": "h100"}
"""Whose constants would stand in for a card that had no tables."""
Floats = npt.NDArray[np.float64]


def say(text: str) -> None:
    sys.stdout.write(f"\n{text}")


def leave_out(monkeypatch: pytest.MonkeyPatch, card: str) -> None:
    """Of every figure but those that rest on nothing else, what was found on this card."""
    left = {
        source: {
            kind: figure._replace(found={name: pair for name, pair in figure.found.items() if name != card})
            if set(figure.found) - {card}
            else figure
            for kind, figure in kinds.items()
        }
        for source, kinds in errors.CLASSES.items()
    }
    monkeypatch.setattr(errors, "CLASSES", left)


def rows_of(table: pd.DataFrame) -> Iterator[Any]:
    return iter(table.itertuples(index=False))


# ---- coverage -------------------------------------------------------------------------------------------------------


def common_error(cost: StepCost, *spans: tuple[Shape, int]) -> float:
    """Of steps of these shapes, so many of each."""
    terms = StepTerms(cost, [(at, shape, repeats) for at, (shape, repeats) in enumerate(spans)], False)
    return step_errors([(terms, terms.spent()[1])]).common


@pytest.mark.parametrize("source", ["fitted", "imported"])
def test_tpot_of_86_runs_of_qwen3_32b(shared: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in test_cost_public: the mean TPOT at a fixed concurrency, where all users wait: it moves as steps do."""
    table = pd.read_csv(shared / "measured/silicon_h100_qwen3_32b_vllm/silicon.csv")
    table = table[table.gemm_quant_mode != "fp8"]
    model, gpu = load_model("qwen3-32b"), load_gpu("h100")
    found = import_profile([shared / "measured/h100_kernels"], "h100").profile if source == "imported" else None
    costs: dict[int, StepCost] = {
        tp: Profiled(model, gpu, found, parallel=Parallel(tp)) if found else Roofline(model, gpu, parallel=Parallel(tp))
        for tp in (2, 4, 8)
    }
    leave_out(monkeypatch, "h100")
    off, widths = [], []
    for row in rows_of(table):
        users, prompt, output, tp = int(row.batch_size), int(row.isl), int(row.osl), int(row.tp_size)
        if users * (prompt + output) > kv_capacity(model, gpu, parallel=Parallel(tp)).tokens:
            continue
        cost = costs[tp]
        decode, one = Shape(decodes=users, decode_context=users * (prompt + output // 2)), Shape(((prompt, 0),))
        (step_s,), host_s = cost.span_s(decode, 1)
        (prompt_s,), _ = cost.span_s(one, 1)
        predicted_s = step_s + host_s + (users - 1) / output * prompt_s
        off.append(math.log(predicted_s / (row.silicon_tpot_ms / 1e3)))
        # Of spans of one repeat each is explained as it is; so many prompts come for 50 decode steps.
        prompts = max(1, round(50 * (users - 1) / output))
        widths.append(common_error(cost, *[(decode, 1)] * 50, *[(one, 1)] * prompts))
    errors_of, sigma = np.array(off), np.array(widths)
    inside = int((np.abs(errors_of) <= NORMAL_P90 * sigma).sum())
    scaled = float(np.sqrt(np.mean((errors_of / sigma) ** 2)))
    say(
        f"Band, Qwen3-32B on H100, {source}: TPOT of {inside} of {len(off)} runs inside, half width "
        f"{100 * NORMAL_P90 * sigma.mean():.1f} % in the mean, errors {scaled:.2f} of what it expects"
    )
    assert len(off) == 86
    assert inside >= 0.9 * 86
    assert NORMAL_P90 * sigma.mean() < 0.15  # a band that holds everything would say nothing


CASES = {
    "rtx-pro-6000": ("vllm_rtxpro6000_llama31_8b", {"engine.max_num_seqs": 128}),
    "rtx-4090": (
        "vllm_rtx4090_llama31_8b",
        {"engine.max_num_seqs": 256, "engine.max_model_len": 32768, "kv.blocks": 2588},
    ),
}


@pytest.mark.parametrize("card", CASES)
def test_two_servers_runs_whole(shared: Path, tmp_path: Path, card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 requests that vLLM 0.19 served, with its settings: by the op profile, and by another card's constants."""
    folder, own = CASES[card]
    case = shared / "measured" / folder
    sheet = tmp_path / "rtx-pro-6000.toml"
    sheet.write_text(RTX_PRO_6000)
    gpu = card if card == "rtx-4090" else str(sheet)
    found = import_profile([case / "op_profile"], gpu).profile
    model, spec = load_model("llama-3.1-8b"), load_gpu(gpu)
    real = pd.read_json(case / "requests.jsonl", lines=True)
    measured = {
        "ttft_s": real.first_token_ts - real.queued_ts,
        "tpot_s": (real.last_token_ts - real.first_token_ts) / (real.output_toks - 1),
        "e2e_s": real.last_token_ts - real.queued_ts,
    }
    leave_out(monkeypatch, card)
    asked = load(
        None,
        {
            "workload.trace": str(shared / "measured/vllm_rtxpro6000_llama31_8b/workload.blockhash.jsonl"),
            "model": "llama-3.1-8b",
            "gpu": gpu,
            "policy.name": "chunked",
            "allocator.name": "prefix",
            "engine.max_num_batched_tokens": 2048,
            **own,
        },
        allow_code=False,
    )
    for source, cost in (("imported", Profiled(model, spec, found)), ("roofline", Roofline(model, spec))):

        def replayed(scenario: Scenario, hooks: Hooks = NO_HOOKS, cost: StepCost = cost) -> api.Result:
            return simulate(scenario, hooks=replace(hooks, cost=cost))

        summary = with_band(replayed(asked), asked, replayed).summary
        inside, means = [], []
        for part, values in measured.items():
            for statistic, ends in summary["band"][part].items():
                value = values.mean() if statistic == "mean" else values.quantile(int(statistic[1:]) / 100)
                inside.append(ends["low"] <= value <= ends["high"])
                means += [inside[-1]] if statistic == "mean" else []
        ends, value = summary["band"]["e2e_s"]["mean"], summary["e2e_s"]["mean"]
        of = len(inside)
        say(
            f"Band, vLLM 0.19 on {card}, {source}: {sum(means)} of 3 means and {sum(inside)} of {of} means and "
            f"percentiles of TTFT, TPOT, E2E inside; mean E2E {100 * (ends['low'] / value - 1):+.0f} to "
            f"{100 * (ends['high'] / value - 1):+.0f} %"
        )
        assert all(means)
        assert sum(inside) >= 9


def test_an_engine_of_2023_is_outside(shared: Path) -> None:
    """Splitwise's single requests on A100 without CUDA graphs: what software does beside kernels is in no band."""
    table = pd.read_csv(shared / "measured/splitwise_llama2_70b_a100/perf_model.csv")
    keys = ["tensor_parallel", "batch_size", "prompt_size", "token_size"]
    table = table[table.batch_size == 1].groupby(keys)[["prompt_time", "token_time"]].median().reset_index()
    inside = {"prompts": 0, "tokens": 0}
    for row in rows_of(table):
        tp, prompt = int(row.tensor_parallel), int(row.prompt_size)
        cost = Roofline(load_model("llama-2-70b"), load_gpu("a100-80"), parallel=Parallel(tp), cuda_graphs=False)
        decode = Shape(decodes=1, decode_context=prompt + int(row.token_size) // 2)
        for kind, shape, ms in (
            ("prompts", Shape(((prompt, 0),)), row.prompt_time),
            ("tokens", decode, row.token_time),
        ):
            (device_s,), host_s = cost.span_s(shape, 1)
            width = NORMAL_P90 * common_error(cost, (shape, 1))
            inside[kind] += abs(math.log((device_s + host_s) * 1e3 / ms)) <= width
    say(f"Band, Splitwise on A100: {inside['prompts']} prompts and {inside['tokens']} tokens of {len(table)} inside")
    assert inside["prompts"] < len(table) / 2


# ---- where the figures are from -------------------------------------------------------------------------------------


def found_on(kind: str, source: str, card: str) -> tuple[float, float]:
    return errors.CLASSES[source][kind].found[card]


def spread(off: Floats, groups: Floats) -> tuple[float, float]:
    """(root mean square of the groups' mean errors, of what is left of each row)."""
    table = pd.DataFrame({"off": off, "group": groups})
    means = table.groupby("group").off.transform("mean")
    return float(np.sqrt((means**2).mean())), float(np.sqrt(((table.off - means) ** 2).mean()))


@pytest.mark.parametrize("card", FOLDERS)
def test_figures_of_another_cards_constants(shared: Path, card: str) -> None:
    folder, spec = shared / f"measured/{FOLDERS[card]}_kernels", load_gpu(card)
    gemm, prefill, decode = (
        pd.read_csv(folder / f"{name}_bf16.csv") for name in ("gemm", "context_attention", "generation_attention")
    )
    kernels = Kernels(spec, Efficiency.of(spec, fit=NEAREST[card]), "bf16", "bf16")
    floor_s = kernels.eff.prefill_attention_floor_s

    def heads(row: Any) -> tuple[int, int, int]:
        return int(row.num_heads), int(row.num_key_value_heads), int(row.head_dim)

    def against(table: pd.DataFrame, seconds: list[float]) -> Floats:
        off: Floats = np.log(np.array(seconds) / (table.latency_ms.to_numpy() / 1e3))
        return off

    off = against(gemm, [kernels.gemm_s(row.m, row.k, row.n) for row in rows_of(gemm)])
    its = Kernels(spec, Efficiency.of(spec), "bf16", "bf16")
    fitted = against(gemm, [its.gemm_s(row.m, row.k, row.n) for row in rows_of(gemm)])
    another, own = layer_error(gemm, off), layer_error(gemm, fitted)
    groups = gemm.groupby(["k", "n"]).ngroup().to_numpy(np.float64)
    assert (another, spread(off, groups)[1]) == pytest.approx(found_on(PRODUCTS, "roofline", card), rel=0.1)
    fit = Efficiency.of(spec).fit
    assert fit is not None
    mean = {one.name: one.mean_error for one in fit.operations}["gemm"]
    say(f"{card}: layers of four products {another:.3f} by {NEAREST[card]}'s constants, {own:.3f} by its own")
    assert own < 1.05 * mean
    keys = ["num_heads", "num_key_value_heads", "head_dim"]
    for kind, table, price in (
        (PREFILL_ATTENTION, prefill,
         lambda row: floor_s + kernels.prefill_attention(*heads(row)).launch_s(((row.isl, 0),), 0, row.batch_size)),
        (DECODE_ATTENTION, decode,
         lambda row: kernels.decode_attention(*heads(row)).seconds(row.batch_size, row.batch_size * (row.step + 1))),
    ):  # fmt: skip
        groups = table.groupby(keys).ngroup().to_numpy(np.float64)
        pair = spread(against(table, [price(row) for row in rows_of(table)]), groups)
        say(f"{card}: {kind} by {NEAREST[card]}'s constants {pair[0]:.3f}, {pair[1]:.3f} beside")
        assert pair == pytest.approx(found_on(kind, "roofline", card), rel=0.1)


def layer_error(gemm: pd.DataFrame, off: Floats) -> float:
    """Of four products drawn at one number of tokens, weighted by their time: the root mean square."""
    rng, drawn = np.random.default_rng(1), []
    for _, rows in gemm.assign(off=off).groupby("m"):
        if len(rows) < 8:
            continue
        each, ms = rows.off.to_numpy(), rows.latency_ms.to_numpy()
        for _ in range(300):
            chosen = rng.choice(len(rows), 4, replace=False)
            drawn.append(float((ms[chosen] * each[chosen]).sum() / ms[chosen].sum()))
    return float(np.sqrt(np.mean(np.square(drawn))))


def test_figures_of_points_held_out(shared: Path) -> None:
    """What an imported profile states, and what its class has for profiles that state nothing, are the same figures."""
    made: Profile = import_profile([shared / "measured/h100_kernels"], "h100").profile
    for kind, table in (
        (PRODUCTS, "gemm"),
        (PREFILL_ATTENTION, "prefill_attention"),
        (DECODE_ATTENTION, "decode_attention"),
    ):
        known = made.meta.accuracy[table]
        assert (known.mean, known.p90 / NORMAL_P90) == pytest.approx(found_on(kind, "interpolated", "h100"), abs=2e-3)
        term = {PRODUCTS: "qkv"}.get(kind, kind)
        stated = errors.stated(made.meta, term, "interpolated")
        assert stated is not None
        assert (stated.common, stated.independent) == (known.mean, known.p90 / NORMAL_P90)


@pytest.mark.parametrize("card", ["h100", "a100-80"])
def test_figures_beyond_the_grid(shared: Path, card: str) -> None:
    """The two largest values of each axis, from the others."""
    made = import_profile([shared / f"measured/{FOLDERS[card]}_kernels"], card).profile
    gpu = made.gpu()
    for kind, name in (
        (PRODUCTS, "gemm"),
        (PREFILL_ATTENTION, "prefill_attention"),
        (DECODE_ATTENTION, "decode_attention"),
    ):
        table, off = made.tables[name], []
        for key, picked in table.grouped().items():
            group = {column.name: value for column, value in zip(table.spec.groups, key, strict=True)}
            guide, points = guide_of(name, group, gpu, Efficiency.of(gpu)), points_of(table, picked)
            for axis in range(len(next(iter(points)))):
                values = sorted({point[axis] for point in points})
                if len(values) < 4:
                    continue
                grid = PriceGrid(
                    {at: price for at, price in points.items() if at[axis] < values[-2]}, forms_of(made, name), guide
                )
                off += [
                    math.log(grid.at(at).seconds / price.seconds)
                    for at, price in points.items()
                    if at[axis] >= values[-2]
                ]
        assert float(np.sqrt(np.mean(np.square(off)))) == pytest.approx(
            found_on(kind, "extrapolated", card)[0], rel=0.1
        )
