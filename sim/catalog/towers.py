"""Image encoders beside a language model: their parameters, which engines load with it in its plain type.

Each counts what the class of transformers (5.x) has that a checkpoint's `model_type` names. It makes no layers:
they take no part in a step of text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sim.catalog.hf_config import Config


def tower_of(whole: Config, counted: list[str]) -> int:
    """Parameters of the image encoder and what joins it to the text; `counted` is told what is counted and what not."""
    kind = whole.table.get("model_type")
    section = whole.table.get("vision_config")
    if not isinstance(kind, str) or (not isinstance(section, dict) and kind not in _ALWAYS):
        return 0
    if kind not in TOWERS:
        counted.append(
            f"text model alone, without the image encoder{' (not known)' if kind not in _TEXT_ALONE else ''}"
        )
        return 0
    table = section if isinstance(section, dict) else {}
    tower = TOWERS[kind](whole, Config(whole.path, table, "vision_config."))
    counted.append(f"{tower:,} parameters of the image encoder included")
    return tower


def _linear(k: int, n: int) -> int:
    return k * n + n


def _encoder_layer(hidden: int, ffn: int) -> int:
    """Two norms with biases, four projections and two of the MLP, all with biases."""
    return 4 * hidden + 4 * _linear(hidden, hidden) + _linear(hidden, ffn) + _linear(ffn, hidden)


def _text_hidden(whole: Config) -> int:
    text = whole.table.get("text_config")
    return Config(whole.path, text if isinstance(text, dict) else whole.table).count("hidden_size", 4096)


def _qwen_vl(_: Config, vision: Config) -> int:
    """Qwen3-VL: learned positions, and a merger for each level that is fed into the text."""
    hidden, ffn = vision.count("hidden_size", 1152), vision.count("intermediate_size", 4304)
    patch, out = vision.count("patch_size", 16), vision.count("out_hidden_size", 3584)
    pixels = vision.count("in_channels", 3) * vision.count("temporal_patch_size", 2) * patch**2
    wide = hidden * vision.count("spatial_merge_size", 2) ** 2
    merger = _linear(wide, wide) + _linear(wide, out)
    levels = len(vision.counts("deepstack_visual_indexes") or [])
    positions = vision.count("num_position_embeddings", 2304) * hidden
    layers = vision.count("depth", 27) * _encoder_layer(hidden, ffn)
    return _linear(pixels, hidden) + positions + layers + merger + 2 * hidden + levels * (merger + 2 * wide)


def _gemma4(whole: Config, vision: Config) -> int:
    hidden, ffn = vision.count("hidden_size", 768), vision.count("intermediate_size", 3072)
    heads, dim = vision.count("num_attention_heads", 12), vision.count("head_dim", 64)
    kv_heads = vision.count("num_key_value_heads", heads)
    patches = (
        vision.count("position_embedding_size", 10_240) * 2 * hidden + 3 * vision.count("patch_size", 16) ** 2 * hidden
    )
    each = 4 * hidden + 2 * dim + 2 * hidden * dim * (heads + kv_heads) + 3 * hidden * ffn
    return patches + vision.count("num_hidden_layers", 16) * each + hidden * _text_hidden(whole)


def _kimi(whole: Config, vision: Config) -> int:
    hidden = vision.count("vt_hidden_size", vision.count("hidden_size", 1152))
    ffn = vision.count("vt_intermediate_size", vision.count("intermediate_size", 4304))
    layers = vision.count("vt_num_hidden_layers", vision.count("num_hidden_layers", 27))
    positions = vision.count("init_pos_emb_height", 64) * vision.count("init_pos_emb_width", 64) * hidden
    patches = _linear(3 * vision.count("patch_size", 14) ** 2, hidden) + positions
    wide = 4 * hidden
    projector = 2 * hidden + _linear(wide, wide) + _linear(wide, _text_hidden(whole))
    return patches + layers * _encoder_layer(hidden, ffn) + 2 * hidden + projector


def _siglip(whole: Config, vision: Config) -> int:
    """Gemma 3: SigLIP without its head, a norm and a projection."""
    hidden, ffn = vision.count("hidden_size", 1152), vision.count("intermediate_size", 4304)
    patch, image = max(1, vision.count("patch_size", 14)), vision.count("image_size", 896)
    patches = _linear(3 * patch**2, hidden) + (image // patch) ** 2 * hidden
    layers = vision.count("num_hidden_layers", 27) * _encoder_layer(hidden, ffn)
    return patches + layers + 2 * hidden + hidden + hidden * _text_hidden(whole)


def _step(whole: Config, vision: Config) -> int:
    hidden, ffn = vision.count("hidden_size", 1536), vision.count("intermediate_size", 8960)
    patch, image = max(1, vision.count("patch_size", 14)), vision.count("image_size", 728)
    patches = 3 * patch**2 * hidden + (image // patch) ** 2 * hidden + 4 * hidden
    layers = vision.count("num_hidden_layers", 47) * (_encoder_layer(hidden, ffn) + 2 * hidden)
    down = 9 * hidden * 2 * hidden + 2 * hidden + 9 * 2 * hidden * 4 * hidden + 4 * hidden
    return patches + layers + down + 4 * hidden * _text_hidden(whole)


def _pixtral(whole: Config, vision: Config) -> int:
    """Mistral Small 3.1: Pixtral's encoder, patches merged two by two, two projections without biases."""
    hidden, ffn = vision.count("hidden_size", 1024), vision.count("intermediate_size", 4096)
    text, merge = _text_hidden(whole), whole.count("spatial_merge_size", 2)
    layers = vision.count("num_hidden_layers", 24) * (2 * hidden + 4 * hidden**2 + 3 * hidden * ffn)
    patches = 3 * vision.count("patch_size", 16) ** 2 * hidden + hidden
    return patches + layers + hidden + hidden * merge**2 * hidden + hidden * text + text * text


TOWERS: Mapping[str, Callable[[Config, Config], int]] = {
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe"), _qwen_vl),
    "gemma4": _gemma4,
    "gemma3": _siglip,
    "kimi_k25": _kimi,
    "step3p7": _step,
    "mistral3": _pixtral,
}
_ALWAYS = ("step3p7",)
"""Classes that have one also where the file says nothing of it."""
_TEXT_ALONE = ("llama4", "qwen3_5", "qwen3_5_moe")
"""Whose class for text (transformers' AutoModelForCausalLM) has none, so that none is counted here."""
