"""Batch-level times of Splitwise: whole prompt and token steps in milliseconds, host included. It knows no kernels.

Source: github.com/Mutinifni/splitwise-sim, `data/perf_model.csv`: for each model, GPU, tensor parallelism, prompt size
and batch size the time of the prompt step and the mean time of a token step, several repeats of each.
"""

from __future__ import annotations

from calibrate.importers.draft import Draft, ImportOptions
from calibrate.importers.sheet import Cells, Place, Sheet, Unusable, count, number
from sim.catalog import load_model
from sim.cost.schema import NO_PREFILLS
from sim.cost.tables import Value
from sim.specs.gpu import GpuSpec
from sim.specs.model import ModelSpec
from sim.specs.parallel import Parallel
from traces.schema import InputError

_COLUMNS = (
    "model",
    "hardware",
    "prompt_size",
    "batch_size",
    "token_size",
    "prompt_time",
    "token_time",
    "tensor_parallel",
)
NO_HOST_US = 1e-3
"""`host_us` of a step whose host time is not known apart (a profile's numbers are positive): 1 ns."""


def table_of(sheet: Sheet) -> str | None:
    return "perf_model" if sheet.has(*_COLUMNS) else None


def read(sheets: list[Sheet], options: ImportOptions) -> Draft:
    """The steps of one model on one number of GPUs.

    Raises:
        InputError: several numbers of GPUs and none told, or rows of another GPU than --gpu.
    """
    draft = Draft("Splitwise performance model (Mutinifni/splitwise-sim), batch-level times", "ms")
    chosen = _gpus_of(sheets, options)
    kind = options.dtype()
    models: dict[str, ModelSpec] = {}
    for sheet in sheets:
        for place, cells in sheet.rows():
            name = str(cells["model"])
            if name not in models:
                spec = load_model(name)
                models[name] = spec.with_dtypes(kind or spec.dtype)
            options.check_gpu(place, str(cells["hardware"]))
            with draft.reading("steps", place):
                if count(cells, "tensor_parallel") != chosen:
                    raise Unusable(f"measured on another number of GPUs than {chosen}")
                _steps(draft, place, cells, (models[name], options.gpu, Parallel(chosen)))
    draft.facts["tp"] = str(chosen)
    draft.note(
        f"Every step ran on {chosen} GPUs; a token step is the mean over its outputs, so its context is the middle."
    )
    draft.note("Times are of whole steps, the host included; host_us 0.001 stands for a part that is not known.")
    for spec in models.values():
        draft.note(f"Types are not stated by the source; taken as {spec.dtype}, and as launched without CUDA graphs.")
    return draft


def _gpus_of(sheets: list[Sheet], options: ImportOptions) -> int:
    counts: set[int] = set()
    for sheet in sheets:
        for _, cells in sheet.rows():
            try:
                counts.add(count(cells, "tensor_parallel"))
            except Unusable:
                continue
    choices = ", ".join(map(str, sorted(counts)))
    tp = options.tp()
    if tp is None and len(counts) != 1:
        raise InputError(f"{sheets[0].path}: measured on {choices} GPUs; say which with --tp")
    if tp is not None and tp not in counts:
        raise InputError(f"--tp {tp}: {sheets[0].path} has {choices}")
    return tp if tp is not None else counts.pop()


def _steps(draft: Draft, place: Place, cells: Cells, where: tuple[ModelSpec, GpuSpec, Parallel]) -> None:
    """The prompt step and the token step of one row; a batch whose prompts are impossible was not run as one."""
    model, gpu, _ = where
    batch, prompt = count(cells, "batch_size"), count(cells, "prompt_size")
    context = prompt + count(cells, "token_size") // 2
    prompt_us, token_us = number(cells, "prompt_time") * 1e3, number(cells, "token_time") * 1e3
    least_us = _least_us(where, batch * prompt, batch * prompt * (prompt + 1) // 2, 0)
    draft.add_step(place, _row(model, ";".join([f"{prompt}+0"] * batch), 0, 0, prompt_us), least_us)
    if prompt_us < least_us:
        raise Unusable(f"its prompts are faster than the chip can be, so that no batch of so many ran ({gpu.name})")
    least_us = _least_us(where, batch, batch * context, batch * context)
    draft.add_step(place, _row(model, NO_PREFILLS, batch, context, token_us), least_us)


def _row(model: ModelSpec, prefills: str, decodes: int, context: int, us: float) -> dict[str, Value]:
    return {
        "model": model.name,
        "dtype": model.dtype,
        "weight_dtype": model.weight_dtype,
        "kv_dtype": model.kv_dtype,
        "graph": 0,
        "prefills": prefills,
        "decodes": decodes,
        "decode_context_tokens": decodes * context,
        "max_context_tokens": context,
        "device_us": us,
        "host_us": NO_HOST_US,
    }


def _least_us(where: tuple[ModelSpec, GpuSpec, Parallel], tokens: int, pairs: int, cached_tokens: int) -> float:
    """What `tp` chips need at their data sheets' rates for the layers of one step: FLOPs, or weights and cache read."""
    model, gpu, parallel = where
    attention_flops = 2.0 * model.layers * model.heads * (model.head_dim + model.value_dim) * pairs
    flops = (tokens * model.flops_per_token + attention_flops) / parallel.tp
    matrices_bytes = model.last_layers_weight_bytes(model.layers, parallel)
    moved = matrices_bytes + cached_tokens * model.gpu_kv_bytes_per_token(parallel)
    return max(flops / gpu.flops_per_s(model.dtype), (moved - gpu.l2_bytes) / gpu.memory_bytes_per_s) * 1e6
