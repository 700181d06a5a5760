"""Cases of a whole model: one decode step, launched kernel by kernel and as a CUDA graph, and tokens a second."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from backend.bench.record import ABSENT, FAILED, MEASURED, BenchRow, Stats
from backend.bench.timing import AbsentError, Bench, BenchTask, Call, Check, Offer
from backend.cache.kvcache import KvCache
from backend.live.graphs import CudaRecorder
from backend.model.loader import DTYPES, random_model
from backend.model.model import DecodePart, ForwardBatch, Model
from backend.model.packed import packed
from sim import api, catalog, scenario
from sim.specs.model import ModelSpec
from traces.rows import from_frame
from traces.schema import InputError

BLOCK_TOKENS = 16
MODEL, SMALL_MODEL = "llama-3.1-8b", "tiny-llama"
WAVES = 3
WAVE_S = 1000.0
"""Between two waves of requests on the virtual clock: longer than one takes, and nobody waits for it."""


def spec_of(small: bool) -> ModelSpec:
    return catalog.load_model(SMALL_MODEL if small else MODEL)


def step(bench: Bench, batches: tuple[int, ...], context: int) -> None:
    """One decode step of the whole model with the draw of its tokens, of each of these batches."""
    spec = spec_of(bench.small)
    model = packed(random_model(spec, bench.device))
    blocks = max(batches) * -(-context // BLOCK_TOKENS)
    cache = KvCache.allocate(spec, blocks, BLOCK_TOKENS, bench.device)
    for layer in cache.layers:
        for stored in (layer.k, layer.v):
            stored.normal_()
    for batch in batches:
        task = BenchTask(
            group="step",
            case=f"step {spec.name} {batch}x{context}",
            sizes={"model": spec.name, "sequences": batch, "context": context},
            set_bytes=spec.weight_bytes,
            bytes=step_bytes(spec, batch, context),
            tokens=batch,
            check=Check(lambda out: (out >= 0).double(), torch.ones(batch, device=bench.device).double(), 0.0),
        )
        bench.compare(task, _offers(bench, model, cache, batch, context))


def step_bytes(spec: ModelSpec, batch: int, context: int) -> int:
    """The fewest bytes a decode step moves: every weight once (of the embedding the batch's rows), every key and value.

    Keys and values of `context - 1` tokens are read and those of one written, for each of the batch.
    """
    unread = 0 if spec.tied_embeddings else (spec.vocab - batch) * spec.hidden * spec.element_bytes
    return spec.weight_bytes - unread + batch * context * spec.kv_bytes_per_token


def _offers(bench: Bench, model: Model, cache: KvCache, batch: int, context: int) -> list[Offer]:
    work = _step(bench, model, cache, batch, context)

    def recorded() -> Call:
        if not bench.cuda:
            raise AbsentError("CUDA graphs need CUDA")
        recording = CudaRecorder()(lambda: work(0))

        def call(turn: int) -> Tensor:
            recording.replay()
            return recording.result

        return call

    return [
        Offer("ours, eager", lambda: work, ours=True, held=False),
        Offer("ours, CUDA graph", recorded, ours=True, held=False),
    ]


def _step(bench: Bench, model: Model, cache: KvCache, batch: int, context: int) -> Call:
    device, blocks = bench.device, -(-context // BLOCK_TOKENS)

    def filled(value: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.full((batch,), value, dtype=dtype, device=device)

    order = torch.randperm(cache.blocks, device=device).int() + 1
    tables = order[: batch * blocks].view(batch, blocks)
    slots = tables[:, -1] * BLOCK_TOKENS + (context - 1) % BLOCK_TOKENS
    tokens = torch.randint(model.spec.vocab, (batch,), device=device)
    decode = DecodePart(1, filled(context), tables)
    forward = ForwardBatch(tokens, filled(context - 1, torch.int64), slots, None, None, decode)
    greedy = {
        "temperature": torch.zeros(batch, device=device),
        "top_k": filled(0),
        "top_p": torch.ones(batch, device=device),
        "seeds": filled(0, torch.int64),
        "positions": filled(context),
    }
    return lambda turn: bench.ops.sample(model.forward(forward, cache), **greedy)


def generate(bench: Bench, sequences: int, prompt_tokens: int, output_tokens: int) -> None:
    """Tokens a second of the same requests, all sent at once: a live run of ours, and `transformers.generate`.

    Prompts are prefilled within the time. Each runs WAVES times after warming up, in its own turn: two models of this
    size and a cache need not fit beside each other.
    """
    spec = spec_of(bench.small)
    task = BenchTask(
        group="generate",
        case=f"generate {spec.name} {sequences}x{prompt_tokens}+{output_tokens}",
        sizes={"sequences": sequences, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens},
        tokens=sequences * output_tokens,
    )
    wanted = (sequences, prompt_tokens, output_tokens)
    runs = {"ours, live": _ours(bench, *wanted), "transformers.generate": _transformers(bench, spec, *wanted)}
    for name, waves in runs.items():
        offer = Offer(name, lambda: _never, ours=name.startswith("ours"))
        bench.report.rows.append(_told(bench, task, offer, waves))
        if bench.cuda:
            torch.cuda.empty_cache()


def _never(turn: int) -> None:
    raise AssertionError("these are timed by the run itself")


def _told(bench: Bench, task: BenchTask, offer: Offer, waves: Iterator[float]) -> BenchRow:
    try:
        return task.row(offer, MEASURED, time=Stats.of(list(waves)))
    except (AbsentError, ModuleNotFoundError) as missing:
        return task.row(offer, ABSENT, reason=str(missing))
    except (InputError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        bench.clock.wait()
        return task.row(offer, FAILED, reason=f"{type(error).__name__}: {str(error).strip()[:200]}")


def _ours(bench: Bench, sequences: int, prompt_tokens: int, output_tokens: int) -> Iterator[float]:
    """Seconds of each wave, host and device, as `sim run --executor live` measures them."""
    most = prompt_tokens + output_tokens
    blocks = sequences * -(-(most + 1) // BLOCK_TOKENS) + 1
    settings: dict[str, Any] = {
        "executor": "live",
        "device": str(bench.device),
        "model": spec_of(bench.small).name,
        "kv.blocks": blocks,
        "kv.block_tokens": BLOCK_TOKENS,
        "engine.max_num_seqs": sequences,
        "engine.max_num_batched_tokens": max(sequences * prompt_tokens, 2048),
        "engine.max_model_len": most + 1,
    }
    arrivals = np.repeat(np.arange(WAVES) * WAVE_S, sequences)
    table = {"arrival_s": arrivals, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens}
    waves = from_frame(pd.DataFrame(table), name="waves", synthetic=True)
    result = api.simulate(scenario.build({}, settings), trace=waves)
    for _, wave in result.requests.groupby("arrival_s"):
        yield float(wave["finish_s"].max() - wave["arrival_s"].min())


def _transformers(
    bench: Bench, spec: ModelSpec, sequences: int, prompt_tokens: int, output_tokens: int
) -> Iterator[float]:
    """Seconds of each greedy `generate` of a random model of the same shape, after one that warms up."""
    transformers = importlib.import_module("transformers")
    config = transformers.LlamaConfig(
        hidden_size=spec.hidden, intermediate_size=spec.ffn, num_hidden_layers=spec.layers, vocab_size=spec.vocab,
        num_attention_heads=spec.heads, num_key_value_heads=spec.kv_heads, head_dim=spec.head_dim,
        max_position_embeddings=spec.max_context_tokens, tie_word_embeddings=spec.tied_embeddings,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[spec.dtype])
    try:
        with bench.device:
            model = transformers.LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    prompts = torch.randint(spec.vocab, (sequences, prompt_tokens), device=bench.device)
    how = {"do_sample": False, "min_new_tokens": output_tokens, "max_new_tokens": output_tokens}
    for wave in range(WAVES + 1):
        bench.clock.wait()
        started = time.perf_counter()
        made = model.generate(prompts, attention_mask=torch.ones_like(prompts), **how)
        bench.clock.wait()
        if made.shape[1] != prompt_tokens + output_tokens:
            raise RuntimeError(f"generated {made.shape[1] - prompt_tokens} tokens instead of {output_tokens}")
        if wave:
            yield time.perf_counter() - started
