"""What live prompts say: seeded passages of held-out text for byte-level models, equal where prefix ids are equal."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the live backend needs torch")
pytest.importorskip("safetensors", reason="checkpoints are safetensors files")

import numpy as np
import pandas as pd
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pair_kit import logits_of, model

from backend.live.prompts import Prompts, held_out_text
from backend.pair.corpus import BOS, EOS, VOCAB, as_text, document, held_out, sources
from sim import api, scenario
from sim.api import Result
from sim.cli.main import cli
from sim.engine.request import Request, SharedPrefix
from traces.rows import from_frame
from traces.schema import InputError, Trace

SERVED: dict[str, Any] = {
    "executor": "live",
    "device": "cpu",
    "kv.blocks": 64,
    "engine.max_num_seqs": 4,
    "engine.max_num_batched_tokens": 64,
    "engine.max_model_len": 256,
}


def test_files_are_held_out_by_name_alone_and_no_others_packages_are_read() -> None:
    trained, kept = sources(held=False), sources(held=True)
    assert not set(trained) & set(kept)
    assert {name: held_out(name) for name in ("argparse.py", "json/decoder.py")} == {
        "argparse.py": False,
        "json/decoder.py": False,
    }
    assert {"contextlib.py", "http/server.py"} <= set(kept)
    names = {*trained, *kept}
    assert {"argparse.py", "json/decoder.py"} <= names
    assert not any("site-packages" in name or name.startswith(("test/", "encodings/")) for name in names)
    assert 0.02 < len(kept) / len(names) < 0.15


def test_a_python_without_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(InputError, match="this Python has no sources of its standard library to read"):
        held_out_text()


@given(st.text())
def test_tokens_of_a_text_say_it(text: str) -> None:
    tokens = document(text.encode("utf-8"))
    assert (tokens[0], tokens[-1]) == (BOS, EOS)
    assert as_text(tokens) == text


# Prompts

TEXT = np.concatenate([[BOS], np.frombuffer(b"".join(b"line %d of many\n" % at for at in range(300)), np.uint8)])


def request(id: int, tokens: int, names: list[int] | None = None, unit: int = 16) -> Request:
    return Request(id, 0.0, tokens, 1, prefix=None if names is None else SharedPrefix(names, unit))


@pytest.mark.parametrize("tokens", [1, 15, 200, 9000])
def test_a_prompt_is_a_passage_that_begins_with_a_line(tokens: int) -> None:
    prompts = Prompts(VOCAB, 3, text=TEXT)
    found = prompts.tokens(request(5, tokens))
    assert len(found) == tokens
    endless = as_text(np.tile(TEXT, 4))
    assert as_text(found)[:4000] in endless
    assert as_text(found).startswith("line"[:tokens])
    assert found.tolist() == Prompts(VOCAB, 3, text=TEXT).tokens(request(5, tokens)).tolist()


def test_prompts_differ_by_request_and_seed_and_the_traces_own_tokens_win() -> None:
    prompts = Prompts(VOCAB, 3, text=TEXT)
    starts = {tuple(prompts.tokens(request(id, 40)).tolist()) for id in range(30)}
    assert len(starts) > 20
    assert any(
        prompts.tokens(request(id, 40)).tolist() != Prompts(VOCAB, 4, text=TEXT).tokens(request(id, 40)).tolist()
        for id in range(5)
    )
    told = Prompts(VOCAB, 3, [[1, 2, 3]], TEXT).tokens(request(0, 5)).tolist()
    assert told[:3] == [1, 2, 3]


@given(st.data())
def test_equal_prefix_ids_are_equal_text(data: st.DataObject) -> None:
    """Ids name their unit and all before it: so ids that agree for n units do so from the first on."""
    shared = data.draw(st.lists(st.integers(0, 2**40), min_size=1, max_size=40, unique=True))
    own = [data.draw(st.lists(st.integers(2**41, 2**42), max_size=20, unique=True)) for _ in range(2)]
    unit = data.draw(st.sampled_from([1, 16, 512]))
    prompts = Prompts(VOCAB, data.draw(st.integers(0, 9)), text=TEXT)
    first, second = (
        prompts.tokens(request(id, (len(shared) + len(names)) * unit, shared + names, unit))
        for id, names in enumerate(own)
    )
    common = len(shared) * unit
    assert first[:common].tolist() == second[:common].tolist()
    assert len(first) == (len(shared) + len(own[0])) * unit


def test_prompts_that_share_a_beginning_part_later() -> None:
    prompts, shared = Prompts(VOCAB, 0, text=held_out_text()), list(range(8))
    told = [prompts.tokens(request(id, 1024, shared + [1000 * (id + 1) + at for at in range(56)])) for id in range(20)]
    assert len({tuple(one[:128].tolist()) for one in told}) == 1
    assert len({tuple(one.tolist()) for one in told}) == 20
    # Passages, not snippets: most units go on where the one before them ended.
    text = as_text(held_out_text())
    units = [as_text(told[0][at : at + 32]) for at in range(0, 992, 16)]
    assert sum(one in text for one in units) > len(units) / 2


# Live


@cache
def small() -> Trace:
    lengths = [(40, 30), (64, 20), (25, 24)]
    prompt, output = zip(*lengths, strict=True)
    frame = pd.DataFrame({"arrival_s": [0.0] * len(lengths), "prompt_tokens": prompt, "output_tokens": output})
    return from_frame(frame, name="small")


def serve(**settings: Any) -> Result:
    return api.simulate(scenario.build({}, {**SERVED, "model": "byte-target", **settings}), trace=small())


def test_a_live_run_answers_in_text_as_the_model_does_alone() -> None:
    result = serve()
    assert result.tokens is not None
    assert list(result.tokens.columns) == ["request", "sample", "token_ids", "text"]
    prompts = Prompts(VOCAB, 0, text=held_out_text())
    lengths = small().requests["prompt_tokens"].tolist()
    for at, ids, text in zip(*(result.tokens[key].tolist() for key in ("request", "token_ids", "text")), strict=True):
        assert text == as_text(ids)
        prompt = prompts.tokens(request(at, lengths[at])).tolist()
        logits = logits_of(model("byte-target"), [*prompt, *ids[:-1].tolist()])[len(prompt) - 1 :]
        chosen = logits.gather(1, torch.from_numpy(ids)[:, None])[:, 0]
        assert (logits.max(-1).values - chosen).max().item() < 1e-3
    said = "".join(result.tokens["text"])
    assert sum(char.isprintable() or char in "\n\t" for char in said) > 0.95 * len(said)


def test_prompts_are_random_where_that_is_asked_for() -> None:
    random, text = serve(**{"live.prompts": "random"}), serve(**{"live.prompts": "text"})
    assert random.tokens is not None
    assert text.tokens is not None
    assert random.tokens["text"].tolist() != text.tokens["text"].tolist()
    assert text.tokens["text"].tolist() == serve().tokens["text"].tolist()  # type: ignore[index]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"live.prompts": "poems"}, "live.prompts is 'poems'; known: auto, random, text"),
        ({"live.prompts": "text", "model": "tiny-llama"}, "live.prompts is text, and the tokens of tiny-llama are no"),
    ],
)
def test_prompts_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        serve(**settings)


def test_answers_are_written(tmp_path: Path) -> None:
    trace = tmp_path / "small.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,20,12\n0,9,7\n")
    sets = [word for key, value in SERVED.items() for word in ("--set", f"{key}={value}")]
    words = ["run", "--trace", str(trace), "--model", "byte-target", "--quiet", "--out", str(tmp_path / "out")]
    outcome = CliRunner().invoke(cli, [*words, *sets], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    answers = pd.read_parquet(tmp_path / "out" / "answers.parquet")
    assert answers["token_ids"].map(len).tolist() == [12, 7]
    assert [as_text(ids) for ids in answers["token_ids"]] == answers["text"].tolist()
