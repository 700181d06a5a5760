"""KV below the GPUs: what is evicted is found again, loads share the links that they take, and nothing is lost."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_kit import refused, sim
from engine_kit import Run, Setup, run, workload
from hypothesis import given
from hypothesis import strategies as st
from law_cases import laws

from sim import api
from sim.cost.fixed import FixedCost
from sim.engine.batch import Batch, Limits
from sim.engine.flight import ObservedReplica, Observer
from sim.engine.memory import KvPool
from sim.engine.request import Request, SharedPrefix
from sim.engine.tiers import Tier
from sim.scenario import build, dump
from sim.serving.tiers import KvLoads, TierKind
from traces.schema import InputError

COST = FixedCost(base_s=0.001, per_token_s=0.0001)
SIZE = 4
Row = tuple[float, int, int, int, int]
"""(seconds since the last, conversation, blocks of it that the prompt begins with, tokens behind them, output)."""
ROWS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0013, 0.004, 0.05]),
        st.integers(0, 9),
        st.sampled_from([0, 4, 9, 10]),
        st.integers(1, 9),
        st.integers(1, 9),
    ),
    min_size=1,
    max_size=24,
)
SMALL = Setup(allocator="prefix", pool=KvPool(48, SIZE, 64), limits=Limits(3, 64), cost=COST)
"""Three requests of the longest fit, and nothing beside them."""
TIGHT = replace(SMALL, pool=KvPool(17, SIZE, 64))
COLUMNS = ("first_scheduled_s", "first_token_s", "finish_s", "preemptions", "prefix_hit_tokens")


def kind(blocks: int, tokens_per_s: float, latency_s: float = 0.0, *, shared: bool = False) -> TierKind:
    """A tier whose bytes are tokens."""
    return TierKind("store" if shared else "host", blocks, SIZE, tokens_per_s, latency_s, shared)


KINDS = st.lists(
    st.builds(
        kind,
        st.sampled_from([2, 9, 1000]),
        st.sampled_from([math.inf, 5_000.0, 300.0]),
        st.sampled_from([0.0, 0.002]),
    ),
    min_size=1,
    max_size=2,
)
STORES = st.one_of(st.none(), st.builds(kind, st.just(40), st.sampled_from([math.inf, 900.0]), shared=st.just(True)))


class Below(Observer):
    """Lays tiers over each engine before it plans, and moves what is asked of them."""

    def __init__(self, kinds: Sequence[TierKind], replicas: int = 1) -> None:
        self._made = kinds, replicas
        self.kinds = kinds
        self.loads: KvLoads | None = None

    def before_plan(self, replica: ObservedReplica) -> None:
        if self.loads is None:
            kinds, replicas = self._made
            self.loads = KvLoads(replica.clock, kinds, range(replicas), SIZE)
        if replica.engine.tiers is None:
            self.loads.below(replica.engine)

    def planned(self, replica: ObservedReplica, batch: Batch) -> None:
        self.loads.planned(replica, batch)


def ids(conversation: int, blocks: int) -> list[int]:
    return [1 + conversation * 1000 + at for at in range(blocks)]


def served(setup: Setup, rows: Sequence[Row], below: Below | None = None, **columns: Any) -> Run:
    """The run of these rows; every request is answered, every block given back, and nobody waits for KV."""
    times_s = np.cumsum([row[0] for row in rows])
    asked = workload(
        [(at, SIZE * row[2] + row[3], row[4]) for at, row in zip(times_s, rows, strict=True)],
        prefix_ids=[ids(row[1], row[2]) for row in rows],
        prefix_unit_tokens=SIZE,
        **columns,
    )
    done = run(setup, asked, [] if below is None else [below])
    for engine in done.engines:
        assert engine.allocator.free_blocks == setup.pool.blocks
        assert not engine.roster.placed
        assert not engine.roster.landed
        assert engine.usage().used == 0
    return done


def same(done: Run, other: Run) -> None:
    for name in COLUMNS:
        assert done.column(name).tolist() == other.column(name).tolist(), name


# ---- laws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2])
def test_a_tier_that_takes_no_time_is_one_big_cache(depth: int) -> None:
    """The same hits at the same times, to the bit, in whatever order tiers and their sizes share it out."""

    @laws
    @given(ROWS, st.integers(1, 40))
    def hold(rows: list[Row], first: int) -> None:
        small = replace(SMALL, depth=depth)
        big = served(replace(small, pool=KvPool(5000, SIZE, 64)), rows)
        one = Below([kind(5000, math.inf)])
        same(served(small, rows, one), big)
        same(served(small, rows, Below([kind(first, math.inf), kind(5000, math.inf)])), big)

    hold()


def test_the_law_of_the_big_cache_speaks_of_loads() -> None:
    """The small cache alone hits less, so that the law is not empty."""
    rows: list[Row] = [(0.05, at % 8, 9, 2, 3) for at in range(24)]
    below = Below([kind(5000, math.inf)])
    assert not served(SMALL, rows).column("prefix_hit_tokens").any()
    assert served(SMALL, rows, below).column("prefix_hit_tokens").tolist() == [0] * 8 + [36] * 16
    assert below.loads.loads().frame()["tokens"].sum() == 16 * 36


@laws
@given(ROWS, KINDS)
def test_what_was_computed_is_found_for_ever_below_a_tier_without_end(rows: list[Row], kinds: list[TierKind]) -> None:
    done = served(TIGHT, rows, Below([*kinds, kind(5000, 2_000.0)]))
    for _, conversation, blocks, behind, _ in rows:
        prompt = SIZE * blocks + behind
        req = Request(99, 0.0, prompt, 1, 0, SharedPrefix(ids(conversation, blocks), SIZE))
        hit = done.engine.allocator.match(req)
        assert hit + done.engine.tiers.tokens(done.engine.tiers.find(req, hit)) >= SIZE * blocks


@pytest.mark.parametrize("policy", ["chunked", "continuous", "sjf", "priority"])
@pytest.mark.parametrize("depth", [1, 2])
def test_laws_hold_over_tiers_policies_and_sizes(policy: str, depth: int) -> None:
    @laws
    @given(ROWS, KINDS, STORES, st.integers(1, 2), st.booleans(), st.booleans())
    def hold(
        rows: list[Row], own: list[TierKind], store: TierKind | None, replicas: int, tight: bool, reserve: bool
    ) -> None:
        kinds = own if store is None else [*own, store]
        setup = replace(
            TIGHT if tight else SMALL,
            policy=policy,
            depth=depth,
            replicas=replicas,
            allocator_parameters={"reserve_full_prompt": reserve},
        )
        shared = store is not None and replicas > 1
        below = Below(kinds, replicas)
        done = served(replace(setup, spans=not shared), rows, below)
        loads = below.loads.loads().frame()
        for at, kind in enumerate(kinds):
            mine = loads[loads["tier"] == at]
            least_s = kind.latency_s + mine["tokens"] / kind.bytes_per_s
            assert (mine["load_s"] >= least_s * (1 - 1e-9) - 1e-12).all()
        if not done.column("preemptions").any():
            by_request = loads.groupby("request")["tokens"].sum()
            assert (done.column("prefix_hit_tokens")[by_request.index] >= by_request).all()
        again = served(replace(setup, spans=False), rows, Below(kinds, replicas))
        same(done, again)

    hold()


@laws
@given(st.lists(st.lists(st.integers(0, 12), max_size=6, unique=True), max_size=12), st.integers(1, 8))
def test_a_tier_keeps_the_newest(asked: list[list[int]], blocks: int) -> None:
    """Beside a plain list: put, use and what leaves."""
    tier, plain = Tier(blocks, instant=False), []
    for number, names in enumerate(asked):
        if number % 3 == 2:
            there = [name for name in names if name in tier]
            tier.use(there)
            plain = [name for name in plain if name not in there] + there[::-1]
        else:
            gone, left = tier.put(names), []
            for name in names:
                plain = [other for other in plain if other != name] + [name]
                if len(plain) > blocks:
                    left.append(plain.pop(0))
            assert gone == left
        assert [name for name in range(13) if name in tier] == sorted(plain)
        assert len(tier) == len(plain) <= blocks


# ---- by hand --------------------------------------------------------------------------------------------------------

TEN = replace(SMALL, pool=KvPool(10, SIZE, 40))
FLOOD: Row = (0.5, 9, 9, 3, 1)
"""A prompt of 39 tokens takes all ten blocks, so that all that was there goes down."""
A: Row = (0.0, 1, 4, 1, 1)
B: Row = (0.0, 2, 4, 1, 1)
SOON_A: Row = (0.5, 1, 4, 1, 1)
STEP_S = 0.001 + 0.0001
"""Of one token."""


def test_a_prefix_comes_back_over_its_link() -> None:
    """16 tokens at 1,000 a second and 0.002 s of latency: the 17th is computed 0.018 s after the asking."""
    below = Below([kind(100, 1_000.0, 0.002)])
    done = served(TEN, [A, FLOOD, SOON_A], below)
    assert done.column("prefix_hit_tokens").tolist() == [0, 0, 16]
    assert done.requests[2].first_scheduled_s == pytest.approx(1.018)
    assert done.requests[2].first_token_s == pytest.approx(1.018 + STEP_S)
    assert below.loads.loads().frame().to_dict("list") == {
        "request": [2], "tier": [0], "tokens": [16], "load_s": [pytest.approx(0.018)],
    }  # fmt: skip
    facts = below.loads.facts(COST, 64)
    assert facts["all"]["saved_s"] == pytest.approx(16 * 0.0001)
    assert facts["host"]["bytes"] == facts["host"]["hit_tokens"] == 16
    # A's four, and four of the flood's nine when A comes back into five blocks, of which one had no name.
    assert facts["host"]["peak_used"] == 8 / 100


def test_what_is_loaded_costs_beside_what_it_saves_step_by_step() -> None:
    """Saved seconds are priced in steps of the most tokens that one may have: without a load two, with it one."""
    below = Below([kind(100, 1_000.0)])
    served(TEN, [A, FLOOD, SOON_A], below)
    assert below.loads.facts(COST, 16)["all"]["saved_s"] == pytest.approx(0.001 + 16 * 0.0001)


def test_loads_share_their_link_and_links_of_their_own_are_their_own() -> None:
    """Two loads of 16 tokens at 1,000 a second end after 0.032 s over one link, and after 0.016 s over two."""
    again = [(0.5, *A[1:]), B]
    one = served(TEN, [A, B, FLOOD, *again], Below([kind(100, 1_000.0)]))
    assert one.column("first_scheduled_s")[3:] == pytest.approx([1.032, 1.032])
    twice: list[Row] = [A, B, FLOOD, (0.0, *FLOOD[1:]), *again]
    two = replace(TEN, replicas=2)
    own = served(two, twice, Below([kind(100, 1_000.0)], 2))
    assert own.column("first_scheduled_s")[4:] == pytest.approx([1.016, 1.016])
    store = served(replace(two, spans=False), twice, Below([kind(100, 1_000.0, shared=True)], 2))
    assert store.column("first_scheduled_s")[4:] == pytest.approx([1.032, 1.032])


def test_a_store_finds_what_another_replica_evicted() -> None:
    two = replace(TEN, replicas=2, spans=False)
    rows: list[Row] = [A, B, FLOOD, (0.0, *FLOOD[1:]), (0.5, *B[1:]), A]
    assert served(two, rows, Below([kind(100, 1_000.0)], 2)).column("prefix_hit_tokens").tolist()[4:] == [0, 0]
    shared = served(two, rows, Below([kind(100, 1_000.0, shared=True)], 2))
    assert shared.column("prefix_hit_tokens").tolist()[4:] == [16, 16]
    assert shared.replica_of[4] == 0 != shared.replica_of[1]


def test_blocks_are_held_while_a_load_is_under_way_and_others_go_on() -> None:
    """A holds five of ten blocks until 1.016 s: a prompt of two is served beside it, one of six waits."""
    rows: list[Row] = [A, FLOOD, SOON_A, (0.001, 5, 0, 5, 1), (0.0, 6, 0, 22, 1)]
    done = served(TEN, rows, Below([kind(100, 1_000.0)]))
    assert done.column("first_scheduled_s")[2:4] == pytest.approx([1.016, 1.001])
    assert done.requests[4].first_scheduled_s == pytest.approx(1.016 + STEP_S)


def test_nobody_finds_what_is_not_there_yet() -> None:
    """Two of one prefix at once: each loads it, as in vLLM, and neither is served before its KV is there."""
    below = Below([kind(100, 1_000.0)])
    done = served(TEN, [A, FLOOD, SOON_A, A], below)
    assert below.loads.facts(COST, 64)["all"]["load_s"] == pytest.approx(0.064)
    assert below.loads.loads().frame()["tokens"].tolist() == [16, 16]
    assert done.column("first_scheduled_s")[2:] == pytest.approx([1.032, 1.032])


def test_what_a_tier_has_no_room_for_falls_to_the_next_and_comes_from_there() -> None:
    """The host keeps the four blocks evicted last, which are the first ones of the prefix; the disk has the others."""
    rows: list[Row] = [(0.0, 1, 8, 1, 1), FLOOD, (0.5, 1, 8, 1, 1)]
    below = Below([kind(4, 1_000.0), replace(kind(100, 100.0), name="disk")])
    done = served(TEN, rows, below)
    loads = below.loads.loads().frame()
    assert loads[["tier", "tokens"]].to_numpy().tolist() == [[0, 16], [1, 16]]
    assert done.requests[2].first_scheduled_s == pytest.approx(1.0 + 16 / 100)


def test_of_two_tiers_that_have_a_block_the_faster_gives_it() -> None:
    """Two floods push A to the disk; loaded from there and evicted again, it is in the host too."""
    flood: Row = (0.5, 8, 9, 3, 1)
    below = Below([kind(4, 1_000.0), replace(kind(100, 1_000.0), name="disk")])
    served(TEN, [A, FLOOD, flood, SOON_A, FLOOD, SOON_A], below)
    loads = below.loads.loads().frame()
    assert loads[loads["request"] == 3][["tier", "tokens"]].to_numpy().tolist() == [[1, 16]]
    assert loads[loads["request"] == 5][["tier", "tokens"]].to_numpy().tolist() == [[0, 16]]


def test_who_holds_loaded_kv_goes_on_where_nobody_else_can() -> None:
    """By hand: A and B hold all ten blocks, and the shortest job, which its policy asks first, needs two."""
    rows: list[Row] = [A, B, FLOOD, SOON_A, B, (0.001, 5, 0, 5, 1)]
    done = served(replace(TEN, policy="sjf"), rows, Below([kind(100, 1_000.0)]))
    assert done.column("first_scheduled_s")[3:] == pytest.approx([1.032, 1.032, 1.032 + STEP_S + 0.0001])


@laws
@given(ROWS, KINDS, st.lists(st.integers(1, 3), min_size=24, max_size=24))
def test_samples_share_a_load(rows: list[Row], kinds: list[TierKind], samples: list[int]) -> None:
    """Several answers to a prompt cost the loads of one, with spans and without."""
    asked = samples[: len(rows)]
    below = Below(kinds)
    done = served(SMALL, rows, below, samples=asked)
    same(served(replace(SMALL, spans=False), rows, Below(kinds), samples=asked), done)
    loads = below.loads.loads().frame()
    if not done.column("preemptions").any() and len(loads):
        longest = loads.groupby("request")["tokens"].sum()
        assert all(longest[at] <= SIZE * rows[at][2] for at in longest.index)


def test_samples_of_a_loaded_prompt_by_hand() -> None:
    below = Below([kind(100, 1_000.0)])
    done = served(TEN, [A, FLOOD, SOON_A], below, samples=[1, 1, 2])
    assert below.loads.loads().frame()["tokens"].tolist() == [16]
    assert done.requests[-1].first_scheduled_s == pytest.approx(1.016)


# ---- scenarios ------------------------------------------------------------------------------------------------------


@pytest.fixture
def turns(tmp_path: Path) -> dict[str, Any]:
    """Twelve conversations in turn, of four blocks more each time, for a cache that holds two."""
    path, rows = tmp_path / "turns.jsonl", []
    for at in range(60):
        blocks = [100 * (at % 12) + number for number in range(4 * (1 + at // 12))]
        rows.append({"timestamp": 150 * at, "input_length": 64 * len(blocks), "output_length": 4, "hash_ids": blocks})
    path.write_text("\n".join(map(json.dumps, rows)))
    return {
        "trace": str(path),
        "workload.block_tokens": 64,
        "kv.blocks": 200,
        "engine.max_num_seqs": 2,
        "engine.max_model_len": 1536,
    }


BELOW = {"tiers.host_gib": 0.5, "tiers.host_gb_per_s": 50.0}
STORE = {"tiers.store_gib": 4.0, "tiers.store_gb_per_s": 12.0, "tiers.store_latency_s": 0.001}


def test_a_run_tells_its_tiers(turns: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = api.run(**turns)
    run = api.run(**turns, **BELOW, **STORE)
    assert "tiers" not in alone.summary["kv"]
    assert not {"host_hit_tokens", "store_hit_tokens"} & set(alone.requests)
    tiers = run.summary["kv"]["tiers"]
    loaded = run.requests[["host_hit_tokens", "store_hit_tokens"]].sum()
    assert tiers["host"]["hit_tokens"] == loaded["host_hit_tokens"]
    assert tiers["store"]["hit_tokens"] == loaded["store_hit_tokens"] > 0
    hits = run.requests["prefix_hit_tokens"].sum()
    assert tiers["all"]["hit_tokens"] == loaded.sum()
    assert 0.9 * hits < loaded.sum() <= hits
    assert alone.summary["kv"]["prefix_hit_rate"] < 0.1
    assert run.summary["kv"]["prefix_hit_rate"] > 0.6
    token_bytes = 2 * 32 * 8 * 128 * 2
    assert tiers["host"]["capacity_tokens"] == int(0.5 * 2**30 / token_bytes / 16) * 16
    assert tiers["store"]["bytes"] == tiers["store"]["hit_tokens"] * token_bytes
    least_s = 0.001 + run.requests["store_hit_tokens"].max() * token_bytes / 12e9
    assert tiers["store"]["load_s"]["max"] >= least_s * (1 - 1e-9)
    again = build(tomllib.loads(dump(run.scenario)))
    assert api.simulate(again).requests.equals(run.requests)
    out = tmp_path / "out"
    settings = [word for key, value in {**turns, **BELOW, **STORE}.items() for word in ("--set", f"{key}={value}")]
    code, shown, _ = sim(capsys, "run", *settings, "--out", out)
    assert code == 0
    assert "KV tiers" in shown
    assert "Store" in shown
    assert "KV goes down to the tiers in no time" in shown
    page = next(out.glob("*.html")).read_text()
    assert "Seconds that computing them would take" in page
    assert "Store: tokens loaded" in page


def test_a_model_over_several_gpus_loads_over_each_ones_link(turns: dict[str, Any]) -> None:
    """Half of the KV is each GPU's, and comes over its own link: the same tokens in half the time."""
    roomy = {**BELOW, "tiers.host_gib": 10.0}
    one, two = (api.run(**turns, **roomy, tp=tp).summary["kv"]["tiers"]["host"] for tp in (1, 2))
    assert two["capacity_tokens"] == 2 * one["capacity_tokens"]
    assert two["bytes"] / two["hit_tokens"] == one["bytes"] / one["hit_tokens"]
    longest = [tier["load_s"]["max"] for tier in (one, two)]
    assert longest[1] == pytest.approx(longest[0] / 2)


@pytest.mark.parametrize("several", [{"dp": 2}, {"pp": 2, "engine.max_num_batched_tokens": 512}, {"replicas": 2}])
def test_each_rank_and_each_pipeline_has_tiers(turns: dict[str, Any], several: dict[str, Any]) -> None:
    ran = api.run(**{**turns, "kv.blocks": 100}, **BELOW, **several)
    assert ran.summary["requests"]["completed"] == 60
    assert ran.requests["host_hit_tokens"].sum() == ran.summary["kv"]["tiers"]["host"]["hit_tokens"] > 0


def test_pools_have_tiers_of_their_own(turns: dict[str, Any]) -> None:
    """Prompts are loaded where they are computed, and sent on; of two pools of all work each has its own."""
    apart = {"pools.p.role": "prefill", "pools.d.role": "decode", "pools.d.kv.blocks": 2000, "transfer.gb_per_s": 50.0}
    ran = api.run(**turns, **apart, **{f"pools.p.{key}": value for key, value in BELOW.items()})
    assert ran.requests["host_hit_tokens"].sum() == ran.summary["kv"]["tiers"]["host"]["hit_tokens"] > 0
    assert len(ran.transfers) == 60
    both = {"pools.a.count": 1, "pools.b.count": 1, "pools.b.tiers.host_gib": 2.0}
    tiers = api.run(**turns, **BELOW, **both).summary["kv"]["tiers"]
    assert list(tiers) == ["all", "a host", "b host"]
    assert tiers["b host"]["capacity_tokens"] == 4 * tiers["a host"]["capacity_tokens"]
    assert tiers["all"]["hit_tokens"] == tiers["a host"]["hit_tokens"] + tiers["b host"]["hit_tokens"] > 0


@pytest.mark.parametrize("tier", ["host", "disk", "store"])
def test_what_is_shared_outlives_a_replica(turns: dict[str, Any], tier: str) -> None:
    """After a death in the midst of a load the store has what it had, and what was the replica's own has nothing."""
    below = {f"tiers.{tier}_gib": 16.0, f"tiers.{tier}_gb_per_s": 0.5}
    dies = {"front_end.name": "off", "failures.schedule": [{"at_s": 6.8, "down_s": 0.1}]}
    ran = api.run(**turns, **below, **dies)
    assert ran.summary["requests"]["completed"] == 60
    assert ran.requests["resent"].sum() > 0
    after = ran.requests[ran.requests["first_scheduled_s"] > 6.8].iloc[:8]
    assert len(after) == 8
    assert (after[f"{tier}_hit_tokens"] > 0).all() == (tier == "store")
    assert (after[f"{tier}_hit_tokens"] == 0).all() == (tier != "store")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tiers.host_gib": 1.0}, "tiers.host_gib is 1 and tiers.host_gb_per_s is not set"),
    ({"tiers.host_gb_per_s": 50.0}, "tiers.host_gb_per_s is 50, and it is read only where tiers.host_gib is set"),
    ({**BELOW, "tiers.disk_latency_s": 0.1}, "tiers.disk_latency_s is 0.1, and it is read only where"),
    ({**BELOW, "tiers.host_gib": 1e-6}, "tiers.host_gib is less than a block of 16 tokens"),
    ({**BELOW, "tiers.host_gb_per_s": -1.0}, "tiers.host_gb_per_s is -1"),
    ({**BELOW, "allocator": "paged"}, "allocator paged finds no prefixes that could be loaded"),
    ({**BELOW, "executor": "live", "model": "tiny-llama", "device": "cpu"}, "executor is live"),
    ({**BELOW, "model": "gemma-3-27b"}, "its layers keep KV of several kinds"),
    ({**BELOW, "policy": "static"}, "policy static holds the memory of finished requests"),
    ({**BELOW, "kv.swap_gib": 1.0}, "kv.swap_gib is set"),
    ({**BELOW, "offload.kv_layers": 2}, "offload.kv_layers is set"),
    (
        {**BELOW, "pools.a.role": "prefill", "pools.b.role": "decode", "transfer.gb_per_s": 9.0},
        "pools.b: tiers.host_gib is set, and role is decode",
    ),
    ({**BELOW, "policy": "speculative"}, "policy speculative drafts, and loads beside drafts are not modelled"),
    ({"tiers.tape_gib": 1.0}, "unknown setting 'tiers.tape_gib'; tiers has host_gib"),
]


def test_the_command_refuses_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, "run", "--trace", "chatbot_arena.jsonl", "--set", "tiers.disk_gib=100")
    assert "tiers.disk_gib is 100 and tiers.disk_gb_per_s is not set" in error


@pytest.mark.parametrize(("settings", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_what_tiers_do_not_go_with_is_refused(turns: dict[str, Any], settings: dict[str, Any], sentence: str) -> None:
    known = {key: value for key, value in turns.items() if key != "engine.max_model_len"}
    with pytest.raises(InputError) as error:
        api.run(**{**known, **settings})
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
