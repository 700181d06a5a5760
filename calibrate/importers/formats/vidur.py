"""Profiles of Vidur: MLP, attention and collective CSVs, times in milliseconds, fp16. It checks no speed.

Source: github.com/microsoft/vidur, `data/profiling/compute/<device>/<model>/{mlp,attention}.csv` and
`network/<node>/all_reduce.csv`, as its profiler writes them (vidur/profiling/{mlp,attention,collectives}): columns
`time_stats.<operation>.{min,max,mean,median,std}` and what was measured. The median is taken.
"""

from __future__ import annotations

from calibrate.importers.draft import Draft, ImportOptions
from calibrate.importers.sheet import Cells, Place, Sheet, Unusable, count, number
from sim.cost.tables import Value
from sim.specs.dtypes import DTYPE_BYTES
from traces.schema import InputError

_MLP = (
    "n_head",
    "n_kv_head",
    "n_embd",
    "n_expanded_embd",
    "use_gated_mlp",
    "num_tokens",
    "num_tensor_parallel_workers",
)
_ATTENTION = ("n_embd", "n_q_head", "n_kv_head", "batch_size", "prefill_chunk_size", "kv_cache_size", "is_prefill")
_COLLECTIVE = ("num_workers", "size", "collective")
_TRUE = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def table_of(sheet: Sheet) -> str | None:
    if not any(name.startswith("time_stats.") for name in sheet.header):
        return None
    if sheet.has(*_MLP):
        return "mlp"
    if sheet.has(*_ATTENTION):
        return "attention"
    return "collective" if sheet.has(*_COLLECTIVE) else None


def read(sheets: list[Sheet], options: ImportOptions) -> Draft:
    """All tables together; each row says its model's sizes and over how many GPUs it was split."""
    draft = Draft("Vidur profiles (microsoft/vidur, MIT), measured by its profiler", "ms")
    dtype = options.dtype() or "fp16"
    if dtype not in DTYPE_BYTES:
        raise InputError(f"--dtype {dtype!r} is none of {', '.join(DTYPE_BYTES)}")
    draft.note(f"Vidur's profiler computes in fp16 and its files do not say so; taken as {dtype}. Medians are taken.")
    for sheet in sheets:
        table = table_of(sheet)
        for place, cells in sheet.rows():
            if table == "mlp":
                _mlp(draft, place, cells, dtype)
            elif table == "attention":
                with draft.reading("prefill_attention" if _is_prefill(cells) else "decode_attention", place):
                    _attention(draft, place, cells, dtype)
            else:
                with draft.reading("all_reduce", place):
                    _collective(draft, place, cells)
    return draft


def _us(cells: Cells, operation: str) -> float:
    key = f"time_stats.{operation}.median"
    if key not in cells:
        raise Unusable(f"no column {key}")
    return number(cells, key) * 1e3


def _mlp(draft: Draft, place: Place, cells: Cells, dtype: str) -> None:
    """Everything of a layer but attention, for so many tokens on one of the GPUs."""
    with draft.reading("gemm", place):
        gpus, tokens = count(cells, "num_tensor_parallel_workers"), count(cells, "num_tokens")
        hidden, ffn = count(cells, "n_embd"), count(cells, "n_expanded_embd") // gpus
        heads, kv_heads = count(cells, "n_head"), count(cells, "n_kv_head")
        head_dim, own = hidden // heads, heads // gpus
        own_kv = max(1, kv_heads // gpus)
        up = 2 * ffn if _is_gated(cells) else ffn
        for operation, k, n in (
            ("attn_pre_proj", hidden, (own + 2 * own_kv) * head_dim),
            ("attn_post_proj", own * head_dim, hidden),
            ("mlp_up_proj", hidden, up),
            ("mlp_down_proj", ffn, hidden),
        ):
            with draft.reading("gemm", place):
                group: dict[str, Value] = {"dtype": dtype, "weight_dtype": dtype, "k": k, "n": n}
                draft.add("gemm", place, **group, tokens=tokens, us=_us(cells, operation))
        for operation, op, width in (
            ("mlp_act", "activation", ffn),
            ("input_layernorm", "norm", hidden),
            ("attn_rope", "rope", (own + own_kv) * head_dim),
            ("emb", "embedding", hidden),
        ):
            if f"time_stats.{operation}.median" in cells:
                with draft.reading("elementwise", place):
                    small: dict[str, Value] = {"op": op, "dtype": dtype, "kv_dtype": "none", "width": width}
                    draft.add("elementwise", place, **small, tokens=tokens, us=_us(cells, operation))


def _attention(draft: Draft, place: Place, cells: Cells, dtype: str) -> None:
    """Prompts have `prefill_chunk_size` new tokens on top of `kv_cache_size`; decode rows one on top of it."""
    gpus = count(cells, "num_tensor_parallel_workers") if "num_tensor_parallel_workers" in cells else 1
    heads = count(cells, "n_q_head")
    group: dict[str, Value] = {
        "dtype": dtype,
        "kv_dtype": dtype,
        "heads": heads // gpus,
        "kv_heads": max(1, count(cells, "n_kv_head") // gpus),
        "head_dim": count(cells, "n_embd") // heads,
        "window": 0,
    }
    batch, past = count(cells, "batch_size"), count(cells, "kv_cache_size", least=0)
    if _is_prefill(cells):
        sizes: dict[str, Value] = {"sequences": batch, "past_tokens": past}
        new, us = count(cells, "prefill_chunk_size"), _us(cells, "attn_prefill")
        draft.add("prefill_attention", place, **group, **sizes, new_tokens=new, us=us)
        return
    contexts: dict[str, Value] = {"mean_context_tokens": past + 1, "max_context_tokens": past + 1}
    draft.add("decode_attention", place, **group, width=1, sequences=batch, **contexts, us=_us(cells, "attn_decode"))


def _collective(draft: Draft, place: Place, cells: Cells) -> None:
    """`size` is in bytes (vidur/profiling/collectives/collectives_wrapper.py writes 2 x fp16 elements)."""
    op = str(cells["collective"])
    if op not in ("all_reduce", "all_gather"):
        raise Unusable(f"{op} is no collective of a profile")
    nodes = cells.get("devices_per_node")
    gpus = count(cells, "num_workers", least=2)
    if nodes is not None and nodes != "" and count(cells, "devices_per_node") < gpus:
        raise Unusable("over several machines: a profile's links are those within one")
    draft.add("all_reduce", place, op=op, gpus=gpus, bytes=count(cells, "size"), us=_us(cells, op))


def _is_prefill(cells: Cells) -> bool:
    return _TRUE.get(str(cells["is_prefill"]).lower(), False)


def _is_gated(cells: Cells) -> bool:
    text = str(cells["use_gated_mlp"]).lower()
    if text not in _TRUE:
        raise Unusable("use_gated_mlp is neither True nor False")
    return _TRUE[text]
