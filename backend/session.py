"""A live run's device: which one, the model on it, the memory of its cache. `sim.api` reaches this file by name.

It schedules nothing and times nothing: that is the engine's and the executor's work.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy.typing as npt
import pandas as pd
import torch

from backend.cache.kvcache import KvCache, block_bytes
from backend.cache.memory import check_device, check_memory, device_bytes, no_memory
from backend.drafting.draft_model import DraftModel
from backend.drafting.drafting import DraftingLive, Ground, Proposing
from backend.drafting.ngram import Ngram
from backend.live.graphs import CudaRecorder
from backend.live.live import Live
from backend.live.prompts import Prompts, Tokens, held_out_text
from backend.live.sampling import Sampling
from backend.model.loader import load_model
from backend.model.model import Model
from backend.model.packed import packed
from backend.pair.corpus import as_text
from sim import catalog
from sim.cost.profile_run import activations
from sim.cost.roofline import graph_tokens
from sim.engine.drafting import DraftingEngine
from sim.engine.protocol import ServingEngine
from sim.scenario import Scenario
from sim.serving.assemble import Parts
from sim.specs.accounting import PLAIN
from sim.specs.model import ModelSpec
from sim.specs.parallel import SINGLE
from traces.schema import InputError

CPU_CACHE_BYTES = 1 << 30
"""KV cache on a CPU where no number of blocks is given; a quarter of the memory if that is less."""
CPU_WARM_TOKENS, CPU_WARM_SEQUENCES = 256, 32


def fitted(scenario: Scenario) -> Scenario:
    """The scenario with its device named and its KV blocks counted for that device.

    Raises:
        InputError: no such device, or a setting that a live run cannot follow.
    """
    _check(scenario)
    there = "cuda" if torch.cuda.is_available() else "cpu"
    device = check_device(scenario.device if scenario.device != "auto" else there)
    scenario = replace(scenario, device=str(device))
    if scenario.kv.blocks:
        return scenario
    model = _spec(scenario)
    block = block_bytes(model, scenario.kv.block_tokens, model.kv_dtype)
    weights = model.weight_bytes
    if scenario.speculation.draft_model:
        draft = catalog.load_model(scenario.speculation.draft_model)
        block += block_bytes(draft, scenario.kv.block_tokens, draft.kv_dtype)
        weights += draft.weight_bytes
    if device.type == "cpu":
        room = min(CPU_CACHE_BYTES, device_bytes(device) // 4)
    else:
        limits = scenario.engine
        held = activations(model, SINGLE, limits.max_num_batched_tokens, limits.max_num_seqs, PLAIN).expected
        room = int(device_bytes(device) * scenario.kv.gpu_memory_utilization) - weights - held
    if room < 2 * block:
        beside = f" and the draft model {scenario.speculation.draft_model}" if scenario.speculation.draft_model else ""
        raise InputError(
            f"{device} has no room for a KV cache beside {model.name}{beside}; use a smaller model or dtype"
        )
    return replace(scenario, kv=replace(scenario.kv, blocks=room // block - 1))


def _spec(scenario: Scenario) -> ModelSpec:
    def chosen(kind: str) -> str | None:
        return None if kind == "auto" else kind

    types = map(chosen, (scenario.dtype, scenario.kv.dtype, scenario.weights))
    return catalog.load_model(scenario.model).with_dtypes(*types)


def _check(scenario: Scenario) -> None:
    for name in ("replicas", "tp", "pp", "dp"):
        value = getattr(scenario, name)
        if value != 1:
            raise InputError(f"{name} is {value}, and a live run has one device")
    if scenario.workload.beam_search:
        raise InputError("workload.beam_search is simulated only: a live run draws samples")
    if scenario.allocator.parameters.get("keep_uncomputed"):
        raise InputError("allocator.keep_uncomputed is simulated only: a live run would read KV that no step wrote")
    if scenario.offload.weight_layers or scenario.offload.kv_layers:
        raise InputError("offload is simulated only: a live run keeps weights and cache on its device")
    speculation = scenario.speculation
    if speculation.tree:
        raise InputError(
            f"speculation.tree {speculation.tree!r} is simulated only: a live run verifies chains of drafts"
        )
    if speculation.drafter not in ("ngram", "draft-model"):
        raise InputError(
            f"speculation.drafter {speculation.drafter!r} is simulated only: it wants heads trained for the target; "
            "a live run drafts by ngram or draft-model"
        )


class Session:
    """One model on one device, and the token ids of what it served."""

    def __init__(self, parts: Parts, token_ids: Sequence[npt.ArrayLike] | None) -> None:
        """Load or make the weights. `token_ids` are the prompts' where the trace has them."""
        scenario = parts.scenario
        self._parts = parts
        self._device = torch.device(scenario.device)
        if self._device.type == "cpu":
            # One unless more are asked for: under contention two run 5 to 20 times slower (OpenMP barriers).
            torch.set_num_threads(scenario.live.threads)
        if parts.drafter is not None and parts.drafter.model is not None:
            check_memory(
                f"model {parts.model.name!r} with the draft model {parts.drafter.model.name!r}",
                parts.model.weight_bytes + parts.drafter.model.weight_bytes,
                self._device,
                lambda _: "use a smaller draft model, or the drafter ngram",
            )
        model = load_model(scenario.model, parts.model, self._device, seed=scenario.seed)
        self._model = packed(_with_window(model, parts))
        text = held_out_text() if self._shows_text() and token_ids is None else None
        self._prompts = Prompts(parts.model.vocab, scenario.seed, token_ids, text)
        self._draft: Model | None = None
        if parts.drafter is not None and parts.drafter.model is not None:
            draft = load_model(scenario.speculation.draft_model, parts.drafter.model, self._device, seed=scenario.seed)
            self._draft = packed(_with_window(draft, parts))
        self._live: Live | None = None

    @property
    def byte_level(self) -> bool:
        return self._model.config.byte_level

    def _shows_text(self) -> bool:
        """Whether prompts that the trace does not tell are text. Raises InputError where they cannot be, and shall."""
        wanted, possible = self._parts.scenario.live.prompts, self.byte_level
        if wanted == "text" and not possible:
            raise InputError(
                f"live.prompts is text, and the tokens of {self._parts.model.name} are no bytes; use random, or "
                "the model byte-target"
            )
        return possible and wanted != "random"

    @property
    def device_name(self) -> str:
        if self._device.type == "cuda":
            return torch.cuda.get_device_name(self._device)
        return platform.processor() or platform.machine()

    def executor(self, engine: ServingEngine) -> Live:
        """An executor for this engine's batches with a cache of its own, warmed; on CUDA its decode steps are recorded.

        Raises InputError where memory does not suffice, and for a model that no graph can record.
        """
        parts, how = self._parts, self._parts.scenario.live
        graphs = self._device.type == "cuda" and parts.scenario.engine.cuda_graphs
        if graphs and not self._model.graphable:
            raise InputError(
                f"{parts.model.name} waits for the GPU within a step (its experts are multiplied one by one), so that "
                "no CUDA graph can record it; add --set engine.cuda_graphs=false"
            )
        cache = KvCache.allocate(parts.model, self._blocks(), parts.pool.block_tokens, self._device)
        sampling = Sampling(how.temperature, how.top_k, how.top_p, parts.scenario.seed)
        stop = self._model.config.eos_tokens if how.stop_at_eos else ()
        if how.stop_at_eos and not stop:
            raise InputError(f"live.stop_at_eos is true, and {parts.model.name} names no end-of-sequence token")
        live: Live
        common: dict[str, Any] = {
            "most_sequences": parts.limits.max_num_seqs,
            "appends": parts.traits["appends"],
            "host_blocks": parts.host_blocks,
        }
        if isinstance(engine, DraftingEngine):
            live = DraftingLive(
                self._model,
                cache,
                self._prompts,
                sampling,
                drafter=self._drafter(engine, sampling),
                drafts=engine.proposer.most,
                **common,
            )
        else:
            live = Live(self._model, cache, self._prompts, sampling, stop=stop, **common)
        most_tokens, most_sequences = parts.limits.max_num_batched_tokens, parts.limits.max_num_seqs
        if self._device.type == "cpu":
            most_tokens = min(most_tokens, CPU_WARM_TOKENS)
            most_sequences = min(most_sequences, CPU_WARM_SEQUENCES)
        try:
            live.warm_up(most_tokens, most_sequences)
            if graphs:
                live.capture(CudaRecorder(), most_sequences, parts.limits.max_model_len, most_tokens)
        except torch.OutOfMemoryError:
            raise no_memory(self._device, f"steps of {most_tokens} tokens", cache.blocks) from None
        self._live = live
        return live

    def _drafter(self, engine: DraftingEngine, sampling: Sampling) -> Callable[[Ground], Proposing]:
        parts, speculation = self._parts, self._parts.scenario.speculation
        if self._draft is None:
            return partial(Ngram, shortest=speculation.lookup[0], longest=speculation.lookup[1])
        cache = KvCache.allocate(self._draft.spec, self._blocks(), parts.pool.block_tokens, self._device)
        return partial(
            DraftModel,
            self._draft,
            cache,
            allocator=engine.allocator,
            sampling=sampling,
            most_rows=graph_tokens(parts.limits.max_num_seqs),
            host_blocks=parts.host_blocks,
            eager=bool(parts.layout.recent_tokens),
        )

    def _blocks(self) -> int:
        pool, limits = self._parts.pool, self._parts.limits
        if self._parts.traits["keeps_nothing"]:
            return pool.blocks_for(limits.max_num_batched_tokens) + limits.max_num_seqs
        return pool.blocks

    def outputs(self) -> Iterator[tuple[int, int, Tokens]]:
        """(sequence id, prompt tokens, ids of prompt and answer) of all sequences that ran."""
        if self._live is not None:
            yield from self._live.sequences.outputs()


def with_text(session: Session, answers: pd.DataFrame) -> pd.DataFrame:
    """The answers with a column `text` beside `token_ids`, where the model's tokens are bytes."""
    if not session.byte_level:
        return answers
    return answers.assign(text=[as_text(ids) for ids in answers["token_ids"]])


def _with_window(model: Model, parts: Parts) -> Model:
    """The model with the attention window that the allocator keeps to, where that is not the model's own."""
    layout, spec = parts.layout, parts.model
    if not layout.recent_tokens:
        return model
    if spec.sliding_layers and spec.full_layers:
        name = parts.scenario.allocator.name
        raise InputError(f"the {name} allocator for a model with full and windowed layers is simulated only")
    windows = (layout.recent_tokens,) * model.spec.layers
    return Model(model.spec, model.config, model.weights, windows=windows, sinks=layout.sink_tokens)
