"""Draws whole scenarios, small ones that run short of everything, from a seed alone. It runs nothing."""

from __future__ import annotations

from random import Random
from typing import Any

from sim import catalog
from sim.engine.pages import mixed_layers
from sim.load import names

from .case import Case, Row, Steps

COSTS = (
    Steps(2.0**-10),
    Steps(2.0**-10, host_s=2.0**-11),
    Steps(2.0**-10, 2.0**-14, 2.0**-18, host_s=2.0**-9),
    Steps(2.0**-10, 2.0**-14, 2.0**-18, host_s=2.0**-13),
    Steps(0.001, 0.0003, 1e-5),
)
"""All but the last hold durations that floats hold exactly, so that arrivals fall on step boundaries."""
TICK_S = 2.0**-11
POLICIES, ALLOCATORS = (tuple(names(f"sim.{kind}")) for kind in ("policies", "allocators"))
BY_ADAPTERS = "adapter-affinity"
ROUTERS = tuple(name for name in names("sim.routers") if name != BY_ADAPTERS)
MODELS, GPUS = tuple(catalog.names("models")), tuple(catalog.names("gpus"))
TINY = ("tiny-llama", "byte-target", "byte-draft")
WITHOUT_BF16 = ("t4", "v100")
BASES = ("chunked", "continuous", "priority", "sjf")


def draw(seed: int) -> Case:
    """The scenario of a seed."""
    rng = Random(f"foretoken {seed}")
    unit = rng.choice((1, 3, 4, 8, 16))
    big = rng.random() < 0.1
    rows = _rows(rng, unit, big)
    settings: dict[str, Any] = {"seed": rng.randrange(5)}
    _device(rng, settings)
    _policy(rng, settings)
    _engine(rng, settings, rows, big)
    _memory(rng, settings, rows)
    _source(rng, settings, rows)
    _rest(rng, settings)
    cost = rng.choice((*COSTS, None, None, None)) if "cost.profile" not in settings else None
    if settings["policy"] == "speculative" and rng.random() < 0.3:
        rows = [row._replace(acceptance=rng.choice((None, 0.0, 0.5, 1.0))) for row in rows]
    if rng.random() < 0.9:
        _agree(settings)
        if settings["policy"] == "speculative":
            rows = [row._replace(samples=1) for row in rows]
    _adapters(Random(f"adapters {seed}"), settings)
    timeless = rng.random() < (0.2 if {"rate", "concurrency"} & set(settings) else 0.01)
    return Case(settings, tuple(rows), cost, unit, rng.random() < 0.2, timeless)


def _agree(settings: dict[str, Any]) -> None:
    """Leave out most of what is known to be refused, so that most scenarios run."""
    tiny = settings["model"] == "tiny-llama"
    if settings["allocator"] == "no-cache":
        settings.pop("policy.long_prefill_token_threshold", None)
        if settings["policy"] == "speculative":
            settings["allocator"] = "paged"
    if settings.get("speculation.drafter") == "ngram":
        settings["engine.async_scheduling"] = False
    if settings["policy"] == "speculative":
        settings.pop("workload.samples", None)
    if "speculation.draft_model" in settings:
        settings["speculation.draft_model"] = settings["model"]
    if settings.get("engine.chunked_prefill") is False or settings["allocator"] == "no-cache":
        settings["engine.max_num_batched_tokens"] = max(512, settings["engine.max_num_batched_tokens"])
    if settings["gpu"] in WITHOUT_BF16 or "weights" in settings:
        settings["dtype"] = "fp16"
    if tiny and settings["allocator"] == "windowed":
        block = settings["kv.block_tokens"]
        settings["allocator.window_tokens"] = max(block, settings.get("allocator.window_tokens", 2 * block))
    if {"offload.kv_layers", "kv.swap_gib"} <= set(settings):
        del settings["kv.swap_gib"]
    if settings["allocator"] == "paged" and mixed_layers(catalog.load_model(settings["model"]).kv_kinds())[0]:
        settings.pop("kv.swap_gib", None)
    for key in ("offload.weight_layers", "offload.kv_layers"):
        if tiny and key in settings:
            settings[key] = min(2, settings[key])


# ---- requests -------------------------------------------------------------------------------------------------------


def _rows(rng: Random, unit: int, big: bool) -> list[Row]:
    count = rng.choice((1, 2, 3, 5, 8, 12, 20, 20, 20, rng.choice((20, 150))))
    horizon = rng.choice((0, 4, 40, 400))
    longest, answers = (900, 80) if big else (rng.choice((6, 30, 60)), rng.choice((1, 6, 24, 40)))
    priorities, samples = rng.choice((1, 1, 3)), rng.choice((1, 1, 1, 1, 3, rng.choice((2, 9))))
    branches = rng.random() < 0.1
    follows = rng.choice((0.0, 0.0, 0.0, 0.3, 0.7))
    thinks = rng.choice(((0,), (0, 3), (1, 7, 50)))
    prefixes = rng.random() < 0.4
    rows: list[Row] = []
    leaves: list[int] = []
    start_s = 2.0**24 if rng.random() < 0.03 else 0.0  # half a year
    for arrival_s in sorted(start_s + rng.randint(0, horizon) * TICK_S for _ in range(count)):
        prompt, output = rng.randint(1, longest), rng.randint(1, answers)
        row = Row(arrival_s, prompt, output, rng.randrange(priorities), rng.randint(1, samples))
        prefix: tuple[int, ...] = ()
        if leaves and rng.random() < follows:
            parent = rng.choice(leaves)
            if not branches:
                leaves.remove(parent)
            row = row._replace(after=parent, think_s=rng.choice(thinks) * TICK_S)
            if rng.random() < 0.7:  # the conversation so far is part of the prompt
                before = rows[parent]
                row = row._replace(prompt_tokens=prompt + before.prompt_tokens + before.output_tokens)
                prefix = before.prefix
        if prefixes:
            row = row._replace(prefix=_path(rng, prefix, row.prompt_tokens // unit))
        leaves.append(len(rows))
        rows.append(row)
    return rows


def _path(rng: Random, known: tuple[int, ...], units: int) -> tuple[int, ...]:
    """Names of full units that each tell all units before them too: the number of a path in a tree of two branches."""
    names_of = list(known[:units])
    for _ in range(rng.randint(0, min(units, 12) - len(names_of)) if units > len(names_of) < 12 else 0):
        names_of.append((3 * names_of[-1] if names_of else 0) + 1 + rng.randrange(2))
    return tuple(names_of)


# ---- settings -------------------------------------------------------------------------------------------------------


def _device(rng: Random, settings: dict[str, Any]) -> None:
    small = rng.random() < 0.7
    settings["model"] = "tiny-llama" if small else rng.choice(MODELS)
    settings["gpu"] = rng.choice(("h100", *GPUS))
    settings["tp"] = rng.choice((1, 1, 1, 2)) if small else rng.choice((1, 2, 4, 8))
    _sometimes(rng, settings, 0.1, "dtype", ("fp32", "fp16", "bf16"))
    _sometimes(rng, settings, 0.1, "weights", ("fp16", "fp8", "int8", "int4"))
    _sometimes(rng, settings, 0.1, "kv.dtype", ("fp16", "fp8", "int8", "int4"))
    settings["replicas"] = rng.choice((1, 1, 1, 2, 3, 5))
    if settings["replicas"] > 1:
        settings["router"] = rng.choice(ROUTERS)
        if settings["router"] == "random":
            _sometimes(rng, settings, 0.5, "router.seed", (1, 2))
    if rng.random() < 0.08:
        settings.update({"model": "llama-3.1-8b", "gpu": "h100", "tp": 1})
        settings["cost.profile"] = rng.choice(("@mixed", "@uneven"))
    for key in ("weight_layers", "kv_layers"):
        _sometimes(rng, settings, 0.07, f"offload.{key}", (1, 2, 5))
    if "offload.weight_layers" in settings:
        _sometimes(rng, settings, 0.3, "offload.host_gib", (1.0, 1e-6))
    if rng.random() < 0.2:
        settings["cost.efficiency"] = {"host_step_s": rng.choice((0.0, 1e-4, 2.0**-10)), "launch_s": 1e-5}


def _policy(rng: Random, settings: dict[str, Any]) -> None:
    policy = settings["policy"] = rng.choice((*POLICIES, "chunked", "speculative"))
    base = policy
    if policy == "speculative":
        base = settings["policy.base"] = rng.choice(BASES)
        _speculation(rng, settings)
    if base in ("chunked", "priority", "sjf"):
        _sometimes(rng, settings, 0.3, "policy.long_prefill_token_threshold", (1, 5, 16))
    if base == "sjf":
        _sometimes(rng, settings, 0.6, "policy.by", ("prompt", "output", "total"))
    if base == "continuous":
        _sometimes(rng, settings, 0.6, "policy.order", ("prefill-first", "decode-first"))
    if base == "static":
        _sometimes(rng, settings, 0.8, "policy.batch_size", (1, 2, 3, 5))
        _sometimes(rng, settings, 0.8, "policy.timeout_s", (0.0, TICK_S, 20 * TICK_S, 0.01))


def _speculation(rng: Random, settings: dict[str, Any]) -> None:
    drafter = settings["speculation.drafter"] = rng.choice(("ngram", "draft-model", "eagle", "medusa"))
    if drafter == "draft-model":
        settings["speculation.draft_model"] = settings["model"] if rng.random() < 0.6 else "llama-3.2-1b"
    settings["speculation.acceptance"] = rng.choice((0.0, 0.5, 0.7, 1.0, "0.9,0.5,0.1"))
    if drafter == "ngram" and rng.random() < 0.4:
        settings["speculation.acceptance"] = "@looked-up.json"
    k = settings["speculation.k"] = rng.choice((1, 2, 3, 4, 7, rng.choice((7, 64))))
    if drafter in ("eagle", "medusa") and rng.random() < 0.3:
        widths = [rng.randint(1, 3 if at < 3 else 1) for at in range(k)]
        settings["speculation.tree"] = ",".join(map(str, widths))
    else:
        _sometimes(rng, settings, 0.4, "speculation.adaptive", (True,))


def _engine(rng: Random, settings: dict[str, Any], rows: list[Row], big: bool) -> None:
    most = max(row.samples for row in rows)
    settings["engine.max_num_seqs"] = rng.choice((most, 2, 3, 5, 8, 256))
    settings["engine.max_num_batched_tokens"] = rng.choice((64, 512, 8192) if big else (1, 2, 5, 16, 64, 512, 8192))
    longest = max(row.prompt_tokens + row.output_tokens for row in rows)
    if rng.random() < 0.5:
        settings["engine.max_model_len"] = longest + rng.choice((0, 0, 1, 20, -longest // 3))
    _sometimes(rng, settings, 0.25, "engine.chunked_prefill", (False,))
    _sometimes(rng, settings, 0.6, "engine.async_scheduling", (True, False))
    _sometimes(rng, settings, 0.15, "engine.cuda_graphs", (False,))


def _memory(rng: Random, settings: dict[str, Any], rows: list[Row]) -> None:
    allocator = settings["allocator"] = rng.choice((*ALLOCATORS, "paged", "paged", "prefix", "prefix"))
    if allocator in ("paged", "prefix", "windowed"):
        _sometimes(rng, settings, 0.15, "allocator.watermark", (0.01, 0.1))
        _sometimes(rng, settings, 0.2, "allocator.reserve_full_prompt", (False,))
    if allocator == "prefix":
        _sometimes(rng, settings, 0.1, "allocator.keep_uncomputed", (True,))
    if allocator == "windowed":
        _sometimes(rng, settings, 0.8, "allocator.window_tokens", (1, 4, 16, 64))
        _sometimes(rng, settings, 0.4, "allocator.sink_tokens", (1, 4, 9))
    if allocator.startswith("contiguous"):
        _sometimes(rng, settings, 0.5, "allocator.fit", ("first", "best"))
    block = settings["kv.block_tokens"] = rng.choice((1, 3, 4, 8, 16, rng.choice((16, 500))))
    room = settings.get("speculation.k", 0) * 2
    if allocator in ("contiguous", "contiguous-max"):
        settings.setdefault("engine.max_model_len", max(row.prompt_tokens + row.output_tokens for row in rows))
    need = max(-(-(row.prompt_tokens + row.output_tokens + room) // block) * row.samples for row in rows)
    if allocator.startswith("contiguous"):
        reserved = max(
            2 * need if allocator == "contiguous-pow2" else need, -(-settings.get("engine.max_model_len", 0) // block)
        )
        need = max(need, reserved * max(row.samples for row in rows))
    if settings["model"] in TINY or rng.random() < 0.8:  # what is left beside a tiny model is millions of blocks
        settings["kv.blocks"] = max(1, need + rng.choice((-1, 0, 0, 1, need // 2, need, 3 * need, 1000)))
    else:
        settings["kv.block_tokens"] = 16
        _sometimes(rng, settings, 0.5, "kv.gpu_memory_utilization", (0.5, 0.95))
    if allocator not in ("prefix", "windowed"):
        _sometimes(rng, settings, 0.25, "kv.swap_gib", (1e-5, 1e-3, 1.0))


def _source(rng: Random, settings: dict[str, Any], rows: list[Row]) -> None:
    kind = rng.choice(("trace", "trace", "trace", "concurrency", "concurrency", "rate", "rate_scale"))
    if kind == "concurrency":
        settings[kind] = rng.choice((1, 2, 3, 8, 100))
    elif kind != "trace":
        settings[kind] = rng.choice((0.5, 2.0, 300.0, rng.choice((1e-6, 1e6))))
    if kind == "rate" or (kind != "concurrency" and rng.random() < 0.03):
        settings["workload.arrivals"] = rng.choice(("trace", "poisson", "gamma"))
        if settings["workload.arrivals"] == "gamma":
            _sometimes(rng, settings, 0.8, "workload.arrivals_cv", (0.5, 3.0))
    _sometimes(rng, settings, 0.1, "workload.resample", (1, 7, 25))
    _sometimes(rng, settings, 0.2, "workload.sessions", (False,))
    settings["workload.skip_bad"] = rng.random() < 0.8
    if any(row.samples > 1 for row in rows) or rng.random() < 0.1:
        _sometimes(rng, settings, 0.3, "workload.samples", (1, 2))
        if rng.random() < 0.5:
            settings["workload.beam_search"] = True
            _sometimes(rng, settings, 0.7, "workload.beam_churn", (0.0, 0.5, 1.0))


def _rest(rng: Random, settings: dict[str, Any]) -> None:
    limits = ("ttft_p99=0.004", "tpot=0.002", "e2e_p50=0.02,itl=0.003", "queue_mean=0.001,ttft=0.01", "itl_p95=1e-9")
    _sometimes(rng, settings, 0.5, "slo", limits)
    _sometimes(rng, settings, 0.3, "price.usd_per_gpu_hour", (2.5, 1e-3))
    _sometimes(rng, settings, 0.3, "price.watts_per_gpu", (300.0,))
    _sometimes(rng, settings, 0.3, "price.idle_watts_per_gpu", (75.0,))
    _sometimes(rng, settings, 0.2, "executor", ("predicted",))


def _adapters(rng: Random, settings: dict[str, Any]) -> None:
    """Adapters in some scenarios; with random numbers of their own, so that the others stay as they were."""
    if rng.random() < 0.15 and settings["policy"] not in ("static", "speculative"):
        settings["lora.max_loras"] = rng.choice((1, 1, 2, 5))
        _sometimes(rng, settings, 0.5, "lora.max_cpu_loras", (5, 20))
        _sometimes(rng, settings, 0.9, "workload.adapters", (1, 3, 9))
        if settings["replicas"] > 1:
            _sometimes(rng, settings, 0.5, "router", (BY_ADAPTERS,))


def _sometimes(rng: Random, settings: dict[str, Any], share: float, key: str, values: tuple[Any, ...]) -> None:
    """Set a key to one of these values in so many of the scenarios."""
    value = rng.choice(values)
    if rng.random() < share:
        settings[key] = value
