"""Weights in the order that a CPU multiplies them fastest (oneDNN's blocks). It loads nothing and multiplies nothing.

A plain matrix is brought into that order anew by every product; packed once, products of a few rows take half the time.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from backend.model.layers import DenseMlp, Layer
from backend.model.model import Model
from backend.model.weights import Weight
from backend.torch_ops.linear import multiplies_bf16, packs

ROWS = 512
"""For products of so many rows the order is chosen; it serves fewer as well (tried for 1 to 512)."""


@torch.inference_mode()
def packed(model: Model) -> Model:
    """The model with its layers' matrices and LM head packed in place of the plain ones, where its device is a CPU.

    Experts, 8-bit weights and fp16 stay as they are, and so does bf16 on a CPU without products of it.
    """
    weights = model.weights
    if model.device.type != "cpu" or not packs():
        return model
    for at, layer in enumerate(weights.layers):  # one after the other: the plain ones are given back meanwhile
        weights.layers[at] = _layer(layer)
    model.weights = replace(weights, lm_head=_plain(weights.lm_head))
    return model


def _layer(layer: Layer) -> Layer:
    mlp = layer.mlp
    if isinstance(mlp, DenseMlp):
        mlp = replace(mlp, gate_up=_matrix(mlp.gate_up), down=_matrix(mlp.down))
    return replace(layer, qkv=_matrix(layer.qkv), output=_matrix(layer.output), mlp=mlp)


def _matrix(weight: Weight) -> Weight:
    return _plain(weight) if isinstance(weight, Tensor) else weight


def _plain(weight: Tensor) -> Tensor:
    if weight.is_mkldnn or not (
        weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and multiplies_bf16())
    ):
        return weight
    made: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    return made
