"""Configs that are broken or hostile: what each is told, as a table to be read; bounded time and memory."""

from __future__ import annotations

import json
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.catalog import from_hf_config, load_model
from sim.catalog.architectures import ARCHITECTURES
from sim.catalog.families import FAMILIES, REFUSED
from traces.schema import InputError

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 64, "vocab_size": 100}
SENTENCES: list[tuple[dict[str, Any], str]] = [
    ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000 must lie between 1 and 10000"),
    ({"num_hidden_layers": -1}, "num_hidden_layers = -1 must lie between 1 and 10000"),
    ({"num_hidden_layers": 0}, "num_hidden_layers = 0 must lie between 1 and 10000"),
    ({"num_hidden_layers": "32"}, "num_hidden_layers = '32' must be a whole number"),
    ({"num_hidden_layers": True}, "num_hidden_layers = True must be a whole number"),
    ({"num_hidden_layers": 32.5}, "num_hidden_layers = 32.5 must be a whole number"),
    ({"num_hidden_layers": [32]}, "num_hidden_layers = [32] must be a whole number"),
    (
        {"num_hidden_layers": 10**400},
        f"num_hidden_layers = 1{'0' * 17}...{'0' * 19} must lie between 1 and 10000",
    ),
    (
        {"num_hidden_layers": list(range(10**5))},
        "num_hidden_layers = [0, 1, 2, 3, ...] must be a whole number",
    ),
    ({"vocab_size": float("nan")}, "vocab_size = nan must be a whole number"),
    ({"vocab_size": float("inf")}, "vocab_size = inf must be a whole number"),
    ({"vocab_size": -5}, "vocab_size = -5 must lie between 1 and 1000000000"),
    ({"vocab_size": {"a": {"b": {"c": 1}}}}, "vocab_size = {'a': {'b': {...}}} must be a whole number"),
    ({"hidden_size": 10**12}, "hidden_size = 1000000000000 must lie between 1 and 16777216"),
    ({"hidden_size": None}, "key 'hidden_size' is missing"),
    ({"num_attention_heads": 0}, "num_attention_heads = 0 must lie between 1 and 1048576"),
    ({"num_key_value_heads": 3}, "model 'NAME': heads 32 is not a multiple of kv_heads 3"),
    ({"head_dim": -8}, "head_dim = -8 must lie between 1 and 1048576"),
    ({"max_position_embeddings": 0}, "max_position_embeddings = 0 must lie between 1 and 1000000000"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes' must be true or false"),
    ({"attention_bias": 1}, "attention_bias = 1 must be true or false"),
    ({"rope_scaling": [1]}, "rope_scaling must be an object"),
    ({"torch_dtype": 5}, "dtype = 5 is none of float16, bfloat16, float32, half, float"),
    ({"quantization_config": []}, "quantization_config must be an object"),
    ({"model_type": "whisper"}, f"model_type = 'whisper' is not supported: {REFUSED['whisper']}"),
    ({"model_type": "rwkv"}, "model_type = 'rwkv' is not supported: RWKV's time mixing is not modelled"),
    ({**GPT2, "n_layer": 10**9}, "n_layer = 1000000000 must lie between 1 and 10000"),
    ({**GPT2, "n_embd": "64"}, "n_embd = '64' must be a whole number"),
    ({**GPT2, "n_head": 3}, "n_embd 64 is not a multiple of n_head 3"),
    ({"model_type": "mpt", "attn_config": {"attn_type": ["a"]}}, "attn_config.attn_type = ['a'] is none of"),
    ({"model_type": "jamba", "attn_layer_period": 0}, "attn_layer_period and expert_layer_period must be at least 1"),
    ({"model_type": "bamba", "attn_layer_indices": [99]}, "attn_layer_indices must lie between 0 and 31"),
    ({"model_type": "minimax", "attn_type_list": [2] * 32}, "attn_type_list must have 0 or 1 for each of 32 layers"),
    (
        {"model_type": "mamba2", "num_heads": 3},
        "num_heads 3 times head_dim 64 is not expand times hidden_size",
    ),
    (
        {"model_type": "hunyuan_v1_moe", "num_experts": [4, 8]},
        "num_experts must be one number for all layers, or a list of the same",
    ),
    (
        {"model_type": "gemma3n_text", "intermediate_size": [1, 2]},
        "intermediate_size has 2 entries, and there are 32 layers",
    ),
]
TEXTS: list[tuple[bytes, str]] = [
    (b"", " is not JSON: Expecting value: line 1 column 1 (char 0)"),
    (b'{"model_type": llama}', " is not JSON: Expecting value: line 1 column 16 (char 15)"),
    (b"[1, 2]", ": must hold a JSON object"),
    (b'"llama"', ": must hold a JSON object"),
    (bytes(range(256)), " is not UTF-8 text (byte 129)"),
    (json.dumps(LLAMA).encode("utf-16"), " is not UTF-8 text (byte 1)"),
    (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, " is not JSON: it is nested more than 100 deep"),
    (b"[" * 1_000_000, " is not JSON: it is nested more than 100 deep"),
    (b'{"vocab_size": ' + b"9" * 1_000_000 + b"}", " is not JSON: it has a number of thousands of digits"),
]


@pytest.mark.parametrize(("changes", "sentence"), SENTENCES)
def test_values(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**LLAMA, **changes}))
    with pytest.raises(InputError) as caught:
        from_hf_config(path)
    assert str(caught.value).startswith(f"{path}: {sentence.replace('NAME', tmp_path.name)}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize(("text", "sentence"), TEXTS)
def test_texts(tmp_path: Path, text: bytes, sentence: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text)
    with pytest.raises(InputError) as caught:
        from_hf_config(path)
    assert str(caught.value) == f"{path}{sentence}"


def test_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(LLAMA).encode())
    assert from_hf_config(path).parameters == load_model("llama-3.1-8b").parameters


def test_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(2**30)
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(InputError, match="is 1,073,741,824 bytes; such a file has at most 64 MiB"):
        from_hf_config(path)
    assert time.process_time() - started < 1
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


VALUES = st.sampled_from(
    [10**9, 10**6, 10_001, -1, 0, 10**18, "5", True, 1.5, float("nan"), [], [1, 2], {}, {"a": 1}, [10**9] * 5]
)


@settings(max_examples=150)
@given(st.sampled_from([*ARCHITECTURES, *FAMILIES]), st.data())
def test_any_family_with_any_bad_value(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    """A model or one sentence, soon, of every family: its table with some keys made hostile."""
    from test_catalog import LLAMA as FULL
    from test_catalog import OTHERS

    table = {**FULL, **OTHERS, **GPT2, "model_type": kind}
    keys = data.draw(st.lists(st.sampled_from(sorted(set(table) - {"model_type"})), max_size=3, unique=True))
    changed = {**table, **{key: data.draw(VALUES) for key in keys}}
    path = tmp_path_factory.getbasetemp() / "hostile.json"
    path.write_text(json.dumps(changed))
    started = time.process_time()
    with suppress(InputError):
        from_hf_config(path)
    assert time.process_time() - started < 2
