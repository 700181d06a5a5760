"""Models of images and text against transformers' classes: the text, its encoder, and what joins them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hf_classes import SMALL, read

from sim.catalog import load_model
from sim.catalog.spellings import CLASSES, TEXTS
from sim.catalog.towers import TOWERS
from traces.schema import InputError

TEXT = {key: value for key, value in SMALL.items() if not key.endswith("token_id")}
WIDE = {**TEXT, "head_dim": 16}
CLIP = {"model_type": "clip_vision_model", "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3}
SIGLIP = {**CLIP, "model_type": "siglip_vision_model", "vision_use_head": False, "image_size": 56, "patch_size": 14}
PIXTRAL = {**CLIP, "model_type": "pixtral", "num_attention_heads": 4, "image_size": 64}
VIT = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
QWEN = {"depth": 3, "num_heads": 4, "patch_size": 14}
MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
CASES: list[tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    # The class; its text, and what of the text, the encoder and the whole differs from the class.
    ("llava", "llama", TEXT, CLIP, {}),
    ("llava", "llama", TEXT, CLIP, {"vision_feature_layer": [-2, -1], "multimodal_projector_bias": False}),
    ("llava", "mistral", TEXT, PIXTRAL, {}),
    ("llava_next", "mistral", TEXT, CLIP, {}),
    ("llava_onevision", "qwen2", TEXT, SIGLIP, {}),
    ("llava_onevision", "qwen2", TEXT, {**SIGLIP, "vision_use_head": True}, {}),
    ("paligemma", "gemma", WIDE, SIGLIP, {}),
    ("idefics3", "llama", TEXT, {**VIT, "image_size": 64, "patch_size": 16}, {"scale_factor": 2}),
    ("smolvlm", "llama", TEXT, {**VIT, "image_size": 64, "patch_size": 16}, {"scale_factor": 4}),
    ("internvl", "qwen2", TEXT, {**VIT, "image_size": [56, 56]}, {}),
    ("internvl", "qwen3", WIDE, {**VIT, "attention_bias": True, "use_qk_norm": True, "norm_type": "rms_norm"}, {}),
    ("qwen2_vl", "qwen2_vl_text", TEXT, {**QWEN, "embed_dim": 48, "hidden_size": 64}, {}),
    ("qwen2_5_vl", "qwen2_5_vl_text", TEXT, {**QWEN, "hidden_size": 48, "out_hidden_size": 64}, {}),
    ("glm4v", "glm4v_text", TEXT, {**QWEN, "hidden_size": 48, "out_hidden_size": 64, "intermediate_size": 80}, {}),
    ("qwen3_vl", "qwen3_vl_text", WIDE, {**QWEN, "hidden_size": 48, "out_hidden_size": 64}, {}),
    ("qwen3_vl_moe", "qwen3_vl_moe_text", {**WIDE, **MOE}, {**QWEN, "hidden_size": 48, "out_hidden_size": 64}, {}),
    ("gemma3", "gemma3_text", WIDE, {**SIGLIP, "vision_use_head": True}, {"mm_tokens_per_image": 16}),
    ("mistral3", "mistral", TEXT, PIXTRAL, {"spatial_merge_size": 2}),
]


def made(kind: str, keys: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """(parameters of the class, the config as a file has it)."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    logging.disable(logging.WARNING)
    try:
        config = transformers.AutoConfig.for_model(kind, **keys)
        with torch.device("meta"):
            model = transformers.AutoModelForImageTextToText.from_config(config)
    finally:
        logging.disable(logging.NOTSET)
    return sum(each.numel() for each in model.parameters()), {**config.to_dict(), "dtype": "bfloat16"}


@pytest.mark.parametrize(("kind", "text_kind", "text", "vision", "outer"), CASES)
def test_parameters_are_those_of_the_class(
    tmp_path: Path, kind: str, text_kind: str, text: dict[str, Any], vision: dict[str, Any], outer: dict[str, Any]
) -> None:
    tied = kind in ("paligemma", "gemma3")
    inner = {"model_type": text_kind, **text, "tie_word_embeddings": tied}
    expected, table = made(kind, {"text_config": inner, "vision_config": vision, "tie_word_embeddings": tied, **outer})
    model = read(tmp_path, table)
    assert model.parameters == expected
    assert model.counted == f"{model.beside:,} parameters of the image encoder included"


def test_most_encoders_are_compared() -> None:
    elsewhere = {"gemma4", "kimi_k25", "step3p7", "llava_next_video", "internvl_chat", "glm4v_moe"}
    assert {kind for kind, *_ in CASES} | elsewhere == set(TOWERS)


@pytest.mark.parametrize("kind", sorted(TEXTS))
def test_what_a_file_leaves_out_is_the_classes(tmp_path: Path, kind: str) -> None:
    """A text model inside of another's config: transformers writes only what differs from the class."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(kind).to_dict()
    assert {key: config[key] for key in TEXTS[kind]} == TEXTS[kind]
    read(tmp_path, {"model_type": "llava", "text_config": {"model_type": kind}, "torch_dtype": "bfloat16"})


def test_classes_leave_out_what_transformers_has() -> None:
    transformers = pytest.importorskip("transformers")
    text = transformers.AutoConfig.for_model("gemma3").text_config.to_dict()
    assert {key: text[key] for key in CLASSES["gemma3"]} == CLASSES["gemma3"]


def test_published_llava(tmp_path: Path) -> None:
    """LLaVA 1.5 7B names seven keys of its text: Vicuna 7B's parameters with a wider vocabulary."""
    text = {"model_type": "llama", "max_position_embeddings": 4096, "torch_dtype": "float16", "vocab_size": 32064}
    model = read(tmp_path, {"model_type": "llava", "text_config": text, "torch_dtype": "float16"})
    assert model.parameters == load_model("llama-2-7b").parameters + 2 * 64 * 4096
    assert (model.dtype, model.max_context_tokens) == ("fp16", 4096)
    assert model.counted == ""


def test_what_is_not_counted_is_said(tmp_path: Path) -> None:
    base = {"model_type": "qwen2", **TEXT, "torch_dtype": "bfloat16"}
    omni = {"model_type": "qwen2_5_omni_thinker", "text_config": {**base, "model_type": "qwen2_5_omni_text"}}
    whole = {"model_type": "qwen2_5_omni", "thinker_config": {**omni, "audio_config": {"d_model": 64}}}
    model = read(tmp_path, whole)
    assert model.counted == "without what reads sound"
    assert model.parameters == read(tmp_path, base).parameters
    seen = read(tmp_path, {"model_type": "ovis", "text_config": base, "vision_config": {"hidden_size": 8}})
    assert seen.counted == "text model alone, without the image encoder (not known)"
    with pytest.raises(
        InputError, match=r"vision_config\.model_type = 'eva' is not known; known are clip_vision_model"
    ):
        read(tmp_path, {"model_type": "llava", "text_config": base, "vision_config": {"model_type": "eva"}})
