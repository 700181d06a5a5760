"""No simulated capacity exceeds its bound; bounds move as they must, and are made in moments."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import traces
from sim import scenario
from sim.results import metrics
from sim.serving.assemble import assemble
from sim.study.plan.bounds import bound_of, saturation
from sim.study.plan.glance import Glimpse, glimpse
from sim.study.plan.observation import Window, clauses_of
from sim.study.plan.replication import Replication, source


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = np.random.default_rng(0)
    prompts, outputs = rng.integers(50, 1500, 300), rng.integers(1, 60, 300)
    rows = [f"{at},{one},{other}" for at, (one, other) in enumerate(zip(prompts, outputs, strict=True))]
    path = tmp_path_factory.mktemp("traces") / "uneven.csv"
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n")
    return str(path)


@settings(max_examples=25)
@given(
    gpu=st.sampled_from(["h100", "l40s", "a100-80", "mi300x"]),
    slo=st.sampled_from(
        ["tpot_p90=0.012", "tpot_p99=0.05", "ttft_p90=30", "tpot_mean=0.015", "ttft_p50=0.3,tpot_p50=0.02", "e2e_p90=9"]
    ),
    seats=st.sampled_from([4, 32, 256]),
    budget=st.sampled_from([256, 2048, 8192]),
    blocks=st.sampled_from([0, 200, 2000]),
    policy=st.sampled_from(["chunked", "continuous", "sjf"]),
    asynchronous=st.booleans(),
    graphs=st.booleans(),
)  # fmt: skip
def test_beyond_its_bound_a_replica_misses_the_slo(
    uneven: str, gpu: str, slo: str, seats: int, budget: int, blocks: int, policy: str, asynchronous: bool, graphs: bool
) -> None:
    """Ten percent above, in a run long enough to tell, the SLO is missed or the queue grows."""
    plan = scenario.build(
        {},
        {
            "trace": uneven, "gpu": gpu, "slo": slo, "engine.max_num_seqs": seats, "kv.blocks": blocks,
            "engine.max_num_batched_tokens": budget, "policy": policy, "engine.async_scheduling": asynchronous,
            "engine.cuda_graphs": graphs,
        },
    )  # fmt: skip
    bound = saturation(plan, source(plan.workload))
    rate = 1.1 * bound.rate_per_s or 0.05
    asked = clauses_of(metrics.parse_slo(slo))
    requests = int(min(4000, max(400, 12 * bound.lifetime_s * rate)))
    cut = requests // 4
    seen = glimpse(Glimpse(Replication(plan, rate, 0, requests, asked), Window(cut, cut // 4), whole=False))
    assert seen.missed, (bound, rate, seen)


def of(**more: object) -> scenario.Scenario:
    return scenario.build({}, {"trace": "chatbot_arena.jsonl", "limit": 2000, **more})


def test_bounds_move_as_they_must() -> None:
    trace = traces.read("chatbot_arena.jsonl", limit=2000)
    plan = scenario.build({}, {"trace": "chatbot_arena.jsonl", "limit": 2000})

    def at(slo: str, **more: object) -> float:
        return saturation(of(**more), trace, slo).rate_per_s

    free = saturation(plan, trace)
    assert free.rate_per_s > 0
    tight = [at(f"tpot_p99={limit_s}") for limit_s in (0.007, 0.01, 0.02, 0.05)]
    assert tight == sorted(tight)
    assert tight[0] < 0.8 * tight[-1] <= free.rate_per_s * (1 + 1e-9)
    assert at("ttft_p99=9", **{"engine.max_num_seqs": 32}) < at("ttft_p99=9", **{"engine.max_num_seqs": 128})
    assert saturation(of(**{"engine.max_num_seqs": 32}), trace).binds == "seats"
    assert saturation(of(**{"kv.blocks": 300}), trace).binds == "KV memory"
    assert saturation(plan, trace, "tpot_p99=0.01").binds == "tpot_p99"
    parts, asked = assemble(plan), clauses_of(metrics.parse_slo("tpot_p99=0.02"))
    slow, plain, fast = (bound_of(parts, trace, asked, times).rate_per_s for times in (1.2, 1.0, 1 / 1.2))
    assert slow < plain < fast


def test_what_no_load_meets_is_known_without_a_simulation() -> None:
    trace = traces.read("chatbot_arena.jsonl", limit=2000)
    plan = scenario.build({}, {"trace": "chatbot_arena.jsonl", "limit": 2000})
    for slo in ("tpot_p99=0.001", "ttft_p99=0.0001"):
        bound = saturation(plan, trace, slo)
        assert bound.rate_per_s == 0
        assert bound.replicas(1.0) is None
        least_s, limit_s = bound.floors[bound.binds]
        assert least_s > limit_s
    assert not saturation(plan, trace, "tpot_p99=0.01,ttft_p99=1").floors


def test_a_bound_takes_moments() -> None:
    """Of a candidate a few hundred prices: ten seconds are enough for 200 candidates."""
    trace = traces.read("chatbot_arena.jsonl")
    plan = scenario.build({}, {"trace": "chatbot_arena.jsonl"})
    began_s = time.process_time()
    for _ in range(5):
        saturation(plan, trace, "ttft_p99=0.5,tpot_p99=0.05")
    assert time.process_time() - began_s < 5 * 0.5
