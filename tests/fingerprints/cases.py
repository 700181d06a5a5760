"""Which runs are made: their names, and what each sets beside `BASE`. The record holds every setting written out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

Settings = dict[str, Any]


class Case(NamedTuple):
    kind: str
    settings: Settings


EFFICIENCY = {
    "gemm_compute": 0.7,
    "gemm_compute_fp8": 0.64,
    "gemm_memory": 0.88,
    "gemm_floor_s": 3.9e-06,
    "gemm_floor_s_fp8": 4.2e-06,
    "gemm_feed": 0.04,
    "gemm_tile_s": 5e-07,
    "gemm_split_s": 3e-06,
    "gemm_exposed": 0.3,
    "sustained_compute": 1.0,
    "sustained_after_s": 0.001,
    "expert_compute": 0.7,
    "expert_compute_fp8": 0.5,
    "expert_memory": 0.88,
    "expert_floor_s": 1e-05,
    "expert_tile_s": 2e-06,
    "expert_exposed": 0.3,
    "prefill_attention_compute": 0.68,
    "prefill_attention_compute_64": 0.6,
    "prefill_attention_floor_s": 1.1e-05,
    "prefill_tile_tokens": 128,
    "prefill_packed": 0,
    "prefill_tile_s": 2e-06,
    "prefill_chain": 0.85,
    "prefill_memory": 0.6,
    "prefill_exposed": 0.5,
    "decode_attention_memory": 0.92,
    "decode_attention_memory_fp8": 0.64,
    "decode_attention_memory_int8": 0.64,
    "decode_attention_memory_int4": 0.48,
    "decode_attention_compute": 0.66,
    "decode_attention_floor_s": 1.1e-05,
    "decode_program_s": 2.8e-06,
    "decode_exposed": 0.4,
    "decode_idle": 0.5,
    "decode_split_s": 5e-06,
    "decode_split_tokens": 2048,
    "decode_swap_s": 0,
    "stream_memory": 0.89,
    "small_kernel_floor_s": 2.4e-06,
    "sampling_floor_s": 2.5e-05,
    "sampling_bytes_per_logit": 10,
    "all_reduce_floor_s": 4.3e-06,
    "all_reduce_link": 0.65,
    "network_hop_s": 1e-05,
    "network_link": 0.85,
    "host_link": 0.85,
    "launch_s": 2.5e-05,
    "host_step_s": 0.001,
    "host_row_s": 1.5e-05,
    "host_gap_s": 0.0,
    "host_gap_row_s": 0.0,
}
BASE: Settings = {
    "engine.preset": "foretoken",
    "workload.trace": "open.csv",
    "seed": 7,
    "kv.blocks": 130,
    "kv.block_tokens": 16,
    "engine.max_num_seqs": 12,
    "engine.max_num_batched_tokens": 512,
    "engine.max_model_len": 2048,
    "price.usd_per_gpu_hour": 2.5,
    "price.watts_per_gpu": 700.0,
    "price.idle_watts_per_gpu": 110.0,
    "slo": "ttft_p99=1.5,tpot=0.02",
    **{f"cost.efficiency.{name}": value for name, value in EFFICIENCY.items()},
}
"""So few blocks that requests are preempted, and so few seats that they queue."""

ASYNC = {False: "sync", True: "async"}
POLICIES: dict[str, Settings] = {
    "chunked": {"policy.name": "chunked"},
    "chunked-64": {"policy.name": "chunked", "policy.long_prefill_token_threshold": 64},
    "continuous": {"policy.name": "continuous", "policy.order": "prefill-first"},
    "continuous-decode": {"policy.name": "continuous", "policy.order": "decode-first"},
    "static": {"policy.name": "static", "policy.batch_size": 6, "policy.timeout_s": 0.05},
    "priority": {"policy.name": "priority"},
    "sjf": {"policy.name": "sjf", "policy.by": "prompt"},
    "sjf-total": {"policy.name": "sjf", "policy.by": "total", "policy.long_prefill_token_threshold": 128},
}
ALLOCATORS: dict[str, Settings] = {
    "paged": {"allocator.name": "paged"},
    "prefix": {
        "allocator.name": "prefix",
        "workload.trace": "sessions.csv",
        "workload.sessions": False,
        "kv.blocks": 60,
    },
    "max": {"allocator.name": "contiguous-max", "kv.blocks": 520},
    "pow2": {"allocator.name": "contiguous-pow2", "allocator.fit": "best", "kv.blocks": 300},
    "oracle": {"allocator.name": "contiguous-oracle", "allocator.fit": "first"},
    "windowed": {
        "allocator.name": "windowed",
        "allocator.window_tokens": 160,
        "allocator.sink_tokens": 4,
        "kv.blocks": 78,
    },
    "no-cache": {"allocator.name": "no-cache", "engine.max_num_batched_tokens": 2048},
}
ARRIVALS: dict[str, Settings] = {
    "closed": {"workload.concurrency": 9},
    "sessions": {"workload.trace": "sessions.csv", "workload.sessions": True, "kv.blocks": 70},
}
LLAMA_1B = {"speculation.drafter": "draft-model", "speculation.draft_model": "llama-3.2-1b"}
DRAFTS: dict[str, Settings] = {
    "ngram": {"speculation.drafter": "ngram", "speculation.k": 4, "speculation.acceptance": 0.7},
    "ngram-adaptive": {"speculation.drafter": "ngram", "speculation.k": 5, "speculation.adaptive": True},
    "draft-model": {**LLAMA_1B, "speculation.k": 3, "speculation.acceptance": "0.8,0.6,0.5"},
    "draft-model-adaptive": {**LLAMA_1B, "speculation.k": 4, "speculation.adaptive": True},
    "eagle": {"speculation.drafter": "eagle", "speculation.k": 3, "speculation.acceptance": 0.75},
    "eagle-adaptive": {"speculation.drafter": "eagle", "speculation.k": 6, "speculation.adaptive": True},
    "eagle-tree": {"speculation.drafter": "eagle", "speculation.k": 3, "speculation.tree": "3,2,1"},
    "medusa": {"speculation.drafter": "medusa", "speculation.k": 4, "speculation.acceptance": 0.6},
    "medusa-tree": {"speculation.drafter": "medusa", "speculation.k": 2, "speculation.tree": "4,2"},
}


def _asynchronous(on: bool) -> Settings:
    return {"engine.async_scheduling": on}


def _cross() -> Iterator[tuple[str, Settings]]:
    """Every policy with every kind of allocator, planned ahead or not in turn; `chunked` with all of them, and both."""
    for at, (policy, told) in enumerate(POLICIES.items()):
        for place, (allocator, more) in enumerate(ALLOCATORS.items()):
            contiguous = allocator in ("max", "pow2", "oracle")
            if policy != "chunked" and contiguous and (at + place) % 3:
                continue
            if policy in ("chunked-64", "sjf-total", "continuous-decode") and allocator not in ("paged", "prefix"):
                continue
            both = policy == "chunked" and allocator != "no-cache"
            for on in (False, True) if both else [(at + place) % 2 == 1]:
                yield f"{policy}/{allocator}/{ASYNC[on]}/open", {**told, **more, **_asynchronous(on)}


def _arrivals() -> Iterator[tuple[str, Settings]]:
    for at, policy in enumerate(("chunked", "continuous", "static", "priority", "sjf")):
        for place, (arrivals, more) in enumerate(ARRIVALS.items()):
            for allocator in ("paged", "prefix") if arrivals == "sessions" else ("paged",):
                on = (at + place + (allocator == "prefix")) % 2 == 0
                own = {"allocator.name": allocator, **_asynchronous(on)}
                yield f"{policy}/{allocator}/{ASYNC[on]}/{arrivals}", {**POLICIES[policy], **more, **own}


def _drafting() -> Iterator[tuple[str, Settings]]:
    """Every drafter over `chunked`, planned ahead where it can be; then over other policies and allocators."""
    for drafts in DRAFTS:
        for on in (False, True):
            if on and (drafts.startswith("ngram") or "adaptive" in drafts):
                continue
            yield f"chunked/paged/{ASYNC[on]}/open/{drafts}", _speculative("chunked", drafts, "paged", on)
    for base, allocator, drafts, on in (
        ("continuous", "prefix", "eagle", False),
        ("continuous-decode", "oracle", "ngram", False),
        ("priority", "prefix", "draft-model", True),
        ("sjf", "windowed", "eagle", False),
        ("sjf-total", "pow2", "medusa", True),
        ("chunked-64", "prefix", "eagle-tree", True),
        ("priority", "max", "ngram-adaptive", False),
        ("continuous", "windowed", "medusa-tree", False),
    ):
        told = _speculative(base, drafts, allocator, on)
        yield f"{base}/{allocator}/{ASYNC[on]}/open/{drafts}", told
    closed = {**_speculative("chunked", "eagle", "paged", False), **ARRIVALS["closed"]}
    yield "chunked/paged/sync/closed/eagle", closed
    sessions = {**_speculative("priority", "ngram", "prefix", False), **ARRIVALS["sessions"]}
    yield "priority/prefix/sync/sessions/ngram", sessions
    own = {**_speculative("chunked", "eagle-tree", "paged", False), "workload.trace": "rates.csv", "kv.blocks": 50}
    yield "chunked/paged/sync/open/eagle-tree/rates-of-requests", own
    yield "chunked/paged/sync/open/eagle/rates-of-requests", {**own, **DRAFTS["eagle"], "speculation.tree": ""}
    swapped = {**_speculative("chunked", "draft-model", "paged", True), "kv.swap_gib": 0.2}
    yield "chunked/paged/async/open/draft-model/swap", swapped


def _speculative(base: str, drafts: str, allocator: str, on: bool) -> Settings:
    policy = {**POLICIES[base], "policy.base": POLICIES[base]["policy.name"], "policy.name": "speculative"}
    return {**policy, **ALLOCATORS[allocator], **DRAFTS[drafts], **_asynchronous(on)}


def cases() -> dict[str, Case]:
    """Every run by name; a name is policy/allocator/planned ahead or not/arrivals, or a subject and what is special."""
    from .special import others, runs

    named = [*_cross(), *_arrivals(), *_drafting(), *runs()]
    found = {name: Case("run", {**BASE, **settings}) for name, settings in named}
    assert len(found) == len(named), "two runs have one name"
    return found | {name: Case(kind, settings) for name, kind, settings in others()}
