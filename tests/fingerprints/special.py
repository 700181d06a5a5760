"""The runs that try one feature each, and those that are no single simulation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .cases import BASE, DRAFTS, POLICIES

Settings = dict[str, Any]

CHUNKED = {"policy.name": "chunked", "engine.async_scheduling": True}
WINDOW = {"engine.max_model_len": 8192, "workload.trace": "long.csv", "kv.blocks": 470}
SEVERAL = {"workload.trace": "samples.csv", "kv.blocks": 60}
OVER_CHUNKED = {"policy.name": "speculative", "policy.base": "chunked", "engine.async_scheduling": False}
VLLM = {"engine.preset": "vllm-0.33", "kv.allow_short": True, "policy.name": "chunked", "allocator.name": "prefix"}
MERCIFUL = {"workload.skip_bad": True}
FRONT_END: Settings = {
    "front_end.name": "custom",
    "front_end.request_s": 0.004,
    "front_end.prompt_token_s": 5e-06,
    "front_end.step_s": 0.0003,
    "front_end.output_s": 0.0002,
    "front_end.stream_s": 0.0006,
    "front_end.latency_s": 0.0005,
    "front_end.spread": 0.3,
}
FEATURES: dict[str, Settings] = {
    "front-end/open": FRONT_END,
    "front-end/closed/3-processes": {
        **FRONT_END,
        "front_end.processes": 3,
        "workload.concurrency": 9,
        "engine.async_scheduling": False,
    },
    "front-end/sessions/2-replicas": {
        **FRONT_END,
        "replicas": 2,
        "router.name": "least-outstanding",
        "workload.trace": "sessions.csv",
        "workload.sessions": True,
        "kv.blocks": 70,
        "allocator.name": "prefix",
    },
    "front-end/refusals/drafts": {
        **FRONT_END,
        **DRAFTS["eagle"],
        "policy.name": "speculative",
        "policy.base": "chunked",
        "engine.async_scheduling": False,
        "front_end.max_num_queued_reqs": 9,
        "front_end.max_num_queued_tokens": 2500,
    },
    "noise/open": {"cost.noise": 0.05},
    "noise/closed/2-replicas": {"cost.noise": 0.03, "workload.concurrency": 9, "replicas": 2},
    "swap/paged/async": {"kv.swap_gib": 0.15},
    "swap/paged/sync/scant": {"kv.swap_gib": 0.01, "engine.async_scheduling": False},
    "swap/contiguous-oracle/priority": {
        "kv.swap_gib": 0.2,
        "allocator.name": "contiguous-oracle",
        "policy.name": "priority",
    },
    "offload/weights": {"offload.weight_layers": 12},
    "offload/weights-and-kv": {"offload.weight_layers": 20, "offload.kv_layers": 9, "offload.host_gib": 64.0},
    "samples/paged": SEVERAL,
    "samples/prefix": {**SEVERAL, "allocator.name": "prefix"},
    "samples/windowed": {**SEVERAL, "allocator.name": "windowed", "allocator.window_tokens": 48},
    "samples/contiguous-pow2": {**SEVERAL, "allocator.name": "contiguous-pow2", "kv.blocks": 260},
    "samples/static": {**SEVERAL, **POLICIES["static"], "engine.async_scheduling": False},
    "samples/swap": {**SEVERAL, "kv.swap_gib": 0.1},
    "samples/all-alike": {"workload.samples": 3, "kv.blocks": 160},
    "beams/paged": {**SEVERAL, "workload.beam_search": True, "workload.beam_churn": 0.3},
    "beams/prefix/sync": {
        **SEVERAL,
        "workload.beam_search": True,
        "workload.samples": 4,
        "allocator.name": "prefix",
        "engine.async_scheduling": False,
    },
    "beams/contiguous-oracle": {
        **SEVERAL,
        "workload.beam_search": True,
        "workload.beam_churn": 1.0,
        "allocator.name": "contiguous-oracle",
        "kv.blocks": 260,
    },
    "replicas/round-robin": {"replicas": 3, "router.name": "round-robin", "kv.blocks": 110},
    "replicas/least-outstanding": {"replicas": 3, "router.name": "least-outstanding", "kv.blocks": 110},
    "replicas/random": {"replicas": 4, "router.name": "random", "router.seed": 5, "kv.blocks": 110},
    "replicas/closed": {
        "replicas": 2,
        "router.name": "least-outstanding",
        "workload.concurrency": 12,
        "kv.blocks": 110,
    },
    "replicas/drafts-in-sessions": {
        **DRAFTS["eagle"],
        "policy.name": "speculative",
        "policy.base": "chunked",
        "replicas": 2,
        "router.name": "least-outstanding",
        "workload.trace": "sessions.csv",
        "kv.blocks": 60,
        "engine.async_scheduling": False,
        "allocator.name": "prefix",
    },
    "window/mistral-7b-v0.1/paged": {**WINDOW, "model": "mistral-7b-v0.1"},
    "window/mistral-7b-v0.1/windowed": {**WINDOW, "model": "mistral-7b-v0.1", "allocator.name": "windowed"},
    "window/gemma-2-9b/windowed": {**WINDOW, "model": "gemma-2-9b", "allocator.name": "windowed"},
    "window/gemma-3-27b/paged": {**WINDOW, "model": "gemma-3-27b", "tp": 2},
    "window/gemma-3-27b/windowed/continuous": {
        **WINDOW,
        "model": "gemma-3-27b",
        "tp": 2,
        "allocator.name": "windowed",
        "policy.name": "continuous",
        "engine.async_scheduling": False,
        "engine.max_num_batched_tokens": 4096,
    },
    "window/gemma-3-27b/windowed/sjf": {
        **WINDOW,
        "model": "gemma-3-27b",
        "tp": 4,
        "allocator.name": "windowed",
        "policy.name": "sjf",
        "kv.blocks": 260,
    },
    "model/deepseek-v2-lite": {"model": "deepseek-v2-lite"},
    "model/deepseek-v3/tp-16": {"model": "deepseek-v3", "tp": 16, "gpu": "h200"},
    "model/mixtral-8x7b/tp-2": {"model": "mixtral-8x7b", "tp": 2},
    "model/qwen3-30b-a3b": {"model": "qwen3-30b-a3b", "weights": "fp8"},
    "model/opt-13b/a100-40": {"model": "opt-13b", "gpu": "a100-40"},
    "model/llama-3.1-70b/tp-4": {"model": "llama-3.1-70b", "tp": 4, "engine.max_num_batched_tokens": 2048},
    "dtype/kv-fp8": {"kv.dtype": "fp8"},
    "dtype/kv-int4": {"kv.dtype": "int4"},
    "dtype/weights-fp8": {"weights": "fp8", "kv.dtype": "fp8"},
    "dtype/weights-int8": {"weights": "int8"},
    "dtype/weights-int4": {"weights": "int4", "dtype": "fp16"},
    "gpu/mi300x": {"gpu": "mi300x"},
    "profile/measured": {"cost.profile": "profile"},
    "profile/measured/eager": {"cost.profile": "profile", "engine.cuda_graphs": False},
    "profile/uneven-and-mixed": {"cost.profile": "profile-mixed"},
    "profile/uneven-and-mixed/continuous": {
        "cost.profile": "profile-mixed",
        "policy.name": "continuous",
        "policy.order": "decode-first",
        "engine.async_scheduling": False,
        "kv.swap_gib": 0.1,
    },
    "profile/of-another-model": {"cost.profile": "profile", "model": "qwen3-8b"},
    "profile/window": {**WINDOW, "cost.profile": "profile", "model": "mistral-7b-v0.1"},
    "profile/offload": {"cost.profile": "profile", "offload.weight_layers": 3},
    "profile/offload/mixed": {"cost.profile": "profile-mixed", "offload.weight_layers": 2, "offload.kv_layers": 2},
    "profile/experts": {"cost.profile": "profile", "model": "qwen3-30b-a3b"},
    "profile/tp-2": {"cost.profile": "profile", "tp": 2},
    "profile/drafts": {
        **DRAFTS["draft-model-adaptive"],
        "cost.profile": "profile-mixed",
        "policy.name": "speculative",
        "policy.base": "chunked",
        "engine.async_scheduling": False,
    },
    "profile/samples": {**SEVERAL, "cost.profile": "profile"},
    "rejected/some-too-long": {**MERCIFUL, "engine.max_model_len": 700},
    "rejected/pool-too-small": {**MERCIFUL, "kv.blocks": 30},
    "rejected/samples-without-room": {**MERCIFUL, **SEVERAL, "kv.blocks": 40, "allocator.name": "contiguous-oracle"},
    "rejected/whole-prompts": {**MERCIFUL, "engine.chunked_prefill": False, "engine.max_num_batched_tokens": 400},
    "engine/vllm-0.33/sessions": {**VLLM, "workload.trace": "sessions.csv", "kv.blocks": 60},
    "engine/vllm-0.33/eagle": {
        **VLLM,
        **DRAFTS["eagle"],
        "workload.trace": "sessions.csv",
        "kv.blocks": 60,
        "policy.name": "speculative",
        "policy.base": "chunked",
        "engine.async_scheduling": False,
    },
    "engine/vllm-0.33/threshold": {**VLLM, "policy.long_prefill_token_threshold": 64, "engine.async_scheduling": False},
    "engine/vllm-0.33/mixed": {**VLLM, **POLICIES["sjf"], "engine.allow_mix": True},
    "slo/every-kind": {"slo": "ttft_p50=0.3,ttft_p99=2,tpot_mean=0.01,itl_p99=0.03,e2e=5,queue_p90=0.5"},
    "step/whole-prompts": {"engine.chunked_prefill": False, "engine.max_num_batched_tokens": 2048},
    "step/eager": {"engine.cuda_graphs": False},
    "step/one-seat": {"engine.max_num_seqs": 1},
    "step/large": {"engine.max_num_seqs": 256, "engine.max_num_batched_tokens": 8192, "kv.blocks": 3000},
    "step/small-budget": {"engine.max_num_batched_tokens": 16, "workload.limit": 20},
    "blocks/of-1-token": {"kv.block_tokens": 1, "kv.blocks": 3100},
    "blocks/of-64-tokens": {"kv.block_tokens": 64, "kv.blocks": 45, "allocator.name": "prefix"},
    "blocks/derived": {"kv.blocks": 0, "kv.gpu_memory_utilization": 0.8},
    "blocks/derived/prefix-and-draft-model": {
        **DRAFTS["draft-model"],
        "policy.name": "speculative",
        "policy.base": "chunked",
        "engine.async_scheduling": False,
        "allocator.name": "prefix",
        "kv.blocks": 0,
    },
    "blocks/derived/offload-70b": {
        "kv.blocks": 0,
        "model": "llama-3.1-70b",
        "offload.weight_layers": 60,
        "offload.kv_layers": 10,
        "workload.limit": 8,
    },
    "paged/watermark": {"allocator.watermark": 0.15, "engine.async_scheduling": False},
    "paged/first-chunk-only": {"allocator.reserve_full_prompt": False, "engine.max_num_batched_tokens": 128},
    "prefix/keep-uncomputed": {
        "allocator.name": "prefix",
        "allocator.keep_uncomputed": True,
        "workload.trace": "sessions.csv",
        "kv.blocks": 60,
    },
    "blocks/derived/host-memory-binds": {"kv.blocks": 0, "offload.kv_layers": 20, "offload.host_gib": 4.0},
    "drafts/found-as-in-a-summary": {**OVER_CHUNKED, **DRAFTS["ngram"], "speculation.acceptance": "measured.json"},
    "drafts/rates-of-a-file": {**OVER_CHUNKED, **DRAFTS["eagle"], "speculation.acceptance": "rates.json"},
    "drafts/at-the-model's-length": {
        **OVER_CHUNKED,
        **DRAFTS["medusa"],
        "engine.max_model_len": 160,
        "workload.skip_bad": True,
        "kv.blocks": 40,
    },
    "own-policy/open": {"policy.name": "own:by_hand", "engine.async_scheduling": False},
    "own-policy/beams": {
        **SEVERAL,
        "policy.name": "own:by_hand",
        "engine.async_scheduling": False,
        "workload.beam_search": True,
    },
    "arrivals/poisson": {"workload.arrivals": "poisson", "workload.rate": 15.0},
    "arrivals/gamma/resampled": {
        "workload.arrivals": "gamma",
        "workload.arrivals_cv": 2.5,
        "workload.rate": 12.0,
        "workload.resample": 25,
        "workload.trace": "sessions.csv",
    },
    "arrivals/rate-scale": {"workload.rate_scale": 3.0, "workload.limit": 30},
    "arrivals/chatbot-arena": {"workload.trace": "chatbot_arena.jsonl", "workload.limit": 40, "workload.rate": 30.0},
    "bill/catalog": {
        "price.usd_per_gpu_hour": 0.0,
        "price.watts_per_gpu": 0.0,
        "price.idle_watts_per_gpu": 0.0,
        "gpu": "a100-80",
    },
    "bill/none-known": {
        "price.usd_per_gpu_hour": 0.0,
        "price.watts_per_gpu": 0.0,
        "price.idle_watts_per_gpu": 0.0,
        "gpu": "rtx-4090",
        "weights": "int4",
    },
}


def runs() -> Iterator[tuple[str, Settings]]:
    """Single simulations beside those of the table of policies and allocators."""
    for name, settings in FEATURES.items():
        yield name, {**CHUNKED, **settings}


LIVE: Settings = {
    "executor": "live",
    "device": "cpu",
    "model": "tiny-llama",
    "seed": 3,
    "workload.trace": "live.csv",
    "kv.blocks": 14,
    "engine.max_num_seqs": 4,
    "engine.max_num_batched_tokens": 32,
    "engine.max_model_len": 128,
    "live.prompts": "random",
}
STEADY: Settings = {**BASE, **CHUNKED, "workload.trace": "steady.csv", "engine.max_num_seqs": 24, "kv.blocks": 400}
ITSELF = {"speculation.drafter": "draft-model", "speculation.draft_model": "tiny-llama", "speculation.k": 3}


def others() -> Iterator[tuple[str, str, Settings]]:
    """(name, kind, settings) of what is no single simulation."""
    yield "live/chunked/paged", "live", {**LIVE, "allocator.name": "paged"}
    yield "live/continuous/prefix", "live", {**LIVE, "policy.name": "continuous", "allocator.name": "prefix"}
    yield "live/static/contiguous-max", "live", {**LIVE, "policy.name": "static", "allocator.name": "contiguous-max"}
    yield "live/drawn", "live", {**LIVE, "live.temperature": 0.8, "live.top_k": 40, "live.top_p": 0.95}
    drafting = {"policy.name": "speculative", "policy.base": "chunked"}
    yield "live/draft-model", "live", {**LIVE, **drafting, **ITSELF}
    lookup = {"speculation.drafter": "ngram", "speculation.prompt_lookup_max": 1, "speculation.k": 2}
    yield "live/ngram", "live", {**LIVE, **drafting, **lookup}
    yield "written/chunked", "written", {**BASE, **CHUNKED}
    yield (
        "written/drafts-replicas-swap",
        "written",
        {
            **BASE,
            **drafting,
            **DRAFTS["draft-model"],
            "engine.async_scheduling": False,
            "replicas": 2,
            "kv.blocks": 110,
            "kv.swap_gib": 0.1,
        },
    )
    variants = [{"policy.name": "chunked"}, {**POLICIES["static"], "engine.async_scheduling": False}]
    yield "compared/chunked-and-static", "compared", {**STEADY, "compare": variants}
    axes = {"policy.name": ["chunked", "sjf"], "workload.rate": [4.0, 40.0], "kv.dtype": ["auto", "fp8"]}
    yield "swept/policy-rate-dtype", "swept", {**STEADY, **axes, "seeds": [1, 2]}
    asked = {"slo": "ttft_p90=0.4,tpot_p90=0.03", "precision": 0.5, "requests": 200}
    yield "planned/capacity", "planned", {**STEADY, **asked}
    fleet = {"workload.rate": 8.0, "gpu": ["h100", "t4"], "price.usd_per_gpu_hour": 0.0}
    yield "planned/fleet", "chosen", {**STEADY, **asked, **fleet}
    yield "recorded/validate_cpu", "recorded", {"recorded": "../validate_cpu"}
    yield "recorded/one-with-its-page", "page", {"recorded": "../validate_cpu/chat-8-speculative-paged"}
    yield "recorded/vllm-schedules", "schedules", {}
