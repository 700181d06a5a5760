"""How many blocks a live run has where nobody says so, and what it refuses for want of memory; tables that grow."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from backend import session
from backend.cache.block_tables import BlockTables
from backend.drafting.drafting import DraftingLive
from backend.drafting.ngram import Ngram
from backend.session import Session, fitted
from sim import api, scenario
from sim.catalog import load_model
from sim.cost.profile_run import activations
from sim.specs.accounting import PLAIN
from sim.specs.parallel import SINGLE
from traces.schema import InputError

TINY = load_model("tiny-llama")
BLOCK = 2 * TINY.layers * TINY.kv_heads * TINY.head_dim * 16 * 4
"""Bytes of 16 tokens in fp32."""


def built(**settings: Any) -> Any:
    return scenario.build({}, {"executor": "live", "model": "tiny-llama", **settings})


def answers(trace: Path, **settings: Any) -> list[list[int]]:
    asked = {"executor": "live", "device": "cpu", "model": "tiny-llama", "engine.max_model_len": 128}
    result = api.run(trace=str(trace), **{**asked, **settings})
    assert result.tokens is not None
    return [list(map(int, ids)) for ids in result.tokens["token_ids"]]


def test_a_cpu_gives_the_cache_a_gibibyte_or_a_quarter_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block of what fits is the null block."""
    asked = built(device="cpu")
    for memory_bytes, room in ((1 << 40, 1 << 30), (1 << 26, 1 << 24)):
        monkeypatch.setattr(session, "device_bytes", lambda _, known=memory_bytes: known)
        assert fitted(asked).kv.blocks == room // BLOCK - 1
    drafted = {"speculation.drafter": "draft-model", "speculation.draft_model": "tiny-llama"}
    assert fitted(built(device="cpu", policy="speculative", **drafted)).kv.blocks == (1 << 24) // (2 * BLOCK) - 1
    assert fitted(built(device="cpu", **{"kv.blocks": 7})).kv.blocks == 7


def test_a_card_gives_it_what_weights_and_activations_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "check_device", torch.device)
    monkeypatch.setattr(session, "device_bytes", lambda _: 1 << 30)
    asked = built(device="cuda", **{"kv.gpu_memory_utilization": 0.5})
    limits = asked.engine
    held = activations(TINY, SINGLE, limits.max_num_batched_tokens, limits.max_num_seqs, PLAIN).expected
    room = (1 << 29) - TINY.weight_bytes - held
    assert fitted(asked).kv.blocks == room // BLOCK - 1


@pytest.mark.parametrize("draft", ["", "tiny-llama"])
def test_too_little_memory_is_one_sentence(draft: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "device_bytes", lambda _: 4 * BLOCK)
    more = {"policy": "speculative", "speculation.drafter": "draft-model", "speculation.draft_model": draft}
    beside = " and the draft model tiny-llama" if draft else ""
    with pytest.raises(InputError, match=f"^cpu has no room for a KV cache beside tiny-llama{beside}; use a smaller "):
        fitted(built(device="cpu", **(more if draft else {})))


def test_a_model_that_waits_for_the_card_is_refused_with_graphs() -> None:
    parts = SimpleNamespace(scenario=built(device="cuda"), model=SimpleNamespace(name="mixture"))
    here = SimpleNamespace(_parts=parts, _device=torch.device("cuda"), _model=SimpleNamespace(graphable=False))
    with pytest.raises(InputError, match=r"mixture waits for the GPU .* --set engine\.cuda_graphs=false"):
        Session.executor(here, None)  # type: ignore[arg-type]


def test_tables_of_more_blocks_than_most_have_answer_the_same(tmp_path: Path) -> None:
    """102 tokens in blocks of one are 102 of them, in blocks of 16 seven; a run that keeps nothing counts its own."""
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,90,12\n0,9,3\n")
    sixteens = answers(trace, **{"kv.blocks": 40})
    assert answers(trace, **{"kv.block_tokens": 1, "kv.blocks": 200}) == sixteens
    assert answers(trace, allocator="no-cache", **{"engine.max_num_batched_tokens": 256}) == sixteens


def test_a_table_asked_for_more_columns_than_there_are_is_filled_with_the_null_block() -> None:
    tables = BlockTables(appends=True)
    taken = tables.take([0, 1], 100)
    assert taken.shape == (2, 100)
    assert not np.any(taken)


def test_what_a_drafting_step_cannot_do_is_told() -> None:
    with pytest.raises(ValueError, match="a live step cannot be repeated unasked"):
        DraftingLive.execute(SimpleNamespace(), SimpleNamespace(repeats=2))  # type: ignore[arg-type]

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    here = SimpleNamespace(
        _plan=lambda _: SimpleNamespace(packed=SimpleNamespace(tokens=[1, 2])), _compute=full,
        model=SimpleNamespace(device=torch.device("cpu")), _cache=SimpleNamespace(blocks=9),
    )  # fmt: skip
    with pytest.raises(InputError, match="a step of 2 tokens"):
        DraftingLive.execute(here, SimpleNamespace(repeats=1))  # type: ignore[arg-type]
    assert list(Ngram.distributions(SimpleNamespace(), None, 3)) == []  # type: ignore[arg-type]
