"""The types that weights and KV caches are kept in, as exact bytes, scales included. It knows no model and no GPU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from traces.schema import InputError

DTYPE_BYTES: Mapping[str, int] = {"fp32": 4, "fp16": 2, "bf16": 2}
"""Types that a model computes in, and bytes of one element."""


class KvType(NamedTuple):
    """A vector of one token and one head, K or V: `bits` an element and `scale_bytes` beside it.

    fp8 has one scale per tensor, which is no part of the cache (vLLM, `kv_cache_dtype`). int8 has an fp16 scale for
    every vector, and int4 an fp16 scale and zero point (per head and token, as LMDeploy's KV quantisation).
    """

    bits: int
    scale_bytes: int = 0

    def vector_bytes(self, width: int) -> int:
        """Bytes of `width` elements; `width` is even where two elements share a byte."""
        return self.bits * width // 8 + self.scale_bytes


KV_TYPES: Mapping[str, KvType] = {
    **{name: KvType(8 * size) for name, size in DTYPE_BYTES.items()},
    "fp8": KvType(8),
    "int8": KvType(8, 2),
    "int4": KvType(4, 4),
}


class WeightType(NamedTuple):
    """A weight matrix: `bits` an element, and `scale_bits` for each group of `group_rows` x `group_columns`."""

    bits: int
    scale_bits: int = 0
    group_rows: int = 1
    group_columns: int = 1

    def matrix_bytes(self, k: int, n: int) -> int:
        """Bytes of a matrix from `k` inputs to `n` outputs; groups run along the inputs."""
        groups = -(-k // self.group_rows) * -(-n // self.group_columns) if self.scale_bits else 0
        return -(-(self.bits * k * n + self.scale_bits * groups) // 8)


WEIGHT_TYPES: Mapping[str, WeightType] = {
    **{name: WeightType(8 * size) for name, size in DTYPE_BYTES.items()},
    # DeepSeek-V3 (arXiv 2412.19437, section 3.3): an fp32 scale for 128 x 128; one scale per matrix weighs less still.
    "fp8": WeightType(8, 32, 128, 128),
    # GPTQ (arXiv 2210.17323) and AWQ (arXiv 2306.00978) as published: groups of 128, fp16 scale, packed zero point.
    "int8": WeightType(8, 16 + 8, 128),
    "int4": WeightType(4, 16 + 4, 128),
    # Open Compute Project, Microscaling Formats (MX) v1.0, table 1: FP4 (E2M1), an 8-bit exponent for 32.
    "mxfp4": WeightType(4, 8, 32),
    "mxfp8": WeightType(8, 8, 32),
    # NVIDIA's block scaling for Blackwell: FP4 (E2M1), an FP8 (E4M3) scale for 16; one fp32 more a matrix is left out.
    "nvfp4": WeightType(4, 8, 16),
    # QLoRA (arXiv 2305.14314, section 3): NF4 with an fp32 scale for 64; doubly quantised, 8 bits and 32/256 for 64.
    "nf4": WeightType(4, 32, 64),
    "nf4-double": WeightType(4, 8, 64),
}
QUANTISED = tuple(name for name in WEIGHT_TYPES if name not in DTYPE_BYTES)
"""Types of weight matrices only: embeddings, LM head, norms, biases and routers keep the type of the activations."""
_COLUMN = 2**31
"""Rows of a group that has all inputs of an output."""
_GROUPED = re.compile(r"int([2-8])(?:-g([1-9][0-9]{0,8})|-(channel))(-sym)?")


def weight_type(name: str) -> WeightType:
    """The type by its name: one of `WEIGHT_TYPES`, or `intB-gG`, B bits in groups of G inputs, or `intB-channel`.

    A group has an fp16 scale, and a zero point of B bits unless the name ends in `-sym`.

    Raises:
        InputError: no such type; its text is the list of the known ones.
    """
    if name in WEIGHT_TYPES:
        return WEIGHT_TYPES[name]
    if match := _GROUPED.fullmatch(name):
        bits, group, _, symmetric = match.groups()
        return WeightType(int(bits), 16 + (0 if symmetric else int(bits)), int(group) if group else _COLUMN)
    raise InputError(f"{', '.join(WEIGHT_TYPES)}, intB-gG (B bits in groups of G), intB-channel")


def is_quantised(name: str) -> bool:
    """Is it a type of matrices only?"""
    return name not in DTYPE_BYTES
