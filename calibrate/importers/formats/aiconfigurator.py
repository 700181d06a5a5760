"""Kernel tables of NVIDIA's AIConfigurator, latencies in milliseconds, CSV or Parquet. It checks no speed.

Source: github.com/ai-dynamo/aiconfigurator, `systems/data/<gpu>/<framework>/<version>/*_perf.*`: GEMMs by m, n, k;
attention by batch, `isl` and `step` (KV tokens that are there before); collectives by `message_size`, which counts
ELEMENTS: a half message of n takes what an int8 message of 2n does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from calibrate.importers.draft import Draft, ImportOptions, named_in
from calibrate.importers.sheet import Cells, Place, Sheet, Unusable, count, number
from sim.cost.experts import Routing
from sim.cost.tables import Value
from traces.schema import InputError

T = TypeVar("T")
_ATTENTION = ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim")
_EXPERTS = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
_TIMES = ("latency", "latency_ms")
_TYPE_COLUMNS = ("gemm_dtype", "attn_dtype", "allreduce_dtype", "nccl_dtype", "moe_dtype")

_ACTIVATIONS: Mapping[str, str] = {
    "bfloat16": "bf16",
    "bf16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "fp16": "fp16",
}
# (activations, weights); fp8 activations go with 16-bit outputs.
_GEMMS: Mapping[str, tuple[str, str]] = {
    **{name: (dtype, dtype) for name, dtype in _ACTIVATIONS.items()},
    "fp8": ("bf16", "fp8"),
    "int8_wo": ("bf16", "int8"),
    "int4_wo": ("bf16", "int4"),
}
_CACHES: Mapping[str, str] = {**_ACTIVATIONS, "fp8": "fp8", "int8": "int8"}
_ELEMENT_BYTES: Mapping[str, int] = {**dict.fromkeys(_ACTIVATIONS, 2), "int8": 1}
_COLLECTIVES = {"all_reduce": "all_reduce", "all_gather": "all_gather"}
"""Of a profile, by the names of these tables."""
_EXCHANGES = {"alltoall": "all_to_all", "reduce_scatter": "reduce_scatter"}
"""What the roofline's constants have besides."""


def table_of(sheet: Sheet) -> str | None:
    if not any(sheet.has(time) for time in _TIMES):
        return None
    if sheet.has("m", "n", "k") and not sheet.has("num_heads"):
        return "gemm"
    if sheet.has(*_ATTENTION):
        return "attention"
    if sheet.has(*_EXPERTS):
        return "experts"
    return "collective" if sheet.has("num_gpus", "message_size") else None


def read(sheets: list[Sheet], options: ImportOptions) -> Draft:
    """All tables together, as one profile of one GPU.

    Raises:
        InputError: a type that neither file, name nor user says; a `device` column that names another GPU.
    """
    draft = Draft("AIConfigurator kernel tables (ai-dynamo/aiconfigurator), measured by its collector", "ms")
    collectives: dict[tuple[Value, ...], list[_Message]] = {}
    for sheet in sheets:
        table = table_of(sheet)
        fallback = _type_of_all_rows(sheet, options) if not any(map(sheet.has, _TYPE_COLUMNS)) else ""
        for place, cells in sheet.rows():
            _describe(draft, place, cells, options)
            if table == "gemm":
                _gemm(draft, place, cells, fallback)
            elif table == "attention":
                _attention(draft, place, cells, fallback)
            elif table == "experts":
                _experts(draft, place, cells, fallback)
            else:
                _collective(draft, place, cells, collectives, options)
    for messages in collectives.values():
        _fastest(draft, messages)
    return draft


def _type_of_all_rows(sheet: Sheet, options: ImportOptions) -> str:
    """The type where no column has it: as the file's name ends (`gemm_bf16.csv`), else as told.

    A name and --dtype that disagree are refused: of a folder with `gemm_fp8.csv` in it one type cannot be all.
    """
    told, named = options.dtype(), named_in(sheet.path, (*_ACTIVATIONS, "fp8"))
    if told and named and _ACTIVATIONS.get(told, told) != _ACTIVATIONS.get(named, named):
        raise InputError(
            f"{sheet.path}: its name says {named}, and --dtype {told}; leave --dtype out where names say the type, or "
            "import this file by itself under another name"
        )
    dtype = named or told
    if dtype is None:
        raise InputError(
            f"{sheet.path}: no column {', '.join(_TYPE_COLUMNS)}, and the name ends in no type; say it with --dtype"
        )
    return dtype


def _describe(draft: Draft, place: Place, cells: Cells, options: ImportOptions) -> None:
    device = str(cells.get("device") or "")
    if device and device != draft.device:
        options.check_gpu(place, device)
        draft.device = device
    framework = str(cells.get("framework") or "")
    if framework:
        versions = [one for one in draft.facts.get(framework, "").split(", ") if one]
        if (version := str(cells.get("version") or "unknown version")) not in versions:
            draft.facts[framework] = ", ".join([*versions, version])


def _time_us(cells: Cells) -> float:
    return number(cells, next(time for time in _TIMES if time in cells)) * 1e3


def _known(names: Mapping[str, T], text: str, what: str) -> T:
    if text not in names:
        raise Unusable(f"{what} {text} is no type of a profile")
    return names[text]


def _gemm(draft: Draft, place: Place, cells: Cells, fallback: str) -> None:
    with draft.reading("gemm", place):
        dtype, weight = _known(_GEMMS, fallback or str(cells.get("gemm_dtype")), "gemm_dtype")
        sizes = {"k": count(cells, "k"), "n": count(cells, "n"), "tokens": count(cells, "m")}
        draft.add("gemm", place, dtype=dtype, weight_dtype=weight, **sizes, us=_time_us(cells))


def _attention(draft: Draft, place: Place, cells: Cells, fallback: str) -> None:
    """Context and generation tables have the same columns: a row decodes where one token comes on top of a cache."""
    with draft.reading("attention", place):
        if cells.get("beam_width") and count(cells, "beam_width") != 1:
            raise Unusable("beam_width is not 1")
        new, past = count(cells, "isl"), count(cells, "step", least=0)
        heads: dict[str, Value] = {
            "dtype": _known(_ACTIVATIONS, fallback or str(cells.get("attn_dtype")), "attn_dtype"),
            "kv_dtype": _known(_CACHES, fallback or str(cells.get("kv_cache_dtype")), "kv_cache_dtype"),
            "heads": count(cells, "num_heads"),
            "kv_heads": count(cells, "num_key_value_heads"),
            "head_dim": count(cells, "head_dim"),
            "window": count(cells, "window_size", least=0) if cells.get("window_size") else 0,
        }
        batch, us = count(cells, "batch_size"), _time_us(cells)
        if new > 1 or past == 0:
            sizes: dict[str, Value] = {"sequences": batch, "past_tokens": past, "new_tokens": new}
            draft.add("prefill_attention", place, **heads, **sizes, us=us)
            return
        draft.note("Decode rows attend step + isl tokens, the new one included (1 + 1, 1 + 3, 1 + 7 ...).")
        sizes = {"sequences": batch, "mean_context_tokens": past + new, "max_context_tokens": past + new}
        draft.add("decode_attention", place, **heads, width=1, **sizes, us=us)


def _experts(draft: Draft, place: Place, cells: Cells, fallback: str) -> None:
    """A fused layer of routed experts, tokens spread as `distribution` says."""
    with draft.reading("expert_layer", place):
        dtype, weight = _known(_GEMMS, fallback or str(cells.get("moe_dtype")), "moe_dtype")
        if count(cells, "moe_ep_size") != 1:
            raise Unusable("its experts are spread over several GPUs (moe_ep_size), which no run has")
        inner, shared = count(cells, "inter_size"), count(cells, "moe_tp_size")
        if inner % shared:
            raise Unusable("inter_size is no multiple of moe_tp_size")
        experts, visited, tokens = count(cells, "num_experts"), count(cells, "topk"), count(cells, "num_tokens")
        if visited > experts:
            raise Unusable("topk is above num_experts")
        routing = _routing(str(cells.get("distribution") or "balanced"))
        touched = routing.load(tokens, experts, visited).touched
        draft.note("Experts that tokens touch are not in the tables; they are what the distribution gives on average.")
        sizes = {"hidden": count(cells, "hidden_size"), "ffn": inner // shared, "experts": experts}
        draft.add(
            "expert_layer", place, dtype=dtype, weight_dtype=weight, **sizes, experts_per_token=visited,
            routing=routing.text, tokens=tokens, touched=max(1, round(touched)), us=_time_us(cells),
        )  # fmt: skip


def _routing(distribution: str) -> Routing:
    try:
        return Routing(distribution.replace("power_law_", "power-law:"))
    except InputError:
        raise Unusable(f"distribution {distribution} is none that a run has") from None


_Message = tuple[Place, dict[str, Value]]


def _collective(
    draft: Draft,
    place: Place,
    cells: Cells,
    messages: dict[tuple[Value, ...], list[_Message]],
    options: ImportOptions,
) -> None:
    with draft.reading("all_reduce", place):
        op = str(cells.get("op_name") or "all_reduce")
        known = _COLLECTIVES | (_EXCHANGES if options.exchanges else {})
        if op not in known:
            raise Unusable(f"{op} is no collective of a profile")
        if str(cells.get("backend") or "").endswith("eager"):
            raise Unusable("launched by itself, so that the host's time is in it; the rows in a graph are kept")
        dtype = str(cells.get("nccl_dtype") or cells.get("allreduce_dtype"))
        element_bytes = _known(_ELEMENT_BYTES, dtype, "dtype")
        size = count(cells, "message_size") * element_bytes
        if element_bytes == 1:
            raise Unusable("the same bytes in 16-bit elements are kept")
        draft.note("message_size counts elements; bytes are those of all elements of a GPU (of a gather: its result).")
        row: dict[str, Value] = {"op": known[op], "gpus": count(cells, "num_gpus", least=2), "bytes": size}
        messages.setdefault(tuple(row.values()), []).append((place, {**row, "us": _time_us(cells)}))


def _fastest(draft: Draft, messages: list[_Message]) -> None:
    """Of several kernels for one message the fastest, as an engine picks by size."""
    speed: Callable[[_Message], float] = lambda message: float(message[1]["us"])  # noqa: E731
    place, row = min(messages, key=speed)
    draft.add("all_reduce", place, **row)
    for other, _ in messages:
        if other != place:
            draft.leave_out("all_reduce", other, "another kernel is faster for the same message")
    if len(messages) > 1:
        draft.note("Of several kernels for one collective message (vLLM's own in a graph, NCCL) the fastest is kept.")
