"""Op profiles of LLMServingSim: one GPU, one model, latencies of vLLM's layers in microseconds. It checks no speed.

Source: github.com/casys-kaist/LLMServingSim, `profiler/`: a folder with dense.csv (layer, tokens), per_sequence.csv
(layer, sequences), attention.csv (one launch of prompt and decode rows together), skew.csv (decode batches of two
context lengths), moe.csv (experts of a layer by tokens and experts that these touch) and, there or one folder up,
meta.yaml (GPU, model, versions).
"""

from __future__ import annotations

from statistics import median

from calibrate.importers.draft import Draft, ImportOptions
from calibrate.importers.sheet import Place, Sheet, Unusable, count, number, scalars
from sim.catalog import load_model
from sim.cost.experts import TOLD
from sim.cost.splits import FLASH_ATTENTION_2
from sim.cost.tables import Value
from sim.specs.dtypes import DTYPE_BYTES
from sim.specs.model import ModelSpec
from sim.specs.parallel import Parallel
from traces.schema import InputError

_HEADERS = {
    "dense": ("layer", "tokens", "time_us"),
    "per_sequence": ("layer", "sequences", "time_us"),
    "attention": ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"),
    "experts": ("tokens", "activated_experts", "time_us"),
    "skew": ("regime", "n", "pc", "kp", "kv_big", "kv_mean", "t_max_us", "t_skew_us"),
}
_SAME_SCALE = 0.1
_NOT_FLASH_ATTENTION_2 = ("h100", "h200", "b200")
"""GPUs on which vLLM attends with FlashAttention-3 (Hopper) or FlashInfer (Blackwell of data centres)."""
_Kernel = tuple[str, dict[str, Value]]


def table_of(sheet: Sheet) -> str | None:
    return next((name for name, columns in _HEADERS.items() if sheet.has(*columns)), None)


def read(sheets: list[Sheet], options: ImportOptions) -> Draft:
    """All tables of one op profile.

    Raises:
        InputError: the same table twice (several GPU counts), an unknown model or layer, a type not known here.
    """
    files: dict[str, Sheet] = {}
    for sheet in sheets:
        name = str(table_of(sheet))
        if name in files:
            raise InputError(f"{sheet.path}: a second {name} table; {files[name].path} is one: import one GPU count")
        files[name] = sheet
    draft = Draft("LLMServingSim op profile (casys-kaist/LLMServingSim), measured inside vLLM")
    model, dtype, parallel, shots = _described(sheets[0], draft, options)
    if "dense" in files:
        _layers(files["dense"], draft, "tokens", _dense(model, dtype, parallel))
    if "experts" in files:
        _experts(files["experts"], draft, model, dtype, parallel)
    if "per_sequence" in files:
        _layers(files["per_sequence"], draft, "sequences", _per_sequence(model, dtype, parallel))
    heads: dict[str, Value] = {
        "dtype": dtype,
        "kv_dtype": dtype,
        "heads": model.heads // parallel.tp,
        "kv_heads": model.gpu_kv_heads(parallel),
        "head_dim": model.head_dim,
        "window": 0,
    }
    even = _attention(files["attention"], draft, heads) if "attention" in files else {}
    if "skew" in files:
        _skew(files["skew"], draft, heads, _scale(files["skew"], even, shots))
    return draft


def _described(sheet: Sheet, draft: Draft, options: ImportOptions) -> tuple[ModelSpec, str, Parallel, int]:
    """(model, type, GPUs, shots of each measurement) by meta.yaml, the folder's name and what the user said."""
    folder = sheet.path.parent
    meta = next((path for path in (folder / "meta.yaml", folder.parent / "meta.yaml") if path.is_file()), None)
    said = scalars(meta) if meta else {}
    name = options.model() or said.get("model")
    if name is None:
        raise InputError(f"{folder}: no meta.yaml that names the model; say it with --model")
    model = load_model(name)
    dtype = options.dtype() or said.get("variant") or model.dtype
    if dtype not in DTYPE_BYTES:
        raise InputError(f"{meta or folder}: variant {dtype!r} is none of {', '.join(DTYPE_BYTES)}; say --dtype")
    in_name = int(folder.name[2:]) if folder.name[:2] == "tp" and folder.name[2:].isdecimal() else 1
    parallel = Parallel(options.tp() or in_name)
    model.check_parallel(parallel)
    draft.device = said.get("gpu", "")
    draft.date = said.get("profiled_at", draft.date)
    draft.facts |= {key: said[key] for key in ("vllm_version", "cuda_version", "profiler_version") if key in said}
    draft.included |= {"KV write": "mixed_attention"}
    if options.gpu.name not in _NOT_FLASH_ATTENTION_2:
        draft.decode_splits = FLASH_ATTENTION_2
        draft.note("What decode rows of unequal contexts cost alone is by the rule of FlashAttention-2, vLLM's kernel.")
    draft.note(f"Matrices are those of {model.name} on one of {parallel.tp} GPUs, weights and cache in {dtype}.")
    draft.note("Attention was timed as vLLM's layer, which also writes the new tokens' keys and values to the cache.")
    draft.note("A decode row's context is kv_decode; whether the new token is one of it the source does not say.")
    shots = said.get("measurement_iterations", "1")
    return model, dtype, parallel, int(shots) if shots.isdecimal() else 1


def _dense(model: ModelSpec, dtype: str, parallel: Parallel) -> dict[str, _Kernel]:
    qkv, output = model.attention_gemms(parallel)
    mlp = model.mlp_gemms(parallel)  # none where every layer has experts
    small: dict[str, Value] = {"dtype": dtype, "kv_dtype": "none"}
    rotated = (model.heads // parallel.tp + model.gpu_kv_heads(parallel)) * model.head_dim
    return {
        "qkv_proj": _gemm(dtype, qkv.k, qkv.n),
        "o_proj": _gemm(dtype, output.k, output.n),
        **{name: _gemm(dtype, gemm.k, gemm.n) for name, gemm in zip(("gate_up_proj", "down_proj"), mlp, strict=False)},
        "embedding": ("elementwise", {"op": "embedding", "width": model.hidden, **small}),
        "layernorm": ("elementwise", {"op": "norm", "width": model.hidden, **small}),
        "rotary_emb": ("elementwise", {"op": "rope", "width": rotated, **small}),
        **({"act_fn": ("elementwise", {"op": "activation", "width": mlp[-1].k, **small})} if mlp else {}),
    }


def _experts(sheet: Sheet, draft: Draft, model: ModelSpec, dtype: str, parallel: Parallel) -> None:
    """Rows of (tokens, experts that they touch, time) of the routed experts of one layer.

    Raises:
        InputError: the model has no experts.
    """
    if not model.experts or model.blocks:
        raise InputError(
            f"{sheet.path}: a table of experts, and model {model.name!r} has no layers that are all of experts"
        )
    visited = model.experts_per_token
    group: dict[str, Value] = {
        "dtype": dtype, "weight_dtype": dtype, "hidden": model.hidden, "ffn": model.expert_ffn // parallel.tp,
        "experts": model.experts, "experts_per_token": visited, "routing": TOLD,
    }  # fmt: skip
    for place, cells in sheet.rows():
        with draft.reading("expert_layer", place):
            tokens, touched = count(cells, "tokens"), count(cells, "activated_experts")
            if not visited <= touched <= min(model.experts, tokens * visited):
                raise Unusable(
                    f"so many experts cannot be touched: a token visits {visited} of {model.experts} of {model.name}"
                )
            draft.add("expert_layer", place, **group, tokens=tokens, touched=touched, us=number(cells, "time_us"))


def _per_sequence(model: ModelSpec, dtype: str, parallel: Parallel) -> dict[str, _Kernel]:
    return {
        "lm_head": _gemm(dtype, model.hidden, -(-model.vocab // parallel.tp)),
        "sampler": ("sampling", {"vocab": model.vocab}),
    }


def _gemm(dtype: str, k: int, n: int) -> _Kernel:
    return "gemm", {"dtype": dtype, "weight_dtype": dtype, "k": k, "n": n}


_NO_ROW = {"final_layernorm": ("elementwise", "the last norm: one launch a step, of the width of all others")}


def _layers(sheet: Sheet, draft: Draft, axis: str, kernels: dict[str, _Kernel]) -> None:
    """Rows of (layer, size, time)."""
    for place, cells in sheet.rows():
        layer = str(cells["layer"])
        if layer in _NO_ROW:
            draft.leave_out(_NO_ROW[layer][0], place, _NO_ROW[layer][1])
            continue
        if layer not in kernels:
            draft.leave_out(sheet.path.name, place, f"layer {layer!r} has no table in a profile")
            continue
        table, group = kernels[layer]
        size = "rows" if table == "sampling" else "tokens"
        with draft.reading(table, place):
            draft.add(table, place, **group, **{size: count(cells, axis)}, us=number(cells, "time_us"))


def _attention(sheet: Sheet, draft: Draft, heads: dict[str, Value]) -> dict[tuple[int, ...], float]:
    """One launch of a prompt's chunk and decode rows of equal contexts; returns microseconds by its four sizes."""
    even: dict[tuple[int, ...], float] = {}
    for place, cells in sheet.rows():
        with draft.reading("mixed_attention", place):
            new, past, decodes, context = (count(cells, key, least=0) for key in _HEADERS["attention"][:4])
            even[new, past, decodes, context] = us = number(cells, "time_us")
            if new and decodes:
                _mixed(draft, place, heads, (new, past, decodes, context, context), us)
            elif new:
                row = {"sequences": 1, "past_tokens": past, "new_tokens": new}
                draft.add("prefill_attention", place, **heads, **row, us=us)
            elif decodes:
                _decode(draft, place, heads, (decodes, context, context), us)
            else:
                draft.leave_out("mixed_attention", place, "computes nothing")
    return even


def _decode(draft: Draft, place: Place, heads: dict[str, Value], sizes: tuple[int, int, int], us: float) -> None:
    sequences, mean, most = sizes
    row = {"sequences": sequences, "mean_context_tokens": mean, "max_context_tokens": most}
    draft.add("decode_attention", place, **heads, width=1, **row, us=us)


def _mixed(draft: Draft, place: Place, heads: dict[str, Value], sizes: tuple[int, ...], us: float) -> None:
    new, past, decodes, mean, most = sizes
    row = {"decodes": decodes, "mean_context_tokens": mean, "past_tokens": past, "new_tokens": new}
    draft.add("mixed_attention", place, **heads, **row, max_context_tokens=most, us=us)


def _skew(sheet: Sheet, draft: Draft, heads: dict[str, Value], scale: int | None) -> None:
    """Uneven decode rows, alone or beside a prompt; their times may be sums of several shots."""
    for place, cells in sheet.rows():
        table = "decode_attention" if cells["regime"] == "pure" else "mixed_attention"
        if scale is None:
            draft.leave_out(table, place, "on another scale than attention.csv, and not by the shots")
            continue
        with draft.reading(table, place):
            rows, mean, most = count(cells, "n"), round(number(cells, "kv_mean")), count(cells, "kv_big")
            us = number(cells, "t_skew_us") / scale
            if table == "decode_attention":
                _decode(draft, place, heads, (rows, mean, most), us)
            else:
                sizes = (count(cells, "pc"), count(cells, "kp", least=0), rows, mean, most)
                _mixed(draft, place, heads, sizes, us)
    if scale is not None and scale != 1:
        draft.note(
            f"{sheet.path.name} has {scale} times what attention.csv has for the same batch, the number of its shots; "
            f"its times were divided by {scale}."
        )


def _scale(sheet: Sheet, even: dict[tuple[int, ...], float], shots: int) -> int | None:
    """What skew.csv's times are to be divided by: 1 or the number of shots, as batches that attention.csv has too say.

    `t_max_us` is the time of a batch whose contexts are all `kv_big`. None where neither number explains it.
    """
    ratios = []
    for _, cells in sheet.rows():
        try:
            sizes = tuple(count(cells, key, least=0) for key in ("pc", "kp", "n", "kv_big"))
            ratios.append(number(cells, "t_max_us") / even[sizes])
        except (KeyError, Unusable):
            continue
    middle = median(ratios) if ratios else 0.0
    return next((choice for choice in {1, shots} if abs(middle / choice - 1) < _SAME_SCALE), None)
