"""The rules of a version, live: placeholders of drafts are computed, and change no token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from sim import api

SETTINGS: dict[str, Any] = {
    "model": "byte-target",
    "executor": "live",
    "device": "cpu",
    "policy": "speculative",
    "allocator": "prefix",
    "speculation.drafter": "ngram",
    "speculation.k": 3,
    "kv.blocks": 200,
    "engine.max_num_batched_tokens": 512,
    "engine.max_num_seqs": 1,
    "engine.max_model_len": 256,
}


def test_padded_admissions_change_no_answer(tmp_path: Path) -> None:
    """Of six prompts of 65 tokens the first 64 are the same, so that five admissions have one token left."""
    trace = tmp_path / "shared.jsonl"
    row = {"prompt_tokens": 65, "output_tokens": 12, "prefix_blocks": [1, 2, 3, 4], "prefix_block_tokens": 16}
    trace.write_text("".join(json.dumps({"arrival_s": 0.0, **row}) + "\n" for _ in range(6)))
    runs = [api.run(trace=str(trace), **SETTINGS, **{"engine.preset": name}) for name in ("vllm-0.19", "vllm-0.33")]
    for run in runs:
        assert list(run.requests["prefix_hit_tokens"]) == [0, 64, 64, 64, 64, 64]
        assert run.tokens is not None
    old, new = ([list(map(int, ids)) for ids in run.tokens["token_ids"]] for run in runs)  # type: ignore[index]
    assert old == new
    drafted = [int(run.steps["draft_tokens"].sum()) for run in runs]
    assert drafted[1] == drafted[0] + 5 * 3
