"""Drafting live from the outside: its summary, its twin, what a simulation makes of it, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the live backend needs torch")
pytest.importorskip("safetensors", reason="checkpoints are safetensors files")

import numpy as np
import pandas as pd
from click.testing import CliRunner
from live_kit import weights
from model_kit import config_of, tensors_of, write_checkpoint
from validate_kit import AT_ONCE, live, trace_file

from backend.cache import memory
from sim import api, scenario
from sim.api import Result
from sim.cli.main import cli
from sim.report.terminal import render, summary_view
from sim.validate.twin import check_twin
from traces.rows import from_frame
from traces.schema import InputError, Trace

SMALL: dict[str, Any] = {
    "engine.max_num_seqs": 6,
    "engine.max_num_batched_tokens": 64,
    "kv.blocks": 60,
    "engine.max_model_len": 128,
}
UNPADDED = {"engine.preset": "foretoken"}
"""vLLM 0.33 pads admissions with placeholders, which a step counts among its drafts and a request does not."""

LOOKUP: dict[str, Any] = {"policy": "speculative", "speculation.k": 3, "speculation.prompt_lookup_max": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("tiny"), config_of("llama"), weights("llama")))


@pytest.fixture(scope="module")
def first_layer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A draft model: the target's first layer."""
    config = {**config_of("llama"), "num_hidden_layers": 1}
    kept = {name: one for name, one in weights("llama").items() if "layers." not in name or "layers.0." in name}
    return str(write_checkpoint(tmp_path_factory.mktemp("first"), config, kept))


def trace(**columns: Any) -> Trace:
    lengths = [(5, 19), (16, 4), (40, 22), (7, 1), (33, 26), (12, 34), (1, 33), (64, 20)]
    prompt, output = zip(*lengths, strict=True)
    frame = {"arrival_s": [0.0] * len(lengths), "prompt_tokens": prompt, "output_tokens": output, **columns}
    return from_frame(pd.DataFrame(frame), name="small")


def run(folder: str, sent: Trace | None = None, **settings: Any) -> Result:
    given = {"model": folder, "executor": "live", "device": "cpu", **SMALL, **settings}
    if given["executor"] != "live":
        del given["device"]
    return api.simulate(scenario.build({}, given), trace=trace() if sent is None else sent)


def answers(result: Result) -> dict[int, list[int]]:
    assert result.tokens is not None
    return {row.request: row.token_ids.tolist() for row in result.tokens.itertuples()}  # type: ignore[union-attr,misc]


def by_model(draft: str, **more: Any) -> dict[str, Any]:
    drafter = {"speculation.drafter": "draft-model", "speculation.draft_model": draft}
    return {"policy": "speculative", "speculation.k": 3, **drafter, **more}


@pytest.fixture(scope="module")
def looked_up(folder: str) -> Result:
    return run(folder, **LOOKUP, **UNPADDED)


@pytest.fixture(scope="module")
def drafted(folder: str, first_layer: str) -> Result:
    return run(folder, **by_model(first_layer), **UNPADDED)


def test_the_answers_are_those_without_drafts(folder: str, looked_up: Result, drafted: Result) -> None:
    plain = answers(run(folder))
    assert answers(looked_up) == answers(drafted) == plain
    hot: dict[str, Any] = {"live.temperature": 0.7, "live.top_k": 9, "live.top_p": 0.95}
    assert answers(run(folder, **LOOKUP, **hot)) == answers(run(folder, **hot)) != plain


def test_what_is_measured(drafted: Result, looked_up: Result, folder: str, first_layer: str) -> None:
    for done in (drafted, looked_up):
        found, steps, requests = done.summary["speculation"], done.steps, done.requests
        assert steps["draft_tokens"].sum() == found["drafted_tokens"] == requests["draft_tokens"].sum()
        assert found["accepted_tokens"] == requests["accepted_tokens"].sum() > 0
        assert found["acceptance_by_position"][0] > 0
        assert np.allclose(steps["end_s"] - steps["start_s"], steps["device_s"] + steps["host_s"], rtol=1e-9)
        assert 1 < found["tokens_per_target_step"] < 4
        assert "target step; right by position" in " ".join(render(summary_view(done.summary), 200).split())
    assert 0.05 < drafted.summary["speculation"]["drafting_share"] < 0.95
    assert looked_up.summary["speculation"]["drafting_share"] == 0
    assert drafted.summary["speculation"]["draft_kv_bytes_per_token"] == 2 * 2 * 16 * 4
    assert 0 < looked_up.summary["speculation"]["found_by_position"][2] < 1
    simulated = run(folder, **by_model(first_layer), executor="predicted").summary["speculation"]
    assert simulated.keys() == drafted.summary["speculation"].keys()
    assert list(simulated["found_by_position"]) == [1.0, 1.0, 1.0]
    again = run(folder, **by_model(folder)).summary["speculation"]
    assert again["acceptance"] == 1.0


def test_a_request_tells_its_own_acceptance(drafted: Result, tmp_path: Path, folder: str, first_layer: str) -> None:
    """And as a trace's column it is what a simulation draws with."""
    table = drafted.requests
    assert table["acceptance"].isna().tolist() == (table["draft_tokens"] == 0).tolist()
    tried = table["accepted_tokens"] / table["acceptance"]
    assert (tried.dropna() <= table["draft_tokens"][tried.dropna().index] + 1e-9).all()
    told = trace(acceptance=table["acceptance"].tolist())
    found = run(folder, told, **by_model(first_layer), executor="predicted").summary["speculation"]
    measured = drafted.summary["speculation"]
    assert found["tokens_per_target_step"] == pytest.approx(measured["tokens_per_target_step"], abs=0.35)


@pytest.mark.parametrize("drafter", ["ngram", "draft-model"])
def test_a_live_run_is_told_again_by_a_simulation(drafter: str, folder: str, first_layer: str, tmp_path: Path) -> None:
    """Live run -> folder -> `speculation.acceptance` of a simulated one: as many tokens a step, but for chance."""
    how = LOOKUP if drafter == "ngram" else by_model(first_layer)
    rows = pd.DataFrame({"arrival_s": [0.0] * 24, "prompt_tokens": [9 + at for at in range(24)], "output_tokens": 40})
    rows.to_csv(tmp_path / "few.csv", index=False)
    settings = {"trace": str(tmp_path / "few.csv"), "model": folder, **SMALL, "kv.blocks": 200, **how}

    def words(**more: Any) -> list[str]:
        return [word for key, value in (settings | more).items() for word in ("--set", f"{key}={value}")]

    def summary(out: str, **more: Any) -> Any:
        done = CliRunner().invoke(cli, ["run", *words(**more), "--out", str(tmp_path / out), "--quiet"])
        assert done.exit_code == 0, done.output
        return json.loads((tmp_path / out / "summary.json").read_text())["speculation"]

    measured = summary("live", executor="live", device="cpu")
    assert (pd.read_parquet(tmp_path / "live" / "requests.parquet")["accepted_tokens"] > 0).any()
    told = [
        summary(f"told{seed}", seed=seed, **{"speculation.acceptance": tmp_path / "live" / "summary.json"})
        for seed in range(3)
    ]
    # A row gives 1 to 4 tokens: its spread is at most that of a coin that gives 1 or 4.
    rows_told = sum(one["drafted_tokens"] for one in told) / 3
    mean = float(np.mean([one["tokens_per_target_step"] for one in told]))
    spread = math.sqrt((mean - 1) * (4 - mean) / max(rows_told, 1)) * (1 + 1 / math.sqrt(3))
    assert abs(mean - measured["tokens_per_target_step"]) < 3 * spread
    assert mean == pytest.approx(measured["tokens_per_target_step"], rel=0.06)
    for name in ("found_by_position", "acceptance_by_position"):
        average = np.mean([one[name] for one in told], axis=0)
        assert average == pytest.approx(measured[name], abs=0.08)


def test_adapting_runs_live_too(folder: str, first_layer: str) -> None:
    """By the prices of the scenario's cost model: a drafter that is never right is hardly asked."""
    done = run(folder, **by_model(first_layer, **{"speculation.adaptive": True}))
    assert answers(done) == answers(run(folder))
    assert 0 < done.summary["speculation"]["drafted_tokens"] < 3 * 139


# ---- the twin -------------------------------------------------------------------------------------------------------

TWINS: list[dict[str, Any]] = [
    {"speculation.prompt_lookup_max": 1, "model": "tiny"},
    {"speculation.prompt_lookup_max": 1, "model": "tiny", "allocator": "prefix", "live.temperature": 0.6},
    {"speculation.drafter": "draft-model", "speculation.draft_model": "tiny-llama"},
    {"speculation.drafter": "draft-model", "speculation.draft_model": "tiny-llama", "kv.swap_gib": 0.01},
]


@pytest.mark.parametrize("settings", TWINS)
def test_every_drafter_has_a_twin(settings: dict[str, Any], tmp_path: Path, folder: str) -> None:
    settings = {**settings, "model": folder if "model" in settings else "tiny-llama"}
    made = live(trace_file(tmp_path, **AT_ONCE), policy="speculative", kv_blocks=10, **settings)
    (record,) = made.records
    assert sum(len(one.evicted) for one in record.decisions) > 0
    twin = check_twin(made.scenario, made.trace, record)
    assert twin.identical, twin.difference and twin.difference.sentence()
    assert any(shape.verifies for shape in record.shapes)


# ---- mistakes -------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"speculation.k": 0}, "speculation.k is 0; it must be at least 1 and at most 64"),
    ({"speculation.acceptance": 1.2}, "speculation.acceptance is 1.2; it must be at least 0 and at most 1"),
    ({"speculation.drafter": "eagle"}, "speculation.drafter 'eagle' is simulated only"),
    ({"speculation.drafter": "medusa", "speculation.tree": "2,2", "speculation.k": 2}, "speculation.tree '2,2' is"),
    ({"speculation.prompt_lookup_min": 4, "speculation.prompt_lookup_max": 2}, "prompt_lookup_min is 4 and"),
    ({"speculation.prompt_lookup_min": -1}, "prompt_lookup_min is -1"),
    ({"engine.async_scheduling": True}, "a live run has one batch in flight at a time"),
    ({"live.stop_at_eos": True}, "live.stop_at_eos is true"),
    ({"device": "cuda:77"}, "CUDA devices; use cpu"),
    ({"allocator": "no-cache"}, "without a KV cache there is nothing that drafts could be verified against"),
    ({"workload.samples": 2}, "drafting serves one for each request"),
]


@pytest.mark.parametrize(("settings", "sentence"), REFUSED)
def test_mistakes_are_one_sentence(folder: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        run(folder, policy="speculative", **settings)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_lookup_is_for_ngram_alone(folder: str) -> None:
    with pytest.raises(
        InputError, match=r"speculation.prompt_lookup is for the drafter ngram, and it is 'draft-model'"
    ):
        run(folder, **by_model(folder, **{"speculation.prompt_lookup_max": 2}))


def test_drafts_must_be_the_targets_tokens(folder: str, tmp_path: Path) -> None:
    config = {**config_of("llama"), "vocab_size": 96}
    other = str(write_checkpoint(tmp_path, config, tensors_of(config)))
    with pytest.raises(InputError, match=r"has a vocabulary of 96 tokens and .* one of 128"):
        run(folder, **by_model(other))


def test_a_drafter_larger_than_the_memory_left(folder: str, first_layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights, before any are made; and its cache."""
    monkeypatch.setattr(memory, "device_bytes", lambda device: 2**37)
    with pytest.raises(InputError, match=r"with the draft model 'llama-3.1-405b' needs .* a smaller draft model"):
        run(folder, **by_model("llama-3.1-405b", model="llama-3.1-8b", **{"speculation.k": 2}))
    monkeypatch.setattr(memory, "device_bytes", lambda device: 2**20)
    wide: dict[str, Any] = {"kv.blocks": 127}  # the target's alone just fit
    assert len(answers(run(folder, **wide))) == 8
    monkeypatch.setattr(memory, "device_bytes", _less_each_time())
    with pytest.raises(InputError, match=r"a KV cache of 127 blocks of 16 tokens of first.* needs"):
        run(folder, **by_model(first_layer, **wide))


def _less_each_time() -> Any:
    """Memory of which each question leaves less, as if what was asked for had been taken."""
    left = iter([2**21, 2**21, 2**21, 2**20, *[2**18] * 9])
    return lambda device: next(left)
