"""Live answers that end at the model's end-of-sequence token, and live runs that end before their time."""

from __future__ import annotations

import json
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the live backend needs torch")
pytest.importorskip("safetensors", reason="checkpoints are safetensors files")

import torch
from click.testing import CliRunner
from live_kit import ALLOCATORS, MEMORY, POLICIES, ROWS, TIGHT, Deployment, setup, weights, work
from model_kit import config_of, write_checkpoint

from backend.live.live import Live
from backend.live.sampling import Sampling
from sim import api
from sim.cli.main import cli
from sim.engine.batch import Batch, Outcome
from sim.engine.memory import KvPool
from sim.serving.executor import Recorded, Replayed
from traces.schema import InputError

WARM = Sampling(temperature=1.0, top_k=12, seed=4)


@pytest.fixture(scope="module")
def uncut() -> dict[int, list[int]]:
    return Deployment(setup(pool=KvPool(400, 4, 40)), sampling=WARM).serve(work()).answers


@pytest.fixture(scope="module")
def stop(uncut: dict[int, list[int]]) -> tuple[int, int]:
    """Two tokens that end some answers in the middle, one at its first token, and leave others whole."""
    often, _ = Counter(token for answer in uncut.values() for token in answer).most_common(1)[0]
    return often, uncut[4][0]


def cut(answers: dict[int, list[int]], stop: tuple[int, ...]) -> dict[int, list[int]]:
    ends = {id: [at for at, token in enumerate(answer) if token in stop] for id, answer in answers.items()}
    return {id: answer[: ends[id][0] + 1] if ends[id] else answer for id, answer in answers.items()}


@pytest.mark.parametrize(("policy", "allocator"), list(product(POLICIES, ALLOCATORS)))
def test_an_answer_ends_with_the_first_token_to_stop_at(
    policy: str, allocator: str, uncut: dict[int, list[int]], stop: tuple[int, int]
) -> None:
    expected = cut(uncut, stop)
    lengths = {len(answer) - len(uncut[id]) for id, answer in expected.items()}
    assert 0 in lengths
    assert len(lengths) > 3
    assert 1 in map(len, expected.values())
    served = Deployment(setup(policy, allocator), sampling=WARM, stop=stop).serve(work())
    assert served.answers == expected
    assert {id: req.output_tokens for id, req in served.requests.items()} == {
        id: len(answer) for id, answer in expected.items()
    }
    usage = served.engine.allocator.usage(0)
    assert usage.used == usage.reserved == 0


@pytest.mark.parametrize(("allocator", "host_blocks"), MEMORY)
def test_also_after_a_preemption(
    allocator: str, host_blocks: int, uncut: dict[int, list[int]], stop: tuple[int, int]
) -> None:
    put = setup("chunked", allocator, pool=TIGHT, host_blocks=host_blocks)
    served = Deployment(put, sampling=WARM, stop=stop).serve(work())
    assert served.answers == cut(uncut, stop)
    assert served.engine.preemptions


def test_each_of_several_answers_ends_by_itself(stop: tuple[int, int]) -> None:
    samples = [3] * len(ROWS)
    plain = Deployment(setup(pool=KvPool(400, 4, 40)), sampling=WARM).serve(work(samples=samples))
    served = Deployment(setup(pool=KvPool(90, 4, 40)), sampling=WARM, stop=stop).serve(work(samples=samples))
    assert served.answers == cut(plain.answers, stop)
    assert len(served.answers) == 3 * len(ROWS)


def test_the_twin_of_such_a_run_takes_the_same_decisions(stop: tuple[int, int]) -> None:
    kept: list[Recorded] = []

    def keep(inner: Any) -> Any:
        kept.append(Recorded(inner))
        return kept[-1]

    served = Deployment(setup(pool=TIGHT), sampling=WARM, stop=stop).serve(work(), keep)
    again = Deployment(setup(pool=TIGHT), sampling=WARM).serve(work(), lambda _: Replayed(kept[0].results))
    for name in ("first_scheduled_s", "first_token_s", "finish_s", "output_tokens"):
        ours, theirs = ({id: getattr(req, name) for id, req in one.requests.items()} for one in (served, again))
        assert ours == theirs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, uncut: dict[int, list[int]]) -> str:
    """The tiny model as a checkpoint whose end-of-sequence token is one that it likes to say."""
    path = write_checkpoint(tmp_path_factory.mktemp("ends"), config_of("llama"), weights("llama"))
    often, _ = Counter(token for answer in uncut.values() for token in answer).most_common(1)[0]
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"eos_token_id": often}))
    return str(path)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, folder: str) -> dict[str, Any]:
    """A live scenario of ten requests, as dotted keys."""
    trace = tmp_path_factory.mktemp("trace") / "ten.csv"
    rows = [f"{at},{prompt},{output}" for at, prompt, output in ROWS]
    trace.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows, ""]))
    live = {"executor": "live", "device": "cpu", "kv.blocks": 400, "live.temperature": 1.0}
    return {"model": folder, "trace": str(trace), **live}


def test_the_tables_tell_the_length_that_was_made(settings: dict[str, Any]) -> None:
    result = api.run(**settings | {"live.stop_at_eos": True})
    asked = api.run(**settings)
    made = {row.request: len(row.token_ids) for row in result.tokens.itertuples()}  # type: ignore[union-attr]
    assert made == dict(enumerate(result.requests["output_tokens"]))
    assert result.requests["output_tokens"].sum() < asked.requests["output_tokens"].sum()


def test_without_such_a_token_or_a_live_run_it_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = config_of("llama")
    config["eos_token_id"] = None
    endless = str(write_checkpoint(tmp_path / "endless", config, weights("llama")))
    with pytest.raises(InputError, match="names no end-of-sequence token"):
        api.run(**settings | {"model": endless, "live.stop_at_eos": True})
    with pytest.raises(InputError, match=r"live\.stop_at_eos is true, and it is read only where executor is live"):
        api.run(trace="chatbot_arena.jsonl", **{"live.stop_at_eos": True})


def doom(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the device fail in the `step`-th step."""
    real, steps = Live.execute, iter(range(1, step + 1))

    def execute(live: Live, batch: Batch) -> Outcome:
        if next(steps) == step:
            raise torch.OutOfMemoryError("no room")
        return real(live, batch)

    monkeypatch.setattr(Live, "execute", execute)


def test_what_was_measured_before_a_device_failed_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, Any]
) -> None:
    whole = api.run(**settings)
    doom(monkeypatch, len(whole.steps) - 2)
    options = [f"--set={key}={value}" for key, value in settings.items()]
    found = CliRunner().invoke(cli, ["run", *options, "--out", str(tmp_path / "out")], catch_exceptions=True)
    assert isinstance(found.exception, InputError)
    assert "died when" in str(found.exception)
    assert "no room" in str(found.exception)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    counts = summary["requests"]
    assert 0 < counts["completed"] < counts["total"]
    assert any("Cut short" in note for note in summary["inputs"]["notes"])


def test_nothing_is_kept_where_nothing_was_answered(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    doom(monkeypatch, 1)
    with pytest.raises(torch.OutOfMemoryError):
        api.run(**settings)
