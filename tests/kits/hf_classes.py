"""What transformers' classes count on the meta device, and their configs as files."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from sim.catalog import from_hf_config
from sim.specs.model import ModelSpec

SMALL = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def count_of(kind: str, changes: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """(parameters of transformers' class with the router's correcting biases, its config as a file has it)."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    logging.disable(logging.WARNING)
    try:
        keys = {key: value for key, value in {**SMALL, **changes}.items() if value is not None}
        config = transformers.AutoConfig.for_model(kind, **keys)
        with torch.device("meta"):
            model = _made(transformers, config)
    finally:
        logging.disable(logging.NOTSET)
    total = sum(each.numel() for each in model.parameters())
    total += sum(
        each.numel()
        for name, each in model.named_buffers()
        if name.endswith(("e_score_correction_bias", "expert_bias"))
    )
    return total, {**config.to_dict(), "dtype": "bfloat16"}


def _made(transformers: Any, config: Any) -> Any:
    """The class for text; of a type that has none alone, that of images and text."""
    known = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    text = transformers.AutoModelForCausalLM
    return (text if config.model_type in known else transformers.AutoModelForImageTextToText).from_config(config)


def read(folder: Path, table: dict[str, Any]) -> ModelSpec:
    path = folder / "config.json"
    path.write_text(json.dumps(table))
    return from_hf_config(path)
