"""`sim plan` over pools: the layouts that are looked at, the cheapest among them, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import api, scenario
from sim.cli.main import main
from sim.report.plan.page import render_plan
from sim.report.plan.sentences import answer as answer_of
from sim.results import metrics
from sim.study.plan import choose
from sim.study.plan.bounds import RateBound, saturation
from sim.study.plan.glance import Glance, Glimpse, glimpse
from sim.study.plan.layouts import BEYOND, PoolAtBest, at_best, layouts, together, with_sizes
from sim.study.plan.observation import Window, clauses_of
from sim.study.plan.plan import Ask
from sim.study.plan.refine import Candidate, FleetQuestion, Refinement
from sim.study.plan.replication import Replication, source
from traces.schema import InputError

APART = {"pools.prefill.role": "prefill", "pools.decode.role": "decode", "transfer.gb_per_s": 50.0}
SLO = "ttft_p90=0.3,tpot_p90=0.03"
FEW_SEATS = {"engine.max_num_seqs": 4, "front_end.name": "off"}
"""So that a capacity is small, and quickly simulated."""


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> str:
    """400 requests of uneven lengths; their times are not used."""
    rng = np.random.default_rng(0)
    prompts, outputs = rng.integers(200, 4000, 400), rng.integers(1, 60, 400)
    rows = [f"{at},{one},{other}" for at, (one, other) in enumerate(zip(prompts, outputs, strict=True))]
    path = tmp_path_factory.mktemp("traces") / "long.csv"
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n")
    return str(path)


def pool(name: str, role: str, gpus: int, usd: float, rate: float) -> PoolAtBest:
    return PoolAtBest(name, role, gpus, usd, "", RateBound(rate, "compute", 1.0, 0.01, 1.0), 0.1)


markets = st.lists(
    st.tuples(st.sampled_from([1, 2]), st.floats(0.5, 9.0), st.floats(3.0, 60.0)), min_size=2, max_size=3
)


@given(markets, st.booleans(), st.integers(2, 24))
def test_the_layouts_are_all_that_may_do_the_cheapest_first(
    market: list[tuple[int, float, float]], apart: bool, most_gpus: int
) -> None:
    roles = ["prefill", "decode", "decode"] if apart else ["both"] * 3
    pools = [pool(f"p{at}", roles[at], *each) for at, each in enumerate(market)]
    found = layouts(pools, 100.0, most_gpus)
    assert len(set(found)) == len(found)
    costs = [sum(usd * size for (_, usd, _), size in zip(market, sizes, strict=True)) for sizes in found]
    assert costs == sorted(costs)

    def does(sizes: Sequence[int]) -> bool:
        rates: dict[str, float] = {}
        for (_, _, rate), size, role in zip(market, sizes, roles, strict=False):
            rates[role] = rates.get(role, 0.0) + rate * size
        return min(rates.values()) >= 100.0 * (1 - 1e-9)

    tops = [math.ceil(BEYOND * math.ceil(100.0 / rate * (1 - 1e-12))) + 1 for _, _, rate in market]
    wanted = {
        sizes
        for sizes in product(*(range(1, top + 1) for top in tops))
        if sum(gpus * size for (gpus, _, _), size in zip(market, sizes, strict=True)) <= most_gpus and does(sizes)
    }
    assert set(found) == wanted


@settings(max_examples=60)
@given(
    prices=st.tuples(st.floats(0.5, 9.0), st.floats(0.5, 9.0)),
    able=st.tuples(st.floats(8.0, 60.0), st.floats(8.0, 60.0)),
    slack=st.tuples(st.floats(1.0, 1.6), st.floats(1.0, 1.6)),
)
def test_the_cheapest_layout_is_found(
    prices: tuple[float, float], able: tuple[float, float], slack: tuple[float, float]
) -> None:
    """Against every layout, where what each takes is known and never more than its bound."""
    p, d = (rate * room for rate, room in zip(able, slack, strict=True))
    pools = [pool("p", "prefill", 1, prices[0], p), pool("d", "decode", 1, prices[1], d)]
    offered = layouts(pools, 100.0, 64)
    offers = [
        Candidate(str(sizes), prices[0] * sizes[0] + prices[1] * sizes[1], 1, 1, "run", sizes) for sizes in offered
    ]
    asked = set()

    def simulate(questions: Sequence[FleetQuestion]) -> list[Glance]:
        asked.update(question.name for question in questions)
        return [Glance("", (math.log(100.0 * question.load / takes(question.name)), -0.5)) for question in questions]

    def takes(name: str) -> float:
        sizes = next(sizes for sizes in offered if str(sizes) == name)
        return min(rate * size for rate, size in zip(able, sizes, strict=True))

    search = Refinement(offers, simulate)
    search.run()
    good = [offer.cost for offer in offers if takes(offer.name) >= 100.0]
    if not good:
        assert search.best is None
        return
    assert search.best is not None
    assert search.best.candidate.cost == min(good)
    missed = [offer for offer in offers if offer.name in asked and takes(offer.name) < 100.0]
    for place, one in enumerate(missed):
        assert not any(other.within(one) for other in missed[place + 1 :]), "asked though a larger one had missed"


def missed_beyond(plan: scenario.Scenario, bound: RateBound) -> bool:
    """Is the SLO missed at a load ten percent above a bound, in a run long enough to tell?"""
    asked = clauses_of(metrics.parse_slo(SLO))
    rate = 1.1 * bound.rate_per_s
    requests = int(min(4000, max(600, 12 * bound.lifetime_s * rate)))
    return glimpse(
        Glimpse(Replication(plan, rate, 0, requests, asked), Window(requests // 4, requests // 10), True)
    ).missed


@pytest.mark.parametrize(
    "more",
    [{"pp": 2}, {"dp": 2}, {"model": "qwen3-30b-a3b", "dp": 2, "ep": 2}, {"model": "qwen3-30b-a3b", "tp": 2, "pp": 2}],
    ids=str,
)
def test_beyond_its_bound_a_replica_of_ranks_or_stages_misses_the_slo(trace: str, more: dict[str, Any]) -> None:
    plan = scenario.build({}, {"trace": trace, "slo": SLO, **more})
    bound = saturation(plan, source(plan.workload))
    assert bound.rate_per_s > 0
    assert missed_beyond(plan, bound)


@pytest.mark.parametrize("more", [APART, {"pools.new.gpu": "h100", "pools.old.gpu": "a100-80"}])
def test_beyond_its_bound_a_layout_misses_the_slo(trace: str, more: dict[str, Any]) -> None:
    plan = scenario.build({}, {"trace": trace, "slo": SLO, **more})
    asked = clauses_of(metrics.parse_slo(SLO))
    pools = at_best(plan, source(plan.workload), asked)
    sizes = (1, 2)
    assert missed_beyond(with_sizes(plan, sizes), together(pools, sizes))


@pytest.fixture(scope="module")
def apart(trace: str) -> dict[str, Any]:
    return api.plan(trace=trace, slo=SLO, rate=60.0, requests=200, workers=1, **APART, **FEW_SEATS)


def test_the_numbers_of_prefill_and_decode_replicas_are_found(apart: dict[str, Any], trace: str) -> None:
    best = apart["best"]
    pools = best["replicas_by_pool"]
    assert best["confirmed"]
    assert best["name"] == f"prefill {pools['prefill']}, decode {pools['decode']}"
    assert best["replicas"] == best["gpu_count"] == sum(pools.values()) > 2
    assert best["gpus"]["low"] <= best["gpu_count"] <= best["gpus"]["high"]
    assert best["capacity_per_replica"] * best["replicas"] >= 60.0
    assert apart["capacity"]["replicas"] == best["replicas"]
    plan = scenario.build({}, {"trace": trace, "slo": SLO, **APART, **FEW_SEATS})
    asked = clauses_of(metrics.parse_slo(SLO))
    for name in [name for name, count in pools.items() if count > 1]:
        fewer = with_sizes(plan, [count - (other == name) for other, count in pools.items()])
        point = Replication(fewer, 60.0, 0, 800, asked)
        assert glimpse(Glimpse(point, Window(200, 100), True)).missed, f"one {name} less would have done"


def test_it_is_told_by_its_pools(apart: dict[str, Any]) -> None:
    pools = apart["best"]["replicas_by_pool"]
    assert answer_of(apart).startswith(f"prefill {pools['prefill']}, decode {pools['decode']}: ")
    assert "were not simulated" in " ".join(apart["notes"])
    page = render_plan(apart)
    assert f"prefill {pools['prefill']}, decode {pools['decode']}" in page


def test_the_highest_rate_of_given_pools(trace: str) -> None:
    given = {"pools.new.gpu": "h100", "pools.old.gpu": "a100-80", "pools.old.count": 2}
    answer = api.plan(trace=trace, slo=SLO, requests=200, precision=0.4, workers=1, **given, **FEW_SEATS)
    best = answer["best"]
    assert (best["replicas"], best["gpu_count"], best["gpu"]) == (3, 3, "mixed")
    assert best["replicas_by_pool"] == {"new": 1, "old": 2}
    assert "3 GPUs of several kinds (new 1, old 2)" in answer_of(answer)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({**APART, "pools.decode.count": 2}, "leave out pools.decode.count"),
        ({**APART, "transfer.min_prompt_tokens": 5000}, "pools.prefill would have nothing to do"),
        ({"pools.a.autoscale.metric": "rate", "pools.a.autoscale.target": 9.0}, "and pools.a.autoscale.metric changes"),
        ({"pools.a.serves": "small"}, "a plan is of one model, and the pools serve several"),
    ],
)
def test_mistakes_are_one_sentence(trace: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        api.plan(trace=trace, slo=SLO, rate=60.0, requests=300, workers=1, **more)


def test_too_few_gpus_say_what_each_pool_needs(
    trace: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = [word for key, value in APART.items() for word in ("--set", f"{key}={value}")]
    asked = ["--trace", trace, "--slo", SLO, "--rate", "3000", "--requests", "300", "--max-gpus", "3", "--quiet"]
    monkeypatch.setattr("sys.argv", ["sim", "plan", *asked, *told])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "no layout of at most 3 GPUs takes 3000 requests/s" in capsys.readouterr().err


def test_how_many_a_scenario_file_has_is_found_anew(trace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[scenario.Scenario] = []

    def cheapest(candidates: dict[str, scenario.Scenario], *_: Any, **__: Any) -> dict[str, Any]:
        asked.extend(candidates.values())
        return {"best": None, "notes": []}

    monkeypatch.setattr(choose, "cheapest", cheapest)
    base = {"pools": {"prefill": {"role": "prefill", "count": 2}, "decode": {"role": "decode", "count": 6}}}
    told = {"trace": trace, "slo": SLO, "rate": 30.0, "transfer.gb_per_s": 50.0}
    document = choose.answered(base, told, Ask())
    assert [pool.count for pool in asked[0].pools.values()] == [1, 1]
    assert base["pools"]["decode"]["count"] == 6
    assert document["notes"] == [
        "How many replicas there are is found anew, whatever the scenario says of pools.prefill.count, "
        "pools.decode.count."
    ]


def test_a_sweep_varies_how_many_replicas_a_pool_has(trace: str) -> None:
    table = api.sweep(
        trace=trace, limit=40, rate=20.0, workers=1, **{"pools.new.gpu": "h100", "pools.new.count": [1, 2]}
    )
    assert table["status"].tolist() == ["ok", "ok"]
    assert table["bill.gpus"].tolist() == [1, 2]
