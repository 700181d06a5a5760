"""Every `model_type`: the family that it is, another's under a new name, or why it is none. It reads no file."""

from __future__ import annotations

from collections.abc import Mapping

from sim.catalog.architectures import ARCHITECTURES
from sim.catalog.decoders import DECODERS
from sim.catalog.elders import ELDERS
from sim.catalog.gemmas import GEMMAS
from sim.catalog.hybrids import HYBRIDS
from sim.catalog.latents import LATENTS
from sim.catalog.mixed import MIXED
from sim.catalog.sparse import SPARSE
from sim.catalog.state_spaces import STATE_SPACES

FAMILIES = {
    **HYBRIDS, **STATE_SPACES, **SPARSE, **LATENTS, **MIXED, **GEMMAS, **DECODERS, **ELDERS,
}  # fmt: skip
"""By `model_type`: families of which each layer is described for itself."""
STATEFUL = {**HYBRIDS, **STATE_SPACES}
"""Families that may have no attention at all."""


def _all(family: str, *kinds: str) -> dict[str, str]:
    return dict.fromkeys(kinds, family)


ALIASES: Mapping[str, str] = {
    **_all(
        "llama",
        *("aquila", "yi", "granite", "internlm2", "internlm3", "smollm3", "helium", "baichuan", "xverse", "exaone"),
        *("minicpm", "iquestcoder", "granite_docling_text"),
    ),
    **_all("mistral", "ministral", "ministral3"),
    **_all("qwen2", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "qwen2_5_omni_text"),
    **_all("qwen2", "qwen2_audio", "mimo", "dots_ocr"),
    **_all("qwen3", "qwen3_vl", "qwen3_vl_text"),
    **_all("qwen3_moe", "qwen3_vl_moe", "qwen3_vl_moe_text", "qwen3_omni_moe_text"),
    **_all("deepseek_v3", "kimi_k2", "kimi_k25"),
    **_all("phi3", "phi4", "phi4mm", "phi4_multimodal", "phi3_v"),
    **_all("glm4", "glm_ocr_text"),
    **_all("glm4v_text", "glm4v"),
    **_all("ernie4_5", "paddleocr_vl", "paddleocr_vl_text"),
    **_all("minimax", "minimax_text_01", "minimax_m1"),
    **_all("bailing_moe", "bailing_moe_v2"),
    **_all("gptj", "codegen"),
    **_all("gpt2", "gpt-sw3"),
    **_all("persimmon", "fuyu"),
    **_all("nemotron_nas", "nemotron-nas", "deci"),
    "step3_vl": "step3_text",
    "stablelm_epoch": "stablelm",
    "hunyuan": "hunyuan_v1_moe",
    "glm4v_moe_text": "glm4_moe",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    **_all("gemma4_text", "gemma4", "gemma4_unified", "gemma4_unified_text"),
    "llama4": "llama4_text",
    "mllama": "mllama_text_model",
    "aria": "aria_text",
}
"""Families that are another's under a new name, or whose text model another's is."""

_ENCODER_DECODER = "it has an encoder beside its decoder, and decoders alone are modelled"
_ENCODER = "it is an encoder, which generates nothing"
REFUSED: Mapping[str, str] = {
    **_all(
        _ENCODER_DECODER,
        *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "florence2", "fsmt", "led", "longt5", "m2m_100"),
        *("marian", "mbart", "moonshine", "mt5", "mvp", "nllb-moe", "pegasus", "pegasus_x", "pix2struct", "plbart"),
        *("prophetnet", "seamless_m4t", "speech_to_text", "switch_transformers", "t5", "t5gemma", "t5gemma2", "udop"),
        *("umt5", "vision-encoder-decoder", "whisper", "xlm-prophetnet"),
    ),
    **_all(
        _ENCODER,
        *("albert", "bert", "bert-generation", "camembert", "data2vec-text", "deberta", "deberta-v2", "distilbert"),
        *("electra", "ernie", "longformer", "megatron-bert", "modernbert", "mpnet", "nomic_bert", "roberta"),
        *("roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod"),
    ),
    **_all("its layers share one block's weights, and shared weights are not modelled", "zamba", "zamba2"),
    **_all("RWKV's time mixing is not modelled", "rwkv", "rwkv5", "rwkv6", "rwkv7"),
    "xlstm": "the cells of xLSTM are not modelled",
    "recurrent_gemma": "its gated linear recurrence is not modelled",
    "hymba": "its heads of attention and Mamba side by side, with tokens of their own, are not modelled",
    "phi3small": "its block-sparse attention is not modelled",
    "bitnet": "its ternary weights are not modelled",
    "jetmoe": "its experts of attention are not modelled",
    "openelm": "each of its layers has other heads, which is not modelled",
    "diffusion_gemma": "it generates by diffusion, and decoding token by token is modelled",
    "llada": "it generates by diffusion, and decoding token by token is modelled",
    "dream": "it generates by diffusion, and decoding token by token is modelled",
    "minicpmv": "the file does not say of which family its text model is",
    "minicpmo": "the file does not say of which family its text model is",
}
"""Types that are known and not read, and why."""


def supported() -> list[str]:
    """Every `model_type` that can be read."""
    return [*ARCHITECTURES, *FAMILIES, *ALIASES]


def family_of(kind: object) -> str | None:
    """The family that reads a `model_type`, or None."""
    family = ALIASES.get(kind, kind) if isinstance(kind, str) else None
    return family if family in ARCHITECTURES or family in FAMILIES else None
