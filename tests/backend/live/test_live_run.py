"""Live runs from the outside: the tables of a simulation, real seconds in them, and one sentence for what cannot be."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE_S

pytest.importorskip("torch", reason="the live backend needs torch")
pytest.importorskip("safetensors", reason="checkpoints are safetensors files")

import numpy as np
import pandas as pd
import torch
from click.testing import CliRunner
from live_kit import check_greedy, reference_logits, weights
from model_kit import config_of, tensors_of, write_checkpoint

from backend.cache import memory
from backend.model.model import Model
from sim import api, scenario
from sim.api import Result
from sim.cli.main import cli
from traces.rows import from_frame
from traces.schema import InputError, Trace

ROOT = Path(__file__).resolve().parents[3]
TIMES = {"start_s", "end_s", "device_s", "host_s"}
SMALL = {"engine.max_num_seqs": 4, "engine.max_num_batched_tokens": 64, "kv.blocks": 40, "engine.max_model_len": 128}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint smaller than any model of the catalog."""
    return str(write_checkpoint(tmp_path_factory.mktemp("tiny"), config_of("llama"), weights("llama")))


def trace(arrivals: bool = False, **columns: Any) -> Trace:
    lengths = [(5, 9), (16, 4), (40, 12), (7, 1), (33, 6), (12, 14), (1, 3), (64, 2)]
    times = [0.004 * at if arrivals else 0.0 for at in range(len(lengths))]
    prompt, output = zip(*lengths, strict=True)
    frame = pd.DataFrame({"arrival_s": times, "prompt_tokens": prompt, "output_tokens": output, **columns})
    return from_frame(frame, name="small")


def run(folder: str, sent: Trace | None = None, **settings: Any) -> Result:
    given = {"model": folder, "executor": "live", "device": "cpu", **SMALL, **settings}
    if given["executor"] != "live":
        del given["device"]
    return api.simulate(scenario.build({}, given), trace=trace() if sent is None else sent)


def answers(result: Result) -> dict[tuple[int, int], list[int]]:
    assert result.tokens is not None
    rows = result.tokens.itertuples()
    return {(row.request, row.sample): row.token_ids.tolist() for row in rows}  # type: ignore[union-attr, misc]


def test_a_live_run_has_the_tables_of_a_simulation(folder: str) -> None:
    live = run(folder, trace(arrivals=True))
    simulated = run(folder, trace(arrivals=True), executor="predicted", **{"front_end.name": "off"})
    for name in ("requests", "steps"):
        ours, theirs = getattr(live, name), getattr(simulated, name)
        assert list(ours.columns) == list(theirs.columns)
        assert list(ours.dtypes) == list(theirs.dtypes)
    assert live.summary["cost_terms"] == {}
    assert "band" not in live.summary
    priced = {**simulated.summary, "cost_terms": {}}
    predicted = keys({key: value for key, value in priced.items() if key != "band"}) - {"inputs.sustained_compute"}
    assert keys(live.summary) - {"inputs.device"} == predicted
    assert simulated.tokens is None
    assert live.tokens is not None
    lengths = live.tokens["token_ids"].map(len).tolist()
    assert lengths == live.requests["output_tokens"].tolist()
    assert live.summary["inputs"]["executor"] == "live"
    assert live.summary["cost_sources"]["measured"] == 1.0


def keys(table: dict[str, Any], before: str = "") -> set[str]:
    inner = [
        keys(value, f"{before}{key}.") if isinstance(value, dict) else {before + key} for key, value in table.items()
    ]
    return set().union(*inner)


def test_seconds_are_real_and_add_up(folder: str) -> None:
    result = run(folder)
    steps = result.steps
    assert (steps["repeats"] == 1).all()
    assert (steps["device_s"] > 0).all()
    assert (steps["host_s"] > 0).all()
    spans = steps["end_s"] - steps["start_s"]
    assert np.allclose(spans, steps["device_s"] + steps["host_s"], rtol=1e-9)
    # Nobody waits for an arrival, so there is a step at every time.
    assert spans.sum() == pytest.approx(result.summary["duration_s"])
    assert result.step_end_s[0][-1] == pytest.approx(result.summary["duration_s"])
    assert result.requests["ttft_s"].min() >= spans.iloc[0] * 0.999


def test_the_wall_clock_takes_the_same_decisions(folder: str) -> None:
    """Where all requests are there from the start; and answers are the same in any case."""
    results = [run(folder, **{"live.clock": clock, "kv.blocks": 6}) for clock in ("virtual", "wall")]
    decisions = [one.steps.drop(columns=list(TIMES)) for one in results]
    pd.testing.assert_frame_equal(*decisions)
    assert decisions[0]["preempted"].sum() > 0
    late = run(folder, trace(arrivals=True), **{"live.clock": "wall"})
    assert answers(results[0]) == answers(results[1]) == answers(late)
    assert (late.requests["arrival_s"] >= trace(arrivals=True).requests["arrival_s"]).all()
    # On the wall a step lasts from its planning, so that no real time is lost between two.
    ends, starts = results[1].steps["end_s"].to_numpy(), results[1].steps["start_s"].to_numpy()
    assert np.allclose(ends[:-1], starts[1:])


def test_a_run_takes_the_threads_that_are_asked_for(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    for more in ({}, {"live.threads": 3}):
        run(folder, **more)
    assert asked == [1, 3]


def test_answers_follow_from_seed_and_settings(folder: str) -> None:
    sampled = {"live.temperature": 0.7, "live.top_k": 40, "live.top_p": 0.95, "workload.samples": 2}
    first, again = run(folder, **sampled), run(folder, **sampled, policy="static", allocator="contiguous-oracle")
    assert answers(first) == answers(again)
    assert sorted(answers(first)) == [(request, sample) for request in range(8) for sample in range(2)]
    for changed in ({"seed": 1}, {"live.top_p": 0.4}, {"live.top_k": 2}, {"live.temperature": 1.4}):
        assert answers(first) != answers(run(folder, **{**sampled, **changed}))
    assert answers(first) != answers(run(folder, **{"workload.samples": 2}))


def test_prompts_with_ids_are_served_as_they_are(folder: str) -> None:
    lengths = trace().requests["prompt_tokens"].tolist()
    ids = [np.arange(count) * 3 % 128 for count in lengths]
    same = run(folder, trace(token_ids=ids), allocator="prefix")
    assert same.requests["prefix_hit_tokens"].sum() > 0
    assert answers(same) == answers(run(folder, trace(token_ids=ids)))
    for (request, _), answer in answers(same).items():
        check_greedy(ids[request].tolist(), answer, partial(reference_logits, "llama"))


def test_an_allocators_window_is_the_models(folder: str, tmp_path: Path) -> None:
    """As if the model had been made with it: Mistral is Llama with a window."""
    config = {**config_of("llama"), "model_type": "mistral", "sliding_window": 16}
    own = run(str(write_checkpoint(tmp_path, config, weights("llama"))))
    window = {"allocator.name": "windowed", "allocator.window_tokens": 16}
    plain = run(folder)
    narrow, sinks = run(folder, **window), run(folder, **window, **{"allocator.sink_tokens": 4})
    assert answers(narrow) == answers(own)
    assert answers(plain) != answers(narrow) != answers(sinks) != answers(plain)
    short = {at for at, row in plain.requests.iterrows() if row["prompt_tokens"] + row["output_tokens"] <= 16}
    assert short
    for at in short:
        assert answers(plain)[at, 0] == answers(narrow)[at, 0] == answers(sinks)[at, 0]  # type: ignore[index]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tp": 2}, "tp is 2, and a live run has one device"),
    ({"replicas": 3}, "replicas is 3, and a live run has one device"),
    ({"workload.beam_search": True, "workload.samples": 2}, "workload.beam_search is simulated only"),
    ({"offload.weight_layers": 1}, "offload is simulated only"),
    ({"allocator.name": "prefix", "allocator.keep_uncomputed": True}, "keep_uncomputed is simulated only"),
    ({"engine.async_scheduling": True}, "a live run has one batch in flight at a time"),
    ({"device": "tpu"}, "device 'tpu' is unknown"),
    ({"device": "cuda:77"}, "this machine has . CUDA devices"),
    ({"kv.dtype": "int4"}, "KV cache type 'int4' is unknown"),
    ({"model": "deepseek-v3"}, "latent attention"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_a_live_run_cannot_do_is_refused(folder: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(folder, **settings)


def test_a_cache_that_does_not_fit_is_refused_with_what_would(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "device_bytes", lambda device: 2**20)
    with pytest.raises(InputError, match=r"a KV cache of 400 blocks .* but cpu has 0.00 GiB left: at most 127 blocks"):
        run(folder, **{"kv.blocks": 400})


def test_full_and_windowed_layers_share_no_windowed_allocator(tmp_path: Path) -> None:
    config = config_of("qwen3-window")
    mixed = str(write_checkpoint(tmp_path, config, tensors_of(config)))
    with pytest.raises(InputError, match="full and windowed layers is simulated only"):
        run(mixed, **{"kv.block_tokens": 4, "allocator.name": "windowed"})
    assert len(answers(run(mixed))) == 8


@pytest.mark.parametrize("after", [0, 20])
def test_memory_that_runs_out_ends_a_run_in_a_sentence(
    folder: str, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Before the first request, and in the midst of them."""
    forward, calls = Model.forward, 0

    def full(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*args)

    monkeypatch.setattr(Model, "forward", full)
    what = "steps of 64 tokens" if not after else r"a step of \d+ tokens"
    sentence = f"cpu has no memory left for {what} beside a KV cache of 40 blocks; lower"
    if after:
        assert re.search(sentence, run(folder).died)
    else:
        with pytest.raises(InputError, match=sentence):
            run(folder)


def test_from_the_command_line(folder: str, tmp_path: Path) -> None:
    rows = "".join(f"2023-11-16 18:00:0{at}.0000000,{5 + 7 * at},{3 + at}\n" for at in range(4))
    (tmp_path / "small.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    words = ["run", "--trace", str(tmp_path / "small.csv"), "--model", folder, "--set", "executor=live"]
    words += ["--set", "device=cpu", "--set", "kv.blocks=32", "--out", str(tmp_path / "out"), "--quiet"]
    outcome = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    assert len(pd.read_parquet(tmp_path / "out" / "steps.parquet")) > 4


BLOCKED = """
import sys
sys.modules["{name}"] = None
from sim.cli.main import main
sys.argv = ["sim", "run", "--trace", "{trace}", "--model", "tiny-llama", "--quiet"]
sys.argv += ["--set", "executor=live", "--set", "device=cpu", "--set", "kv.blocks=64"]
main()
"""


def blocked(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A small live run in a process in which that package cannot be imported."""
    path = folder / "small.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00.0000000,9,3\n")
    code = [sys.executable, "-W", "error", "-c", BLOCKED.format(name=name, trace=path)]
    return subprocess.run(code, capture_output=True, text=True, cwd=ROOT, check=False, timeout=PATIENCE_S)


def test_without_torch_a_live_run_is_refused_in_a_sentence(tmp_path: Path) -> None:
    done = blocked("torch", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "executor live needs torch, which is not installed; pip install 'foretoken[live]' brings it" in done.stderr


def test_on_a_cpu_a_live_run_needs_no_triton(tmp_path: Path) -> None:
    done = blocked("triton", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 request in" in done.stdout
