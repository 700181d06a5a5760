"""What on disk decides the types: quantisation configs of every kind, the file beside them, safetensors headers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.catalog import from_hf_config, load_model
from sim.catalog.patterns import Patterns
from sim.specs.dtypes import WEIGHT_TYPES, weight_type
from sim.specs.model import ModelSpec
from sim.specs.parallel import Parallel
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
    "tie_word_embeddings": False,
}
MATRICES = 32 * (4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336)
PLAIN = 2 * (2 * 128256 * 4096 + 65 * 4096)
"""Bytes of embedding, LM head and norms."""
QKV, OUT, UP, DOWN = 4096 * 6144, 4096 * 4096, 4096 * 28672, 14336 * 4096


def read(folder: Path, quantised: object = None, beside: object = None, **changes: Any) -> ModelSpec:
    table = {key: value for key, value in {**LLAMA, **changes}.items() if value != "absent"}
    if quantised is not None:
        table["quantization_config"] = quantised
    if beside is not None:
        (folder / "hf_quant_config.json").write_text(json.dumps(beside))
    (folder / "config.json").write_text(json.dumps(table))
    return from_hf_config(folder / "config.json")


def groups(**weights: Any) -> dict[str, Any]:
    group = {"weights": weights, "targets": ["Linear"]}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


@pytest.mark.parametrize(
    ("table", "kind", "bits"),
    [
        ({"quant_method": "fp8"}, "fp8", 8 + 32 / 128**2),
        ({"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}, "fp8", 8 + 32 / 128**2),
        ({"quant_method": "fbgemm_fp8", "modules_to_not_convert": []}, "fp8", 8 + 32 / 128**2),
        (groups(num_bits=8, type="float", strategy="channel"), "fp8", 8 + 32 / 128**2),
        (groups(num_bits=8, type="float", strategy="tensor"), "fp8", 8 + 32 / 128**2),
        (groups(num_bits=4, type="float", group_size=16), "nvfp4", 4.5),
        (groups(num_bits=4, type="float", group_size=32), "mxfp4", 4.25),
        (groups(num_bits=8, type="float", group_size=32), "mxfp8", 8.25),
        (groups(num_bits=4, type="int", strategy="group", group_size=32), "int4-g32-sym", 4.5),
        (groups(num_bits=4, strategy="group", group_size=128, symmetric=False), "int4", 4 + 20 / 128),
        (groups(num_bits=8, type="int", strategy="channel", symmetric=True), "int8-channel-sym", 8.003),
        ({"quant_method": "awq"}, "int4", 4 + 20 / 128),
        ({"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True}, "int4-g64", 4 + 20 / 64),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 32}, "int4-g32", 4 + 20 / 32),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1, "desc_act": False}, "int4-channel", 4.003),
        ({"quant_method": "gptq", "bits": 3, "group_size": 96}, "int3-g96", 3 + 19 / 96),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, "int8", 8 + 24 / 128),
        ({"quant_method": "auto-round", "bits": 2, "group_size": 64}, "int2-g64", 2 + 18 / 64),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4", 4.5),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
            "nf4-double",
            4.125,
        ),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8-channel-sym", 8.003),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}, "nvfp4", 4.5),
        ({"quant_algo": "FP8"}, "fp8", 8 + 32 / 128**2),
        ({"quant_method": "modelopt", "quant_algo": "W4A16_AWQ", "group_size": 128}, "int4-g128-sym", 4.125),
        ({"quant_method": "mxfp8"}, "mxfp8", 8.25),
        ({"quant_method": "nvfp4", "modules_to_not_convert": ["lm_head"]}, "nvfp4", 4.5),
        ({"quant_method": "w8a8_int8"}, "int8-channel-sym", 8.003),
        ({"quant_method": "eetq"}, "int8-channel-sym", 8.003),
        ({"quant_method": "gptq_marlin", "bits": 4, "group_size": 128}, "int4", 4 + 20 / 128),
        ({"quant_method": "torchao", "quant_type": "int8wo"}, "int8-channel-sym", 8.003),
        (
            {"quant_method": "torchao", "quant_type": {"default": {"_type": "Float8WeightOnlyConfig"}}},
            *("fp8", 8 + 32 / 128**2),
        ),
        (
            {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
            *("int4-g64", 4 + 20 / 64),
        ),
        (
            {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4", "group_size": 32}}},
            *("mxfp4", 4.25),
        ),
    ],
)
def test_methods(tmp_path: Path, table: dict[str, Any], kind: str, bits: float) -> None:
    """The type, and bytes by hand: so many bits for each weight of a matrix, everything else in bf16."""
    model = read(tmp_path, table)
    assert (model.weights, model.dtype, model.kv_dtype, model.blocks) == (kind, "bf16", "bf16", ())
    assert model.parameters == 8_030_261_248
    assert model.weight_bytes == pytest.approx(MATRICES * bits / 8 + PLAIN, rel=3e-4)


def test_types_by_their_names() -> None:
    assert weight_type("int4-g128") == WEIGHT_TYPES["int4"]
    assert weight_type("int8-g128") == WEIGHT_TYPES["int8"]
    assert weight_type("int4-channel").matrix_bytes(1000, 3) == 1500 + -(-20 * 3 // 8)
    for name in ("int4-g0", "int1-g8", "int9-g8", "int4-g", "int4-channel-asym", "INT4-g8"):
        with pytest.raises(InputError, match=r"mxfp4.*intB-gG"):
            weight_type(name)


@given(bits=st.integers(2, 8), group=st.integers(1, 4096), k=st.integers(1, 4096), n=st.integers(1, 64))
def test_bytes_of_any_group(bits: int, group: int, k: int, n: int) -> None:
    """No fewer than the bits alone, and no more than with a whole group's scale and zero point for the rest."""
    size = weight_type(f"int{bits}-g{group}").matrix_bytes(k, n)
    assert size * 8 >= bits * k * n
    assert size * 8 <= bits * k * n + (16 + bits) * n * (k // group + 1) + 8


class TestBeside:
    """ModelOpt's `hf_quant_config.json`."""

    def test_types_of_weights_and_cache(self, tmp_path: Path) -> None:
        quantised = {
            "quant_algo": "NVFP4",
            "kv_cache_quant_algo": "FP8",
            "group_size": 16,
            "exclude_modules": ["lm_head"],
        }
        model = read(tmp_path, beside={"producer": {"name": "modelopt"}, "quantization": quantised})
        assert (model.weights, model.kv_dtype) == ("nvfp4", "fp8")
        assert model.kv_bytes_per_token == 32 * 2 * 8 * 128

    def test_the_config_wins_over_another_method(self, tmp_path: Path) -> None:
        model = read(tmp_path, {"quant_method": "fp8"}, {"quantization": {"quant_algo": "NVFP4"}})
        assert model.weights == "fp8"

    def test_no_algorithm_is_no_quantisation(self, tmp_path: Path) -> None:
        model = read(tmp_path, beside={"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}})
        assert (model.weights, model.kv_dtype) == ("auto", "fp8")

    def test_layers_of_their_own(self, tmp_path: Path) -> None:
        layers = {
            f"model.layers.{index}.mlp.{name}": {"quant_algo": "FP8"}
            for index in range(32)
            for name in ("up_proj", "down_proj")
        }
        layers["model.layers.5.self_attn.o_proj"] = {"quant_algo": "NVFP4", "group_size": 16}
        model = read(tmp_path, beside={"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}})
        assert model.weights == "fp8"
        mlps = 32 * (UP + DOWN) * (1 + 4 / 128**2)
        attention = 2 * (32 * QKV + 31 * OUT) + OUT * 4.5 / 8
        assert model.weight_bytes == pytest.approx(mlps + attention + PLAIN, rel=1e-6)
        assert sorted(block.layers for block in model.blocks) == [1, 31]


class TestModules:
    """Modules that stay as they are."""

    def test_what_a_family_never_quantises_changes_nothing(self, tmp_path: Path) -> None:
        names = ["lm_head", "model.embed_tokens", "model.layers.0.input_layernorm", "visual"]
        assert read(tmp_path, {"quant_method": "fp8", "modules_to_not_convert": names}).blocks == ()

    @pytest.mark.parametrize(
        "names",
        [
            ["self_attn"],
            ["re:.*self_attn.*"],
            ["*.self_attn.*"],
            ["model.layers.*.self_attn"],
            [f"model.layers.{index}.self_attn*" for index in range(32)],
            [
                f"language_model.model.layers.{index}.self_attn.{name}"
                for index in range(32)
                for name in ("q_proj", "o_proj")
            ],
        ],
    )
    def test_attention_left_plain(self, tmp_path: Path, names: list[str]) -> None:
        model = read(
            tmp_path, {"quant_method": "compressed-tensors", **groups(num_bits=8, type="float"), "ignore": names}
        )
        expected = 32 * (2 * (QKV + OUT) + (UP + DOWN) * (1 + 4 / 128**2)) + PLAIN
        assert model.weight_bytes == pytest.approx(expected, rel=1e-6)
        assert [block.layers for block in model.blocks] == [32]
        assert model.with_dtypes(weights="int4").weight_bytes < model.weight_bytes

    def test_first_layers_left_plain(self, tmp_path: Path) -> None:
        model = read(
            tmp_path, {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.0", "model.layers.31."]}
        )
        assert sorted(block.layers for block in model.blocks) == [2, 30]

    def test_everything_left_plain_is_not_quantised(self, tmp_path: Path) -> None:
        assert read(tmp_path, {"quant_method": "fp8", "modules_to_not_convert": ["layers"]}).weights == "auto"

    def test_gptq_by_module(self, tmp_path: Path) -> None:
        dynamic = {r"-:.*\.self_attn\..*": {}, r"+:.*\.mlp\.down_proj": {"bits": 8, "group_size": 64}}
        model = read(tmp_path, {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": dynamic})
        expected = 32 * (2 * (QKV + OUT) + UP * (4 + 20 / 128) / 8 + DOWN * (8 + 24 / 64) / 8) + PLAIN
        assert model.weight_bytes == pytest.approx(expected, rel=1e-6)

    def test_a_pattern_names_parts_of_names_alone(self) -> None:
        patterns = Patterns("x", ["gate", "model.layers.1.mlp"])
        assert patterns.match(3, "block_sparse_moe.gate")
        assert not patterns.match(3, "mlp.gate_proj")
        assert patterns.match(1, "mlp.up_proj")
        assert not patterns.match(11, "mlp.up_proj")

    def test_experts_alone(self) -> None:
        """gpt-oss-20b: 12.8 GB of experts at 4.25 bits, the rest in bf16; 13.76 GB as published."""
        model = load_model("gpt-oss-20b")
        experts = 24 * 32 * (2880 * 5760 + 2880 * 2880)
        assert model.weight_bytes == pytest.approx(experts * 4.25 / 8 + (model.parameters - experts) * 2, rel=1e-6)
        assert round(model.weight_bytes / 1e9, 2) == 13.76


def test_engines_load_16_bits(tmp_path: Path) -> None:
    for dtype in ("absent", "float32", None):
        assert read(tmp_path, torch_dtype=dtype).dtype == "bf16"
    assert read(tmp_path, torch_dtype="float16").dtype == "fp16"
    assert read(tmp_path, torch_dtype="torch.bfloat16").dtype == "bf16"


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"quant_method": "aqlm"}, r"quantised by 'aqlm', whose bytes are not modelled; known are fp8"),
        (
            {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}},
            "quant_type is torchao's 'Int4WeightOnlyConfig', which is not modelled; known are float8wo",
        ),
        ({"quant_method": "torchao"}, "quant_type is torchao's None"),
        ({"bits": 4}, r"quantization_config\.quant_method is missing; known are fp8"),
        ({"quant_method": ["awq"]}, r"quantised by \['awq'\]"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size = 0 must be -1 or lie between"),
        ({"quant_method": "gptq", "bits": 16}, "bits = 16 must lie between 2 and 8"),
        ({"quant_method": "gptq", "bits": 4, "lm_head": True}, "lm_head = True is not supported"),
        (
            groups(num_bits=4, type="float", group_size=64),
            "num_bits = 4, type = 'float', group_size = 64 is not modelled",
        ),
        ({**groups(num_bits=4), "format": "marlin-24"}, "2:4 sparse .marlin-24., which is not modelled"),
        ({"quant_method": "compressed-tensors"}, r"key 'quantization_config\.config_groups' is missing"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "config_groups has no group with weights"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": 3}}, "config_groups.a must be an object"),
        ({"quant_method": "bitsandbytes"}, "load_in_4bit and load_in_8bit are both false"),
        ({"quant_method": "modelopt", "quant_algo": "FP6"}, "quant_algo = 'FP6' is not modelled; known are FP8"),
        (
            {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "NVFP4"},
            "KV cache is 'NVFP4', which",
        ),
        ({"quant_method": "fp8", "modules_to_not_convert": "lm_head"}, "must be a list of names of modules"),
        ({"quant_method": "fp8", "modules_to_not_convert": [3]}, "must be a list of names of modules"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["re:(a+)+b"]}, "which repeats a group; that is not read"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["re:["]}, "which is no regular expression"),
        (
            {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp2"}}},
            "dtype = 'fp2' is not modelled",
        ),
        (4, "quantization_config must be an object"),
    ],
)
def test_what_cannot_be_modelled_is_named(tmp_path: Path, table: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        read(tmp_path, table)
    assert str(caught.value).startswith(str(tmp_path / "config.json"))
    assert "\n" not in str(caught.value)


def tensors(path: Path, entries: dict[str, tuple[str, int]], header: bytes | None = None) -> None:
    """A safetensors file with a header and no weights: (type, bytes) of each tensor."""
    at, table = 0, {}
    for name, (kind, size) in entries.items():
        table[name] = {"dtype": kind, "shape": [size], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(table).encode() if header is None else header
    path.write_bytes(len(text).to_bytes(8, "little") + text)


class TestSafetensors:
    def test_headers_are_the_truth(self, tmp_path: Path) -> None:
        """A float32 copy is loaded in bf16; scales and packed weights as stored; MTP layers are left out."""
        tensors(
            tmp_path / "model.safetensors",
            {
                "model.embed_tokens.weight": ("F32", 4000),
                "model.layers.0.mlp.up_proj.weight": ("F8_E4M3", 1000),
                "model.layers.0.mlp.up_proj.weight_scale_inv": ("F32", 40),
                "model.layers.1.mlp.up_proj.weight_packed": ("U8", 500),
                "model.layers.32.mlp.up_proj.weight": ("BF16", 7000),
                "mtp.layers.0.mlp.up_proj.weight": ("BF16", 9000),
            },
        )
        model = read(tmp_path)
        assert model.weight_bytes == model.checkpoint_bytes == 2000 + 1000 + 40 + 500
        assert model.parameters == 8_030_261_248
        assert model.with_dtypes(weights="int4").checkpoint_bytes == 0

    def test_on_several_gpus_the_difference_is_shared(self, tmp_path: Path) -> None:
        plain = read(tmp_path)
        tensors(tmp_path / "model.safetensors", {"a": ("BF16", plain.weight_bytes + 4096)})
        more = read(tmp_path)
        split = Parallel(4)
        assert more.gpu_weight_bytes(split) == plain.gpu_weight_bytes(split) + 1024

    def test_shards_by_their_index(self, tmp_path: Path) -> None:
        index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        assert read(tmp_path).checkpoint_bytes == 0
        tensors(tmp_path / "one.safetensors", {"a": ("BF16", 100)})
        with pytest.raises(InputError, match=r"two\.safetensors is named and not there, beside 1 that are"):
            read(tmp_path)
        tensors(tmp_path / "two.safetensors", {"b": ("I32", 60)})
        assert read(tmp_path).checkpoint_bytes == 160

    @pytest.mark.parametrize(
        ("header", "sentence"),
        [
            (b"[]", "is no safetensors file"),
            (b"{ ", "header is not JSON"),
            (b'{"a": 3}', "tensor 'a' has no dtype and data_offsets"),
            (b'{"a": {"dtype": "BF16", "data_offsets": [4, 2]}}', "tensor 'a' has no dtype and data_offsets"),
            (b'{"a": {"dtype": "BF16", "data_offsets": [0, 1e99]}}', "tensor 'a' has no dtype and data_offsets"),
        ],
    )
    def test_broken_headers(self, tmp_path: Path, header: bytes, sentence: str) -> None:
        tensors(tmp_path / "model.safetensors", {}, header)
        with pytest.raises(InputError, match=sentence):
            read(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 64, (10**7).to_bytes(8, "little") + b"{}"])
    def test_no_safetensors_file(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(InputError, match=r"model\.safetensors"):
            read(tmp_path)

    def test_an_index_that_leads_elsewhere(self, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/x.safetensors"}}')
        with pytest.raises(InputError, match="which is no file of this folder"):
            read(tmp_path)


class TestCache:
    """Checkpoints by name in the local Hugging Face cache."""

    @pytest.mark.parametrize("at", ["HF_HOME", "HF_HUB_CACHE"])
    def test_a_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
        monkeypatch.delenv("HF_HUB_CACHE", raising=False)
        monkeypatch.setenv(at, str(tmp_path))
        folder = (tmp_path / "hub" if at == "HF_HOME" else tmp_path) / "models--some-one--a.model-8B"
        with pytest.raises(
            InputError, match=r"unknown model 'some-one/a.model-8B'; known are .* its name in the local cache"
        ):
            load_model("some-one/a.model-8B")
        for revision in ("abc", "def"):
            (folder / "snapshots" / revision).mkdir(parents=True)
            read(folder / "snapshots" / revision, torch_dtype="float16" if revision == "def" else "bfloat16")
        with pytest.raises(InputError, match="unknown model"):  # which of both is not known
            load_model("some-one/a.model-8B")
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("def")
        model = load_model("some-one/a.model-8B")
        assert (model.name, model.dtype, model.parameters) == ("a.model-8B", "fp16", 8_030_261_248)

    def test_the_catalog_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        folder = tmp_path / "models--meta-llama--Llama-3.1-8B" / "snapshots" / "abc"
        folder.mkdir(parents=True)
        read(folder, num_hidden_layers=3)
        assert load_model("meta-llama/Llama-3.1-8B").layers == 32
