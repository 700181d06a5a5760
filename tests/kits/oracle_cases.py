"""Random scenarios in the form of recorded schedules, decided by an installed engine's scheduler and by ours."""

from __future__ import annotations

import random
from typing import Any

from sim.cost.step import FixedCost
from sim.engine.batch import Limits
from sim.engine.memory import KvPool
from sim.engine.protocol import ServingEngine
from sim.engine.wiring import wire
from sim.engines.pipe import SchedulerProcess
from sim.engines.vllm import VllmEngine
from sim.serving.clock import Clock
from sim.serving.executor import Predicted
from sim.serving.replica import Replica
from sim.validate.drift import Schedule
from sim.validate.schedules.grades import Comparison, compare
from sim.validate.schedules.replay import RULES, allocator_of, policy_of, requests_of

COST = FixedCost(5e-3, 2e-5, 1e-9)


def drawn(seed: int, version: str) -> dict[str, Any]:
    """A scenario of two dozen requests that run short of blocks, seats or budget, or of none of them."""
    rng = random.Random(f"{version} {seed}")
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
    longest = block * (settings["num_gpu_blocks"] - 1)
    at, rows = 0.0, []
    for id in range(rng.choice((8, 24, 40))):
        at += rng.choice((0.0, 0.002, 0.05)) + id * 1e-7  # no two come at once: their ids would decide, as text
        output = min(rng.choice((1, 4, 20, 60)), longest // 3)
        prompt = max(1, min(rng.choice((1, 7, 40, 90, 150)), longest - output - block))
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
    return {"settings": settings, "prefix_unit_tokens": rng.choice((4, 8, 16)), "requests": rows}


def decided(scenario: dict[str, Any], engine: ServingEngine) -> list[dict[str, Any]]:
    """The steps of a scenario under an engine, times in seconds."""
    clock, schedule = Clock(), Schedule()
    depth = 2 if scenario["settings"]["async_scheduling"] else 1
    executor = Predicted(COST, overlap_host=depth == 2)
    replica = Replica(clock, engine, executor, depth=depth, on_finish=lambda req: None, observer=schedule)
    for req in requests_of(scenario):
        clock.call_at(req.arrival_s, lambda event, req=req: replica.submit(req), first=True)  # type: ignore[misc]
    clock.run()
    return schedule.steps


def ours(scenario: dict[str, Any], version: str) -> ServingEngine:
    settings, rules = scenario["settings"], RULES[version]
    return wire(
        policy_of(settings, rules), allocator_of(settings), limits(settings), ahead=settings["async_scheduling"],
        spans=False, rules=rules,
    )  # fmt: skip


def limits(settings: dict[str, Any]) -> Limits:
    return Limits(settings["max_num_seqs"], settings["max_num_batched_tokens"], settings["max_model_len"])


def theirs(scenario: dict[str, Any], process: SchedulerProcess) -> ServingEngine:
    """The same process serves one scenario after the other: `start` begins anew."""
    settings = scenario["settings"]
    pool = KvPool(settings["num_gpu_blocks"] - 1, settings["block_size"], settings["max_model_len"])
    more = {"policy", "enable_prefix_caching", "scheduler_reserve_full_isl", "async_scheduling"}
    more |= {"long_prefill_token_threshold", "long_prefill_token_threshold_adaptive", "prefill_schedule_interval"}
    own = {key: settings[key] for key in (*more, "watermark") if key in settings}
    return VllmEngine(process, own, limits(settings), pool)


def compared(seed: int, version: str, process: SchedulerProcess) -> tuple[Comparison, int]:
    """(how they compare, steps)."""
    scenario = drawn(seed, version)
    engine = decided(scenario, theirs(scenario, process))
    return compare(engine, decided(scenario, ours(scenario, version))), len(engine)
