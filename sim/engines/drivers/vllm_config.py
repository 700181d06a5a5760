"""What vLLM's scheduler reads of a configuration, put together without a model and a device, for 0.19 and 0.33.

Importing this first silences vLLM and stands in for what is named at import and never used.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import logging
import os
import sys
import types
from types import SimpleNamespace
from typing import Any

os.environ["VLLM_LOGGING_LEVEL"] = "CRITICAL"
os.environ["CUDA_VISIBLE_DEVICES"] = ""


class AbsentModule(types.ModuleType):
    """A package that the scheduler names and never uses."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class AbsentFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        absent = name.partition(".")[0] == "xgrammar"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if absent else None

    def create_module(self, spec: Any) -> types.ModuleType:
        module = AbsentModule(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: Any) -> None:
        pass


sys.meta_path.insert(0, AbsentFinder())
logging.disable(logging.ERROR)

# ruff: noqa: E402  (stand-ins and silence come first)
import torch
from vllm.config import CacheConfig, ParallelConfig, SchedulerConfig, SpeculativeConfig, VllmConfig
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    SlidingWindowSpec,
)

NEWER = hasattr(VllmConfig, "num_lookahead_tokens")
"""Is it of the line of 0.33, and not of 0.19?"""
DERIVED = (
    "num_speculative_tokens",
    "num_lookahead_tokens",
    "num_prefill_lookahead_tokens",
    "num_hash_lookahead_tokens",
    "max_concurrent_batches",
    "max_in_flight_tokens",
)
"""Of the newer line: what vLLM's own configuration class works out from the rest."""
DRAFTING_RULES = (
    "use_eagle",
    "use_dflash",
    "use_dspark",
    "use_multi_module_mtp",
    "uses_draft_model",
    "needs_eagle_block_drop",
    "use_eagle_block_drop",
    "max_num_new_slots_for_drafting",
)
"""The same of its class for drafting."""


def plain(own: type, rules: tuple[str, ...]) -> type:
    """A class without fields of its own, whose derived values vLLM's properties and methods of `own` work out."""
    return type(f"Plain{own.__name__}", (SimpleNamespace,), {name: own.__dict__[name] for name in rules})


def drafting_config(told: dict[str, Any] | None) -> Any:
    """told: {method, num_speculative_tokens}, or None."""
    if told is None:
        return None
    if NEWER:
        return plain(SpeculativeConfig, DRAFTING_RULES)(
            **told,
            num_speculative_tokens_per_batch_size=None,
            parallel_drafting=False,
            disable_eagle_block_drop=False,
            disable_lookahead_block_hashes=False,
            draft_model_config=None,
        )
    return SimpleNamespace(**told, use_eagle=lambda: told["method"] == "eagle", uses_draft_model=lambda: False)


def groups_of(settings: dict[str, Any]) -> KVCacheConfig:
    """A group of layers for each of `groups`, which is its window's tokens, or 0 where it keeps all."""
    size = settings["block_size"]
    heads: dict[str, Any] = {"num_kv_heads": 8, "head_size": 128, "dtype": torch.bfloat16}

    def spec(window: int) -> KVCacheSpec:
        if window:
            return SlidingWindowSpec(block_size=size, **heads, sliding_window=window)
        return FullAttentionSpec(block_size=size, **heads)

    groups = [KVCacheGroupSpec([f"layers {at}"], spec(window)) for at, window in enumerate(settings["groups"])]
    return KVCacheConfig(num_blocks=settings["num_gpu_blocks"], kv_cache_tensors=[], kv_cache_groups=groups)


def scheduler_config(settings: dict[str, Any]) -> SchedulerConfig:
    newer = {key: settings[key] for key in ("watermark", "prefill_schedule_interval")} if NEWER else {}
    if NEWER:
        newer["long_prefill_token_threshold_adaptive"] = settings["long_prefill_token_threshold_adaptive"]
    return SchedulerConfig(
        max_model_len=settings["max_model_len"],
        is_encoder_decoder=False,
        max_num_batched_tokens=settings["max_num_batched_tokens"],
        max_num_seqs=settings["max_num_seqs"],
        enable_chunked_prefill=settings["enable_chunked_prefill"],
        long_prefill_token_threshold=settings["long_prefill_token_threshold"],
        scheduler_reserve_full_isl=settings["scheduler_reserve_full_isl"],
        policy=settings["policy"],
        async_scheduling=settings["async_scheduling"],
        **newer,
    )


def config_of(settings: dict[str, Any]) -> Any:
    """What the scheduler reads of a `VllmConfig`, which itself cannot be made without a model and a device."""
    cache = CacheConfig(block_size=settings["block_size"], enable_prefix_caching=settings["enable_prefix_caching"])
    cache.num_gpu_blocks = settings["num_gpu_blocks"]
    model = SimpleNamespace(
        is_encoder_decoder=False, max_model_len=settings["max_model_len"], enable_return_routed_experts=False
    )
    observability = SimpleNamespace(kv_cache_metrics=False, enable_mfu_metrics=False)
    absent = ("kv_events", "kv_transfer", "ec_transfer")
    slots = settings.get("max_loras", 0)
    parts: dict[str, Any] = {f"{name}_config": None for name in absent}
    parts |= {
        "lora_config": SimpleNamespace(max_loras=slots) if slots else None,
        "scheduler_config": scheduler_config(settings),
        "cache_config": cache,
        "parallel_config": ParallelConfig(),
        "model_config": model,
        "observability_config": observability,
        "speculative_config": drafting_config(settings["speculative"]),
    }
    if not NEWER:
        return SimpleNamespace(**parts)
    vars(model).update(
        uses_mrope=False,
        runner_type="generate",
        is_diffusion=False,
        supports_multimodal_inputs=False,
        return_sampling_mask=False,
    )
    vars(observability).update(
        per_request_spec_decode_metrics=None, enable_logging_iteration_details=False, kv_cache_metrics_sample=0.01
    )
    return plain(VllmConfig, DERIVED)(
        **parts,
        diffusion_config=None,
        is_mm_encoder_only=False,
        use_v2_model_runner=True,
        aux_output_config=SimpleNamespace(enabled=False),
        ec_manager_config=SimpleNamespace(get_encoder_cache_manager_obj=lambda: None),
    )
