"""Parameters of image encoders and of what joins them to a text, as transformers' classes (5.x) have them.

Each function is given the whole config, its `vision_config` and the width of the text.
"""

from __future__ import annotations

from sim.catalog.hf_config import Config, shown
from traces.schema import InputError


def linear(k: int, n: int) -> int:
    return k * n + n


def encoder_layer(hidden: int, ffn: int) -> int:
    """Two norms with biases, four projections and two of the MLP, all with biases."""
    return 4 * hidden + 4 * linear(hidden, hidden) + linear(hidden, ffn) + linear(ffn, hidden)


def qwen3_vl(_: Config, vision: Config, __: int) -> int:
    """Qwen3-VL: learned positions, and a merger for each level that is fed into the text."""
    hidden, ffn = vision.count("hidden_size", 1152), vision.count("intermediate_size", 4304)
    patch, out = vision.count("patch_size", 16), vision.count("out_hidden_size", 3584)
    pixels = vision.count("in_channels", 3) * vision.count("temporal_patch_size", 2) * patch**2
    wide = hidden * vision.count("spatial_merge_size", 2) ** 2
    merger = linear(wide, wide) + linear(wide, out)
    levels = len(vision.counts("deepstack_visual_indexes") or [])
    positions = vision.count("num_position_embeddings", 2304) * hidden
    layers = vision.count("depth", 27) * encoder_layer(hidden, ffn)
    return linear(pixels, hidden) + positions + layers + merger + 2 * hidden + levels * (merger + 2 * wide)


def gemma4(_: Config, vision: Config, text: int) -> int:
    hidden, ffn = vision.count("hidden_size", 768), vision.count("intermediate_size", 3072)
    heads, dim = vision.count("num_attention_heads", 12), vision.count("head_dim", 64)
    kv_heads = vision.count("num_key_value_heads", heads)
    patches = (
        vision.count("position_embedding_size", 10_240) * 2 * hidden + 3 * vision.count("patch_size", 16) ** 2 * hidden
    )
    each = 4 * hidden + 2 * dim + 2 * hidden * dim * (heads + kv_heads) + 3 * hidden * ffn
    return patches + vision.count("num_hidden_layers", 16) * each + hidden * text


def kimi(_: Config, vision: Config, text: int) -> int:
    hidden = vision.count("vt_hidden_size", vision.count("hidden_size", 1152))
    ffn = vision.count("vt_intermediate_size", vision.count("intermediate_size", 4304))
    layers = vision.count("vt_num_hidden_layers", vision.count("num_hidden_layers", 27))
    positions = vision.count("init_pos_emb_height", 64) * vision.count("init_pos_emb_width", 64) * hidden
    patches = linear(3 * vision.count("patch_size", 14) ** 2, hidden) + positions
    wide = 4 * hidden
    projector = 2 * hidden + linear(wide, wide) + linear(wide, text)
    return patches + layers * encoder_layer(hidden, ffn) + 2 * hidden + projector


def gemma3(_: Config, vision: Config, text: int) -> int:
    """Gemma 3: SigLIP, a norm and a projection."""
    hidden, ffn = vision.count("hidden_size", 1152), vision.count("intermediate_size", 4304)
    patch, image = max(1, vision.count("patch_size", 14)), vision.count("image_size", 896)
    patches = linear(3 * patch**2, hidden) + (image // patch) ** 2 * hidden
    layers = vision.count("num_hidden_layers", 27) * encoder_layer(hidden, ffn)
    pooled = _pooling(hidden, ffn) if vision.flag("vision_use_head", False) else 0
    return patches + layers + pooled + 2 * hidden + hidden + hidden * text


def step(_: Config, vision: Config, text: int) -> int:
    hidden, ffn = vision.count("hidden_size", 1536), vision.count("intermediate_size", 8960)
    patch, image = max(1, vision.count("patch_size", 14)), vision.count("image_size", 728)
    patches = 3 * patch**2 * hidden + (image // patch) ** 2 * hidden + 4 * hidden
    layers = vision.count("num_hidden_layers", 47) * (encoder_layer(hidden, ffn) + 2 * hidden)
    down = 9 * hidden * 2 * hidden + 2 * hidden + 9 * 2 * hidden * 4 * hidden + 4 * hidden
    return patches + layers + down + 4 * hidden * text


def mistral3(whole: Config, vision: Config, text: int) -> int:
    """Mistral Small 3.1: Pixtral's encoder, patches merged two by two, two projections without biases."""
    hidden, ffn = vision.count("hidden_size", 1024), vision.count("intermediate_size", 4096)
    merge = whole.count("spatial_merge_size", 2)
    layers = vision.count("num_hidden_layers", 24) * (2 * hidden + 4 * hidden**2 + 3 * hidden * ffn)
    patches = 3 * vision.count("patch_size", 16) ** 2 * hidden + hidden
    return patches + layers + hidden + hidden * merge**2 * hidden + hidden * text + text * text


def _side(vision: Config, key: str, default: int) -> int:
    """A side of an image or a patch, which may be written as a pair."""
    value = vision.table.get(key)
    side = (vision.counts(key) or [0])[0] if isinstance(value, list) else vision.count(key, default)
    if not 1 <= side <= 2**16:
        raise InputError(f"{vision.path}: {vision.named(key)} = {shown(value)} must lie between 1 and {2**16}")
    return side


def _patches(vision: Config, hidden: int, image: int, patch: int) -> tuple[int, int]:
    """(weights of what reads a patch, patches of an image)."""
    side = _side(vision, "patch_size", patch)
    channels = vision.either("num_channels", "in_chans", "in_channels", default=3)
    return channels * side**2 * hidden, (_side(vision, "image_size", image) // side) ** 2


def _clip(vision: Config) -> int:
    """CLIP without its head: a token for the class, norms before and after."""
    hidden, ffn = vision.count("hidden_size", 768), vision.count("intermediate_size", 3072)
    weights, count = _patches(vision, hidden, 224, 32)
    layers = vision.count("num_hidden_layers", 12) * encoder_layer(hidden, ffn)
    return hidden + weights + (count + 1) * hidden + 4 * hidden + layers


def _siglip(vision: Config, head: bool = True) -> int:
    """SigLIP; its head pools by attention where the file does not say `vision_use_head` false."""
    hidden, ffn = vision.count("hidden_size", 768), vision.count("intermediate_size", 3072)
    weights, count = _patches(vision, hidden, 224, 16)
    layers = vision.count("num_hidden_layers", 12) * encoder_layer(hidden, ffn)
    pooled = _pooling(hidden, ffn) if head and vision.flag("vision_use_head", True) else 0
    return weights + hidden + count * hidden + 2 * hidden + layers + pooled


def _pooling(hidden: int, ffn: int) -> int:
    """A query, attention, a norm and an MLP."""
    return hidden + 4 * linear(hidden, hidden) + 2 * hidden + linear(hidden, ffn) + linear(ffn, hidden)


def _pixtral(vision: Config) -> int:
    hidden, ffn = vision.count("hidden_size", 1024), vision.count("intermediate_size", 4096)
    layers = vision.count("num_hidden_layers", 24) * (2 * hidden + 4 * hidden**2 + 3 * hidden * ffn)
    return 3 * vision.count("patch_size", 16) ** 2 * hidden + hidden + layers


_OF_TYPE = {"clip_vision_model": _clip, "siglip_vision_model": _siglip, "pixtral": _pixtral}


def llava(whole: Config, vision: Config, text: int) -> int:
    """LLaVA, its successors (with a token for new lines) and Pixtral: an encoder of a type, two projections."""
    kind = vision.table.get("model_type", "clip_vision_model")
    if not isinstance(kind, str) or kind not in _OF_TYPE:
        raise InputError(
            f"{vision.path}: vision_config.model_type = {shown(kind)} is not known; known are {', '.join(_OF_TYPE)}"
        )
    bias = whole.flag("multimodal_projector_bias", True)
    levels = whole.table.get("vision_feature_layer")
    wide = vision.count("hidden_size", 1024) * (len(levels) if isinstance(levels, list) else 1)
    projections = wide * text + text * text + (2 * text if bias else 0)
    newline = text if whole.table["model_type"] != "llava" else 0
    return _OF_TYPE[kind](vision) + projections + newline


def paligemma(_: Config, vision: Config, text: int) -> int:
    """PaliGemma: SigLIP and one projection."""
    return _siglip(vision) + linear(vision.count("hidden_size", 1152), vision.count("projection_dim", text))


def idefics3(whole: Config, vision: Config, text: int) -> int:
    """Idefics 3 and SmolVLM: SigLIP's layers, patches merged before one projection without a bias."""
    merged = vision.count("hidden_size", 1152) * whole.count("scale_factor", 2) ** 2
    return _siglip(vision, head=False) + merged * text


def internvl(_: Config, vision: Config, text: int) -> int:
    """InternVL: InternViT with layer scales, four patches as one, two projections after a norm."""
    hidden, ffn = vision.count("hidden_size", 1024), vision.count("intermediate_size", 4096)
    weights, count = _patches(vision, hidden, 448, 14)
    bias = 3 * hidden if vision.flag("attention_bias", vision.flag("qkv_bias", False)) else 0
    heads = 2 * hidden if vision.flag("use_qk_norm", vision.flag("qk_normalization", False)) else 0
    norms = 2 * hidden if vision.table.get("norm_type", "layer_norm") == "rms_norm" else 4 * hidden
    mlp = linear(hidden, ffn) + linear(ffn, hidden)
    each = norms + 2 * hidden + 3 * hidden**2 + bias + heads + linear(hidden, hidden) + mlp
    layers = vision.count("num_hidden_layers", 24) * each
    merged = 4 * hidden
    projections = 2 * merged + linear(merged, text) + linear(text, text)
    return hidden + weights + hidden + (count + 1) * hidden + layers + projections


def qwen2_vl(_: Config, vision: Config, text: int) -> int:
    """Qwen2-VL: patches of two frames, merged two by two."""
    hidden = vision.count("embed_dim", 1280)
    ratio = vision.table.get("mlp_ratio", 4)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1000:
        raise InputError(f"{vision.path}: vision_config.mlp_ratio = {shown(ratio)} must lie between 0 and 1000")
    layers = vision.count("depth", 32) * encoder_layer(hidden, int(hidden * ratio))
    return _frames(vision, hidden) + layers + 2 * hidden + _merged(vision, hidden, vision.count("hidden_size", text))


def qwen2_5_vl(_: Config, vision: Config, text: int) -> int:
    """Qwen2.5-VL and Qwen2.5-Omni: RMS norms and a gated MLP with biases."""
    hidden, ffn = vision.count("hidden_size", 1280), vision.count("intermediate_size", 3420)
    mlp = 2 * linear(hidden, ffn) + linear(ffn, hidden)
    layers = vision.count("depth", 32) * (2 * hidden + 4 * linear(hidden, hidden) + mlp)
    return _frames(vision, hidden) + layers + hidden + _merged(vision, hidden, vision.count("out_hidden_size", text))


def _frames(vision: Config, hidden: int) -> int:
    patch = vision.either("patch_size", "spatial_patch_size", default=14)
    frames = vision.count("temporal_patch_size", 2)
    return vision.either("in_channels", "in_chans", default=3) * frames * patch**2 * hidden


def _merged(vision: Config, hidden: int, text: int) -> int:
    wide = hidden * vision.count("spatial_merge_size", 2) ** 2
    return linear(wide, wide) + linear(wide, text)


def glm4v(_: Config, vision: Config, text: int) -> int:
    """GLM-4.1V and 4.5V: patches of two frames, gated MLPs, and a gated merger."""
    hidden, wide = vision.count("hidden_size", 1536), vision.count("out_hidden_size", text)
    side, frames = _side(vision, "patch_size", 14), vision.count("temporal_patch_size", 2)
    patches = linear(vision.count("in_channels", 3) * frames * side**2, hidden)
    positions = (_side(vision, "image_size", 336) // side) ** 2 * hidden
    bias = 4 * hidden if vision.flag("attention_bias", False) else 0
    layers = vision.count("depth", 24) * (2 * hidden + 4 * hidden**2 + bias + 3 * hidden * wide)
    down = linear(hidden * vision.count("spatial_merge_size", 2) ** 2, wide)
    merger = wide**2 + 2 * wide + 3 * wide * vision.count("intermediate_size", 13_696)
    return patches + positions + layers + 2 * hidden + down + merger
