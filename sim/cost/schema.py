"""What stands in a profile's tables: columns, units, what tells rows apart. It reads nothing and prices nothing.

All times are in microseconds (`us`), all sizes exact counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sim.specs.dtypes import DTYPE_BYTES, KV_TYPES, WEIGHT_TYPES

Kind = Literal["text", "count", "number"]

MEASURED, DERIVED = "measured", "derived"
NO_CACHE = "none"
"""`kv_dtype` of an elementwise operation that does not touch the cache."""


class Column(NamedTuple):
    """A column: texts (one of `choices` if there are any), whole numbers from `least` on, or positive numbers; `zero`
    where a number may be zero."""

    name: str
    kind: Kind
    choices: tuple[str, ...] = ()
    least: int = 0
    zero: bool = False


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A table's columns: `groups` tell kernels apart, along `axes` a price is interpolated, `values` are measured.

    `keys` belong to what was measured but are neither, and of `optional_keys` some tables have none. A row is told from
    all others by groups, axes and both kinds of keys.
    """

    name: str
    about: str
    groups: tuple[Column, ...]
    axes: tuple[Column, ...]
    values: tuple[Column, ...] = (Column("us", "number"),)
    keys: tuple[Column, ...] = ()
    optional_keys: tuple[Column, ...] = ()
    optional: tuple[Column, ...] = (
        Column("origin", "text", (MEASURED, DERIVED)),
        Column("spread", "number", zero=True),
        Column("burst_us", "number"),
    )

    @property
    def required(self) -> tuple[Column, ...]:
        """The columns that must be there, in the order in which they are written."""
        return (*self.groups, *self.axes, *self.keys, *self.values)

    @property
    def known(self) -> tuple[Column, ...]:
        """All columns that may be there."""
        return (*self.required, *self.optional_keys, *self.optional)

    @property
    def identity(self) -> tuple[str, ...]:
        """Names of the columns that tell rows apart."""
        return tuple(column.name for column in (*self.groups, *self.axes, *self.keys))


def _count(name: str, least: int = 1) -> Column:
    return Column(name, "count", least=least)


_DTYPE = Column("dtype", "text", tuple(DTYPE_BYTES))
_WEIGHT = Column("weight_dtype", "text", tuple(WEIGHT_TYPES))
_KV = Column("kv_dtype", "text", tuple(KV_TYPES))
_HEADS = (_DTYPE, _KV, _count("heads"), _count("kv_heads"), _count("head_dim"), _count("window", 0))
_LATENT = (_DTYPE, _KV, _count("heads"), _count("rank"), _count("rope_dim"))
_PARTS = Column("parts", "text", ("prefill", "decode", "mixed"))
_EAGER_OR_GRAPH = Column("graph", "count", least=0)
ELEMENTWISE = (
    "embedding",
    "norm",
    "head_norm",
    "rope",
    "kv_write",
    "rope_kv_write",
    "activation",
    "route",
    "combine",
)

TABLES: Mapping[str, TableSpec] = {
    spec.name: spec
    for spec in (
        TableSpec(
            "gemm",
            "[tokens, k] times a weight [k, n]; one launch. An LM head's tokens are its rows of logits",
            (_DTYPE, _WEIGHT, _count("k"), _count("n")),
            (_count("tokens"),),
        ),
        TableSpec(
            "expert_gemm",
            "the same matrix of all routed experts together, tokens routed at random",
            (_DTYPE, _WEIGHT, _count("experts"), _count("experts_per_token"), _count("k"), _count("n")),
            (_count("tokens"),),
        ),
        TableSpec(
            "expert_layer",
            "all routed experts of one layer with `ffn` of each expert's inner width on this GPU: sorting, both "
            "products and what stands between and after; `touched` is how many experts the tokens visit, `routing` how "
            "they spread (as `cost.routing`, or `told` where only `touched` says it)",
            (
                _DTYPE,
                _WEIGHT,
                _count("hidden"),
                _count("ffn"),
                _count("experts"),
                _count("experts_per_token"),
                Column("routing", "text"),
            ),
            (_count("tokens"), _count("touched")),
        ),
        TableSpec(
            "prefill_attention",
            "one layer, one launch: `sequences` alike, each with new tokens on top of past ones; window 0 is full",
            _HEADS,
            (_count("sequences"), _count("past_tokens", 0), _count("new_tokens")),
        ),
        TableSpec(
            "decode_attention",
            "one layer, one launch: `width` new tokens of each of `sequences`; contexts include the new tokens. Rows "
            "whose largest context is not the mean are uneven batches",
            (*_HEADS, _count("width")),
            (_count("sequences"), _count("mean_context_tokens")),
            keys=(_count("max_context_tokens"),),
        ),
        TableSpec(
            "mixed_attention",
            "one layer, prefill and decode rows in ONE launch: new tokens of all prompts on top of past ones, and "
            "`decodes` rows, uneven where a largest context is told that is not the mean. Only for engines that launch "
            "both together",
            _HEADS,
            (_count("decodes"), _count("mean_context_tokens"), _count("past_tokens", 0), _count("new_tokens")),
            optional_keys=(_count("max_context_tokens"),),
        ),
        TableSpec(
            "latent_prefill_attention",
            "latent attention (MLA) of prompts, one layer: `sequences` alike, keys and values of their past tokens "
            "made from the cache and attended with those of the new ones, whose own the model's products make",
            (*_LATENT, _count("nope_dim"), _count("value_dim")),
            (_count("sequences"), _count("past_tokens", 0), _count("new_tokens")),
        ),
        TableSpec(
            "latent_decode_attention",
            "the same of decode rows, all alike: every head attends the latents themselves (the absorbed form)",
            _LATENT,
            (_count("sequences"), _count("mean_context_tokens")),
        ),
        TableSpec(
            "elementwise",
            "one launch of a small kernel. Widths: embedding, norm: hidden; head_norm: heads x head_dim of the tensor "
            "normed; rope: (heads + kv_heads) x head_dim; kv_write: 2 x kv_heads x head_dim; rope_kv_write: (heads + 2 "
            "kv_heads) x head_dim; activation: its output; route: experts; combine: hidden x experts_per_token",
            (
                Column("op", "text", ELEMENTWISE),
                _DTYPE,
                Column("kv_dtype", "text", (NO_CACHE, *KV_TYPES)),
                _count("width"),
            ),
            (_count("tokens"),),
        ),
        TableSpec("sampling", "greedy choice of one token a row", (_count("vocab"),), (_count("rows"),)),
        TableSpec("copy", "block copies in one layer, one launch; bytes that are copied", (), (_count("bytes"),)),
        TableSpec(
            "swap",
            "blocks of one layer to host memory (out) or back (in), one launch",
            (Column("direction", "text", ("out", "in")),),
            (_count("bytes"),),
        ),
        TableSpec(
            "all_reduce",
            "a collective over `gpus`; bytes of the whole message on each GPU (of a gather: of its result)",
            (Column("op", "text", ("all_reduce", "all_gather", "all_to_all", "reduce_scatter")), _count("gpus", 2)),
            (_count("bytes"),),
        ),
        TableSpec(
            "launch",
            "the host's time to launch a whole step's kernels (graph 1: one CUDA graph; 0: each by itself), without "
            "computing them; where host and device are one, all that a step does beside its operations",
            (_PARTS, _EAGER_OR_GRAPH),
            (_count("layers"), _count("rows"), _count("prefill_tokens", 0)),
        ),
        TableSpec(
            "host",
            "packing and handling outputs of one step; launching is not in it. `rows` are rows of logits",
            (_PARTS, _EAGER_OR_GRAPH),
            (_count("rows"), _count("prefill_tokens", 0)),
        ),
        TableSpec(
            "steps",
            "whole steps, never used in fitting. `prefills` are new+past of each slice, joined by semicolons; "
            "`repeat_device_us` is the same step measured again, `tp` the GPUs that shared it (1 where not told); "
            "host_us is 0 where the device's time has all",
            (Column("model", "text"), _DTYPE, _WEIGHT, _KV, _EAGER_OR_GRAPH, Column("prefills", "text")),
            (_count("decodes", 0), _count("decode_context_tokens", 0), _count("max_context_tokens", 0)),
            values=(Column("device_us", "number"), Column("host_us", "number", zero=True)),
            optional_keys=(_count("tp"),),
            optional=(Column("repeat_device_us", "number"), Column("origin", "text", (MEASURED, DERIVED))),
        ),
    )
}
"""Table by name; its file is `<name>.csv`."""

NO_PREFILLS = "-"
"""`prefills` of a step that has none."""
