"""Keys that a family spells in its own way, and what its class has where a file leaves a key out.

Key names and defaults are those of the configuration classes of transformers (5.x), or of the family's own code. A
checkpoint with an image encoder writes of its text model only what differs from the class, so that the class decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OLD = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
_GLM = {"num_hidden_layers": "num_layers", "max_position_embeddings": "seq_length", "vocab_size": "padded_vocab_size"}
_MOSAIC = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "max_position_embeddings": "max_seq_len",
}
SPELLINGS: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys(("gpt2", "gpt-sw3", "gpt_bigcode", "gptj", "codegen"), _OLD),
    **dict.fromkeys(("mpt", "dbrx"), _MOSAIC),
    "bloom": {
        "hidden_size": "n_embed",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "seq_length",
    },
    "gpt_neo": {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"},
    "chatglm": _GLM,
    "qwen": {"max_position_embeddings": "seq_length"},
    "exaone": {"num_hidden_layers": "num_layers"},
    "longcat_flash": {"num_hidden_layers": "num_layers"},
}
"""By `model_type`: what the rest of the catalog calls a key, and what the family's files call it."""

NO_LENGTH = 2**20
"""Tokens that a model without any limit of its own may have: a state keeps no positions."""
CLASSES: Mapping[str, Mapping[str, Any]] = {
    **{kind: {"max_position_embeddings": NO_LENGTH} for kind in ("mamba", "mamba2", "falcon_mamba")},
    "minicpm": {"tie_word_embeddings": True},
    "gemma4_unified_text": {"hidden_size_per_layer_input": 0},
    "bloom": {"max_position_embeddings": 2048},
    "falcon": {"max_position_embeddings": 2048},
    "gemma3": {
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131_072,
    },
}
"""By `model_type`: what a class has where the file leaves it out."""
TEXTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
    },
    "mistral": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
    },
    "qwen2": {
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 22_016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32_768,
    },
    "qwen3": {
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 22_016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32_768,
    },
    "gemma": {
        "vocab_size": 256_000,
        "hidden_size": 3072,
        "intermediate_size": 24_576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "max_position_embeddings": 8192,
    },
    "gemma2": {
        "vocab_size": 256_000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8192,
    },
}
"""The same of text models inside of another's config."""
