"""Random scenarios in the form of recorded schedules, decided by an installed engine's scheduler and by ours."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from sim.allocators.mixed.paged import MixedPaged
from sim.allocators.mixed.prefix import MixedPrefix
from sim.cost.fixed import FixedCost
from sim.engine.batch import Limits
from sim.engine.memory import Allocator, KvLayers, KvPool, Layout
from sim.engine.pages import in_groups
from sim.engine.protocol import ServingEngine
from sim.engine.wiring import wire
from sim.engines.drafts import VllmDraftingEngine
from sim.engines.pipe import SchedulerProcess
from sim.engines.vllm import VllmEngine
from sim.serving.clock import Clock
from sim.serving.executor import Accepting, Executor, Predicted
from sim.serving.replica import Replica
from sim.validate.drift import Schedule
from sim.validate.schedules.grades import Comparison, compare
from sim.validate.schedules.replay import RULES, Script, allocator_of, policy_of, requests_of

COST = FixedCost(5e-3, 2e-5, 1e-9)
AGREED = ("plain", "drafts", "adapters")
KINDS = (*AGREED, "windows")
"""What scenarios are about: nothing more, drafts, adapters, or layers with windows, in which ours differs yet."""


def drawn(seed: int, version: str, kind: str = "plain") -> dict[str, Any]:
    """A scenario of two dozen requests that run short of blocks, seats or budget, or of none of them."""
    rng = random.Random(f"{version} {seed}" if kind == "plain" else f"{version} {kind} {seed}")
    newer = version == "0.33"
    block = rng.choice((4, 16))
    threshold = rng.choice((0, 0, 8, 40))
    settings: dict[str, Any] = {
        "policy": rng.choice(("fcfs", "fcfs", "priority")),
        "num_gpu_blocks": 1 + rng.choice((14, 24, 60, 200)),
        "block_size": block,
        "max_num_seqs": rng.choice((2, 4, 8, 32)),
        "max_num_batched_tokens": rng.choice((32, 64, 256)),
        "max_model_len": 1024,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": rng.random() < 0.6,
        "scheduler_reserve_full_isl": rng.random() < 0.7,
        "long_prefill_token_threshold": threshold,
        "async_scheduling": rng.random() < 0.5,
        "speculative": None,
    }
    if newer:
        settings |= {
            "long_prefill_token_threshold_adaptive": bool(threshold) and rng.random() < 0.4,
            "prefill_schedule_interval": rng.choice((1, 1, 1, 2, 3)),
            "watermark": rng.choice((0.0, 0.0, 0.1)),
        }
    longest, drafts = block * (settings["num_gpu_blocks"] - 1), 0
    if kind == "drafts":
        drafts = rng.choice((1, 2, 3, 5))
        method = rng.choice(("ngram", "eagle", "eagle"))
        settings["async_scheduling"] &= method == "eagle"  # ngram has no drafts before the last tokens are known
        settings["speculative"] = {"method": method, "num_speculative_tokens": drafts}
    elif kind == "adapters":
        settings["max_loras"] = rng.choice((1, 1, 2, 4))
    elif kind != "plain":
        settings["layers"] = _layers(rng)
    at, rows = 0.0, []
    for id in range(rng.choice((8, 24, 40))):
        at += rng.choice((0.0, 0.002, 0.05)) + id * 1e-7  # no two come at once: their ids would decide, as text
        output = min(rng.choice((1, 4, 20, 60)), longest // 3)
        prompt = max(1, min(rng.choice((1, 7, 40, 90, 150)), longest - output - block - 3 * drafts))
        prefix = [[rng.randrange(3) * 1000, rng.randrange(8)]] if rng.random() < 0.6 else []
        rows.append(
            {
                "id": id,
                "arrival_ns": at,
                "prompt": prompt,
                "output": output,
                "priority": rng.randrange(3),
                "prefix": prefix,
            }
        )
        if kind == "adapters":
            rows[-1]["adapter"] = rng.choice((0, 1, 1, 2, 3, 4, 5))
        if drafts:
            rows[-1] |= {key: [rng.randint(0, drafts) for _ in range(rng.randint(1, 5))] for key in ("accept", "draft")}
    if drafts and rng.random() < 0.3:  # some come to the model's end, where drafts have no position
        settings["max_model_len"] = max(row["prompt"] + row["output"] for row in rows)
    return {"settings": settings, "prefix_unit_tokens": rng.choice((4, 8, 16)), "requests": rows}


def _layers(rng: random.Random) -> list[list[int]]:
    """[bytes of a token, window] of each kind of layer."""
    layers = [[rng.choice((1, 2, 4)), window] for window in rng.sample((5, 16, 33, 64, 100), rng.choice((1, 1, 2)))]
    return [[rng.choice((1, 2)), 0], *layers] if rng.random() < 0.8 else layers[:1]


Made = Callable[[dict[str, Any], Script | None], ServingEngine]
"""An engine for a scenario, with who proposes drafts in it."""


def decided(scenario: dict[str, Any], made: Made) -> list[dict[str, Any]]:
    """The steps of a scenario under an engine, times in seconds."""
    clock, schedule = Clock(), Schedule()
    depth = 2 if scenario["settings"]["async_scheduling"] else 1
    executor: Executor = Predicted(COST, overlap_host=depth == 2)
    script = Script.of(scenario)
    if script is not None:
        executor = Accepting(executor, script.accept)
    engine = made(scenario, script)
    replica = Replica(clock, engine, executor, depth=depth, on_finish=lambda req: None, observer=schedule)
    for req in requests_of(scenario):
        assert engine.refusal(req) is None
        clock.call_at(req.arrival_s, lambda event, req=req: replica.submit(req), first=True)  # type: ignore[misc]
    clock.run()
    return schedule.steps


def ours(version: str) -> Made:
    """Our engine by the rules of a version."""
    rules = RULES[version]

    def made(scenario: dict[str, Any], script: Script | None) -> ServingEngine:
        settings = scenario["settings"]
        eagle = script is not None and settings["speculative"]["method"] == "eagle"
        engine = wire(
            policy_of(settings, rules),
            _allocator(settings),
            limits(settings),
            ahead=settings["async_scheduling"],
            proposer=script,
            lookahead_tokens=script.most if script is not None and eagle else 0,
            needs_last_hit=eagle,
            spans=False,
            rules=rules,
        )
        if slots := settings.get("max_loras", 0):
            engine.adapt(slots, slots)
        return engine

    return made


def _allocator(settings: dict[str, Any]) -> Allocator:
    if "layers" not in settings:
        return allocator_of(settings)
    facts = {key: settings.get(key, 0.0) for key in ("watermark",)}
    facts["reserve_full_prompt"] = settings["scheduler_reserve_full_isl"]
    if settings["enable_prefix_caching"]:
        return MixedPrefix(_pool(settings), keep_uncomputed=True, **facts)
    return MixedPaged(_pool(settings), **facts)


def _pool(settings: dict[str, Any]) -> KvPool:
    layers = tuple(KvLayers(*told) for told in settings.get("layers", ()))
    size = settings["block_size"]
    return KvPool(
        settings["num_gpu_blocks"] - 1,
        size,
        settings["max_model_len"],
        size * sum(layer.token_bytes for layer in layers),
        max_step_tokens=settings["max_num_batched_tokens"],
        layers=layers,
    )


def limits(settings: dict[str, Any]) -> Limits:
    return Limits(settings["max_num_seqs"], settings["max_num_batched_tokens"], settings["max_model_len"])


def theirs(process: SchedulerProcess) -> Made:
    """The same process serves one scenario after the other: `start` begins anew."""
    more = {"policy", "enable_prefix_caching", "scheduler_reserve_full_isl", "async_scheduling", "speculative"}
    more |= {"long_prefill_token_threshold", "long_prefill_token_threshold_adaptive", "prefill_schedule_interval"}
    more |= {"max_loras"}

    def made(scenario: dict[str, Any], script: Script | None) -> ServingEngine:
        settings = scenario["settings"]
        pool = _pool(settings)
        layout = in_groups(pool) if pool.layers else Layout(pool)
        own = {key: settings[key] for key in (*more, "watermark") if key in settings}
        if script is None:
            return VllmEngine(process, own, limits(settings), layout)
        return VllmDraftingEngine(process, own, limits(settings), layout, script)

    return made


def compared(seed: int, version: str, process: SchedulerProcess, kind: str = "plain") -> tuple[Comparison, int]:
    """(how they compare, steps)."""
    scenario = drawn(seed, version, kind)
    engine = decided(scenario, theirs(process))
    return compare(engine, decided(scenario, ours(version))), len(engine)
