"""KV blocks out of a line that a server wrote at its start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import api
from sim.scenario import build
from sim.serving.assemble import assemble
from sim.serving.startup_log import logged_room
from sim.study.identity import made_of
from traces.schema import InputError

RUN: dict[str, Any] = {"trace": "chatbot_arena.jsonl", "limit": 20, "engine.max_model_len": 1024}
VLLM = "(EngineCore_DP0 pid=7) INFO 11-30 [kv_cache_utils.py:1087] GPU KV cache size: 41,408 tokens"


def blocks(**kv: Any) -> int:
    return assemble(build(RUN, {f"kv.{key}": value for key, value in kv.items()})).memory.blocks


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (VLLM, 2587),
        ("INFO worker.py: # GPU blocks: 2588, # CPU blocks: 2048", 2588),
        ("# cuda blocks: 2588, # CPU blocks: 0", 2588),
        ('    "num_gpu_blocks": 2588,', 2587),
        ("INFO Available KV cache memory: 5.06 GiB", 2589),
        ("max_total_num_tokens=41408, chunked_prefill_size=8192", 2588),
    ],
)
def test_each_form(line: str, expected: int, tmp_path: Path) -> None:
    """A block of Llama-3.1-8B has 2 MiB; of vLLM's one is the null block, since its V1 engine."""
    assert blocks(from_log=line) == expected
    log = tmp_path / "server.log"
    log.write_text(f"starting\n{line}\nready\n")
    assert blocks(from_log=str(log)) == expected


def test_tokens_go_before_bytes_and_the_last_line_of_a_form_counts(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text(
        "Available KV cache memory: 9.00 GiB\nGPU KV cache size: 1,600 tokens\nGPU KV cache size: 3,200 tokens\n"
    )
    assert blocks(from_log=str(log)) == 199
    assert blocks(from_log=str(log), block_tokens=32) == 99


@given(st.integers(32, 10**7))
def test_a_size_of_tokens_is_met_to_the_block(tokens: int) -> None:
    assert logged_room(f"GPU KV cache size: {tokens:,} tokens").amount == tokens


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ("", "is no file"),
        ("no such file.log", "'no such file.log' is no file, and says no size of a KV cache; known are vLLM's 'GPU KV"),
        ("x" * 5000, "is no file"),
        ("two\nlines", "'two lines' is no file"),
        (
            "GPU KV cache size: 0 tokens",
            "'GPU KV cache size: 0 tokens' is no size of a KV cache; it must be above 0, whole",
        ),
        ("GPU KV cache size: 1.5 tokens", "is no size"),
        ("max_total_num_tokens=9999999999999", "is no size"),
    ],
)
def test_what_says_no_size_is_refused(told: str, why: str) -> None:
    with pytest.raises(InputError) as refused:
        logged_room(told)
    assert str(refused.value).startswith("kv.from_log: ")
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_contradicts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"kv.blocks and kv.from_log both say"):
        blocks(from_log=VLLM, blocks=5)
    with pytest.raises(InputError, match=r"is less than a block of kv.block_tokens = 16 tokens"):
        blocks(from_log="max_total_num_tokens=15")
    with pytest.raises(InputError, match=r"kv.estimate is most, and it is read only where"):
        api.run(**RUN, **{"kv.from_log": VLLM, "kv.estimate": "most"})
    empty = tmp_path / "empty.log"
    empty.write_text("nothing here\n")
    with pytest.raises(InputError, match=r"empty\.log has no size of a KV cache; known are"):
        blocks(from_log=str(empty))


def test_a_run_says_where_its_blocks_are_from_and_can_be_run_again() -> None:
    result = api.run(**RUN, **{"kv.from_log": VLLM})
    kv = result.summary["kv"]
    assert (kv["capacity_low_tokens"], kv["capacity_tokens"], kv["capacity_high_tokens"]) == (41_392,) * 3
    assert kv["capacity_source"] == "GPU KV cache size: 41,408 tokens"
    assert (result.scenario.kv.blocks, result.scenario.kv.from_log) == (2587, "")
    assert api.run(result.scenario).summary["kv"]["capacity_tokens"] == 41_392


def test_a_sweep_knows_the_log_by_its_content(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text(VLLM)
    first = made_of([f"kv.from_log={log}"])
    log.write_text(VLLM.replace("41,408", "41,424"))
    assert first != made_of([f"kv.from_log={log}"])
    assert made_of([f"kv.from_log={VLLM}"]) == {}
