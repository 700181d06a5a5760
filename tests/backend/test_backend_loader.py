"""Loading: every tensor of a checkpoint lands in its place, nothing else passes; random weights are reproducible."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the live backend needs torch")
pytest.importorskip("safetensors", reason="checkpoints are safetensors files")

import torch
from model_kit import FAMILIES, config_of, step, story, tensors_of, write_checkpoint
from model_reference import reference_logits
from safetensors.torch import save_file
from torch import Tensor

from backend.cache import memory
from backend.cache.kvcache import KvCache
from backend.model.checkpoint import check_supported, read_config, without_checkpoint
from backend.model.layers import DenseMlp, ExpertMlp, Weights
from backend.model.loader import load_checkpoint, random_model
from backend.model.parameters import LOGIT_SPREAD, parameters
from backend.model.rope import RopeSpec
from backend.model.weights import QuantWeight, Weight, quantised
from sim.catalog import from_hf_config, load_model, names
from sim.specs.model import ModelSpec
from traces.schema import InputError

TINY = load_model("tiny-llama")


def plain(weight: Weight) -> Tensor:
    assert isinstance(weight, Tensor)
    return weight


def tensors_in(weights: Weights) -> list[Tensor]:
    """All that a model holds, each once."""
    found: dict[int, Tensor] = {}

    def add(*values: object) -> None:
        for value in values:
            if isinstance(value, QuantWeight):
                add(value.data, value.scale)
            elif isinstance(value, Tensor):
                found[value.data_ptr()] = value

    add(weights.embedding, weights.final_norm, weights.lm_head)
    for layer in weights.layers:
        add(*(getattr(layer, key) for key in layer.__slots__))
        add(*(getattr(layer.mlp, key) for key in layer.mlp.__slots__))
    return list(found.values())


def runnable(name: str) -> bool:
    try:
        check_supported(load_model(name))
    except InputError:
        return False
    return True


RUNNABLE = [name for name in names("models") if runnable(name)]


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_listed_parameters_are_the_catalogs_count(name: str) -> None:
    spec = load_model(name)
    listed = list(parameters(spec, without_checkpoint(spec)))
    assert sum(math.prod(item.shape) for item in listed) == spec.parameters
    assert sum(math.prod(piece.shape) for item in listed for piece in item.pieces) == spec.parameters
    assert len({item.name for item in listed}) == len(listed)


def test_the_catalogs_usual_models_can_be_run() -> None:
    assert {"tiny-llama", "llama-3.1-8b", "mistral-7b", "mixtral-8x7b", "qwen3-30b-a3b", "qwen3-32b"} <= set(RUNNABLE)
    assert without_checkpoint(load_model("qwen3-30b-a3b")).family == "qwen3_moe"
    assert without_checkpoint(load_model("qwen3-8b")).norm_eps == 1e-6
    assert without_checkpoint(load_model("llama-3.1-8b")).rope.kind == "llama3"
    assert without_checkpoint(load_model("llama-2-7b")).rope == RopeSpec(theta=10_000.0)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tensor_lands_in_its_slice_from_one_file_or_several(name: str, tmp_path: Path) -> None:
    config = config_of(name)
    tensors = tensors_of(config)
    single = load_checkpoint(write_checkpoint(tmp_path / "single", config, tensors)).weights
    sharded = load_checkpoint(write_checkpoint(tmp_path / "sharded", config, tensors, shards=4)).weights
    ours, theirs = tensors_in(single), tensors_in(sharded)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert sum(tensor.numel() for tensor in ours) == from_hf_config(tmp_path / "single" / "config.json").parameters
    for at, layer in enumerate(single.layers):
        attention = [tensors[f"model.layers.{at}.self_attn.{part}_proj.weight"] for part in "qkv"]
        assert torch.equal(plain(layer.qkv), torch.cat(attention))
        if isinstance(layer.mlp, ExpertMlp):
            block, gate, up = ("block_sparse_moe", "w1", "w3") if name == "mixtral" else ("mlp", "gate_proj", "up_proj")
            for expert in range(len(layer.mlp.router)):
                mine = f"model.layers.{at}.{block}.experts.{expert}"
                both = torch.cat([tensors[f"{mine}.{gate}.weight"], tensors[f"{mine}.{up}.weight"]])
                assert torch.equal(plain(layer.mlp.gate_up[expert]), both)
        else:
            both = torch.cat([tensors[f"model.layers.{at}.mlp.{part}_proj.weight"] for part in ("gate", "up")])
            assert torch.equal(plain(layer.mlp.gate_up), both)
    assert (single.lm_head is single.embedding) == config["tie_word_embeddings"]


@pytest.mark.parametrize(("kind", "tolerance"), [("int8", 0.2), ("fp8", 0.8)])
@pytest.mark.parametrize("name", ["llama3", "qwen3-moe"])
def test_quantised_weights_take_half_the_memory_and_stay_near(
    name: str, kind: str, tolerance: float, tmp_path: Path
) -> None:
    config = config_of(name)
    tensors = tensors_of(config)
    model = load_checkpoint(write_checkpoint(tmp_path, config, tensors), dtype="bf16", weights=kind)
    layer = model.weights.layers[1]
    mlp = layer.mlp
    assert isinstance(mlp, DenseMlp | ExpertMlp)
    for weight in (layer.qkv, layer.output, mlp.gate_up, mlp.down):
        assert isinstance(weight, QuantWeight)
        assert weight.nbytes == math.prod(weight.shape) + 4 * math.prod(weight.shape[:-1])
    assert model.weights.embedding.dtype == model.weights.lm_head.dtype == layer.input_norm.dtype == torch.bfloat16
    exact = torch.cat([tensors[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]).bfloat16()
    assert isinstance(layer.qkv, QuantWeight)
    assert torch.equal(layer.qkv.data.float(), quantised(exact, kind).data.float())

    item = story([5, 9, 77, 3, 20, 8, 64, 1], list(range(9, 0, -1)))
    step(model, KvCache.allocate(model.spec, 9, 4), [(item, 7)])
    error = (torch.stack(item.logits).double() - reference_logits(config, tensors, item.tokens[:7])).abs()
    assert error.mean().item() < tolerance


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantising_errs_by_at_most_half_a_step(kind: str) -> None:
    weight = torch.randn(2, 6, 40, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, 6)[:, None]
    weight[0, 2] = 0
    packed = quantised(weight, kind)
    assert packed.scale.shape == (2, 6)
    back = packed.dequantised(torch.float32)
    step_size = packed.scale[..., None] if kind == "int8" else weight.abs() / 8 + packed.scale[..., None] * 2**-9
    assert ((back - weight).abs() <= step_size / 2 * 1.0001).all()
    assert torch.equal(back[1], packed[1].dequantised(torch.float32))
    largest = weight[1].abs().amax(-1)
    assert torch.allclose(back[1].abs().amax(-1), largest, rtol=1e-6)


def test_random_weights_are_reproducible_and_not_degenerate() -> None:
    first, again, other = (random_model(TINY, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(tensors_in(first.weights), tensors_in(again.weights), strict=True))
    assert not torch.equal(plain(first.weights.layers[2].qkv), plain(other.weights.layers[2].qkv))
    assert sum(tensor.nbytes for tensor in tensors_in(first.weights)) == TINY.weight_bytes
    item = story([at * 37 % TINY.vocab for at in range(40)], list(range(10, 0, -1)))
    step(first, KvCache.allocate(TINY, 10, 4), [(item, 40)])
    logits = torch.stack(item.logits)
    assert 0.7 * LOGIT_SPREAD < logits.std().item() < 1.5 * LOGIT_SPREAD
    assert len(set(logits.argmax(-1).tolist())) > 30


def test_random_quantised_weights_are_those_of_the_same_seed() -> None:
    spec = TINY.with_dtypes(dtype="bf16")
    exact, packed = random_model(spec, seed=5), random_model(spec.with_dtypes(weights="int8"), seed=5)
    kept = packed.weights.layers[1].output
    assert isinstance(kept, QuantWeight)
    assert torch.equal(kept.data, quantised(plain(exact.weights.layers[1].output), "int8").data)
    assert torch.equal(exact.weights.lm_head, packed.weights.lm_head)


def test_what_old_checkpoints_hold_beside_is_left_out(tmp_path: Path) -> None:
    config = config_of("qwen2")
    tensors = tensors_of(config)
    extra = {"lm_head.weight": torch.zeros(3), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    weights = load_checkpoint(write_checkpoint(tmp_path, config, {**tensors, **extra})).weights
    assert torch.equal(weights.lm_head, tensors["model.embed_tokens.weight"])


def test_end_tokens_come_from_the_generation_config_where_there_is_one(tmp_path: Path) -> None:
    config = {**config_of("llama"), "eos_token_id": 2}
    write_checkpoint(tmp_path, config, {})
    spec = from_hf_config(tmp_path / "config.json")
    assert read_config(tmp_path, spec).eos_tokens == (2,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert read_config(tmp_path, spec).eos_tokens == (7, 8)


Edit = Callable[[Path, dict[str, Tensor]], None]


def _truncate(folder: Path, tensors: dict[str, Tensor]) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])


def _replace(name: str, value: Tensor | None) -> Edit:
    """The second shard, which the index says has every second name, with one tensor other than it was."""

    def edit(folder: Path, tensors: dict[str, Tensor]) -> None:
        mine = {key: tensors[key] for key in sorted(tensors)[1::2]} | ({} if value is None else {name: value})
        if value is None:
            del mine[name]
        save_file(mine, folder / "model-00002-of-00002.safetensors")

    return edit


def _index(text: str) -> Edit:
    def edit(folder: Path, tensors: dict[str, Tensor]) -> None:
        (folder / "model.safetensors.index.json").write_text(text)

    return edit


def _pickles(folder: Path, tensors: dict[str, Tensor]) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")


def _nothing(folder: Path, tensors: dict[str, Tensor]) -> None:
    for path in folder.glob("model*"):
        path.unlink()


def _forgets_a_tensor(folder: Path, tensors: dict[str, Tensor]) -> None:
    (folder / "model.safetensors.index.json").unlink()
    rest = {name: tensor for name, tensor in tensors.items() if "layers.1.mlp" not in name}
    save_file(rest, folder / "model.safetensors")


K_PROJ = "model.layers.0.self_attn.k_proj.weight"
DAMAGES: dict[str, tuple[Edit, str]] = {
    "truncated": (_truncate, r"model-00002-of-00002\.safetensors: not a whole safetensors file"),
    "missing shard": (
        lambda folder, tensors: (folder / "model-00001-of-00002.safetensors").unlink(),
        r"model-00001-of-00002\.safetensors is named and not there, beside 1 that are",
    ),
    "missing tensor": (_replace(K_PROJ, None), rf"model-00002.*: tensor '{K_PROJ}' is missing, and the index"),
    "wrong shape": (
        _replace(K_PROJ, torch.zeros(32, 63)),
        rf"model-00002.*: tensor '{K_PROJ}' is \[32, 63\], and config\.json makes it \[32, 64\]",
    ),
    "wrong type": (
        _replace(K_PROJ, torch.zeros(32, 64, dtype=torch.int32)),
        rf"model-00002.*: tensor '{K_PROJ}' is int32; known are float32, float16, bfloat16",
    ),
    "unexpected tensor": (
        _replace("model.extra", torch.zeros(3)),
        "tensor 'model.extra' is none that config.json",
    ),
    "twice": (_replace("lm_head.weight", torch.zeros(128, 64)), "tensor 'lm_head.weight' is there twice"),
    "not an index": (_index("[]"), r"model\.safetensors\.index\.json: weight_map must be an object of names of files"),
    "an index elsewhere": (
        _index('{"weight_map": {"lm_head.weight": "../secret.safetensors"}}'),
        r"weight_map names '\.\./secret\.safetensors', which is no file of this folder",
    ),
    "pickles": (_pickles, r"only pickled weights \(pytorch_model\.bin\), which are never opened"),
    "nothing": (_nothing, r"neither model\.safetensors nor model\.safetensors\.index\.json is there"),
    "forgotten": (_forgets_a_tensor, r"tensor 'model\.layers\.1\.mlp\.down_proj\.weight' and 2 more of config\.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_in_one_sentence(damage: str, tmp_path: Path) -> None:
    config = config_of("llama")
    tensors = tensors_of(config)
    write_checkpoint(tmp_path, config, tensors, shards=2)
    edit, message = DAMAGES[damage]
    edit(tmp_path, tensors)
    with pytest.raises(InputError, match=message) as caught:
        load_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "granite"}, "model_type = 'granite' cannot be run; known are "),
        ({"byte_level": True}, "byte_level = True must be true, for a vocabulary of 256 or more, or false"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' cannot be run; known is silu"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' cannot be run .*default, linear"),
        ({"rope_scaling": {"type": "linear", "factor": "x"}}, "factor"),
        ({"rope_theta": -1.0}, "rope_theta = -1.0 must be a positive number"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor cannot be run"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "one rule for all layers"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps = 'small' must be a positive number"),
        ({"eos_token_id": ["</s>"]}, "eos_token_id = .* must be a token or a list"),
        ({"head_dim": 48}, "head_dim 48 is none of 16, 32, 64, 128, 256"),
        ({"hidden_size": 128}, r"tensor .* is \[.*64.*\], and config\.json makes it \[.*128.*\]"),
        ({"num_hidden_layers": 3}, r"tensor 'model\.layers\.2\..*' and 8 more"),
        ({"num_hidden_layers": 1}, r"tensor 'model\.layers\.1\..*' is none that config\.json asks for"),
    ],
)
def test_a_config_that_cannot_be_run_is_refused_in_one_sentence(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = config_of("llama")
    write_checkpoint(tmp_path, {**config, **change}, tensors_of(config))
    with pytest.raises(InputError, match=message):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"norm": "layer", "learned_positions": 2050}, "norms other than RMSNorm"),
        ({"learned_positions": 2050}, "learned positions"),
        ({"gated_mlp": False}, "an MLP without a gate"),
        ({"post_norms": True}, "four norms a layer"),
        ({"head_sinks": True}, "sink logits"),
    ],
)
def test_other_families_are_refused_with_the_names_of_the_known_ones(other: dict[str, Any], what: str) -> None:
    keys = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "max_context_tokens")
    spec = ModelSpec(name="other", source="here", **{key: getattr(TINY, key) for key in keys}, **other)
    with pytest.raises(InputError, match=f"'other' has {what}.*known are llama, mistral, mixtral, qwen2, qwen3"):
        random_model(spec)


def test_what_no_config_says_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 of 2 layers have a window, but not which; give the folder of a checkpoint"):
        without_checkpoint(replace(TINY, layers=2, sliding_layers=1, sliding_window_tokens=16))
    config = config_of("llama")
    write_checkpoint(tmp_path, config, tensors_of(config))
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(InputError, match=r"generation_config.json: must hold a JSON object"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config.json: .* object"):
        load_checkpoint(tmp_path)
    with pytest.raises(InputError, match="weight type 'int3' cannot be quantised to; known are fp8, int8"):
        quantised(torch.ones(2, 2), "int3")


def test_weight_types_and_memory_are_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="weights 'int4' cannot be run with dtype bf16; known are auto, fp8, int8"):
        random_model(TINY.with_dtypes(dtype="bf16", weights="int4"))
    monkeypatch.setattr(memory, "device_bytes", lambda device: TINY.weight_bytes - 1)
    with pytest.raises(InputError, match=r"model 'tiny-llama' in fp32 needs 0\.02 GiB, but cpu has 0\.02 GiB"):
        random_model(TINY)
