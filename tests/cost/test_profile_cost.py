"""Laws of a step priced by a profile: exact on the grid, honest sources, spans, the roofline for what is unknown."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from profile_kit import EFFICIENCY, GPU, HEADS, MODEL, llama_profile, llama_tables, meta, scaled_roofline, table

from sim.catalog import load_gpu, load_model
from sim.cost.layers import Ranks
from sim.cost.lookup import Tables
from sim.cost.offload import Offload
from sim.cost.profile import Accuracy, Profile
from sim.cost.profiled import Profiled
from sim.cost.roofline import NO_RANKS, Roofline
from sim.cost.step import advanced, device_seconds
from sim.cost.tables import Row, Table
from sim.cost.terms import PRODUCTS, kind_of
from sim.engine.batch import Shape, Verifies
from sim.specs.model import AttentionWindow
from sim.specs.parallel import Parallel
from traces.schema import InputError

FACTOR = 1.3
PLAIN = llama_profile(FACTOR)


def with_uneven(share: float) -> Profile:
    """The profile with an uneven batch that costs `share` of the way to the longest."""
    tables = dict(PLAIN.tables)
    rows = list(tables["decode_attention"].rows())
    at = {(row["sequences"], row["mean_context_tokens"]): float(row["us"]) for row in rows}
    us = at[16, 1024] + share * (at[16, 4096] - at[16, 1024])
    rows.append(
        {**HEADS, "width": 1, "sequences": 16, "mean_context_tokens": 1024, "max_context_tokens": 4096, "us": us}
    )
    columns = list(rows[0])
    tables["decode_attention"] = Table.of("decode_attention", [{key: row[key] for key in columns} for row in rows])
    return replace(PLAIN, tables=tables)


def launching(synchronous: bool, us: float = 3000.0) -> Profile:
    """The profile with what launching costs: 3 ms a step."""
    rows = [
        {"parts": parts, "graph": graph, "layers": 32, "rows": 1, "prefill_tokens": 0, "us": us}
        for parts in ("prefill", "decode", "mixed")
        for graph in (0, 1)
    ]
    tables = {**PLAIN.tables, "launch": Table.of("launch", rows)}
    return Profile(meta(synchronous=synchronous), tables)


def in_form(*forms: str) -> dict[str, Accuracy]:
    """How products and small kernels are interpolated."""
    error = Accuracy(points=1, mean=0.0, p90=0.0, max=0.0, bias=0.0)
    return {name: replace(error, form=form) for name, form in zip(("gemm", "elementwise"), forms, strict=True)}


def with_collectives() -> Profile:
    """The profile with messages between two GPUs up to 16 MiB."""
    rows = [
        {"op": op, "gpus": 2, "bytes": size, "us": 9.7 + size / 3e5}
        for op in ("all_reduce", "all_gather")
        for size in (2**10, 2**24)
    ]
    return replace(llama_profile(FACTOR), tables={**PLAIN.tables, "all_reduce": Table.of("all_reduce", rows)})


COSTS: dict[str, Profiled] = {
    "plain": Profiled(MODEL, GPU, PLAIN),
    "uneven": Profiled(MODEL, GPU, with_uneven(0.4)),
    "one launch": Profiled(MODEL, GPU, llama_profile(FACTOR, mixed=True)),
    "uneven in one launch": Profiled(
        MODEL,
        GPU,
        replace(
            PLAIN,
            tables={**with_uneven(0.4).tables, "mixed_attention": llama_profile(mixed=True).tables["mixed_attention"]},
        ),
    ),
    "eager": Profiled(MODEL, GPU, launching(False), cuda_graphs=False),
    "synchronous": Profiled(MODEL, GPU, launching(True)),
    "window": Profiled(MODEL, GPU, with_uneven(0.4), window=AttentionWindow(1020, 4, 20)),
    "offload": Profiled(MODEL, GPU, PLAIN, offload=Offload(weight_layers=4, kv_layers=3)),
    "split": Profiled(MODEL, GPU, PLAIN, parallel=Parallel(2)),
    "roots": Profiled(MODEL, GPU, llama_profile(FACTOR, accuracy=in_form("sqrt", "efficiency"))),
    "messages": Profiled(MODEL, GPU, with_collectives(), parallel=Parallel(2)),
    "another model": Profiled(load_model("qwen3-8b"), GPU, PLAIN),
    "experts": Profiled(load_model("mixtral-8x7b"), GPU, PLAIN, parallel=Parallel(2)),
    "latent": Profiled(load_model("deepseek-v2-lite"), GPU, PLAIN),
    "nothing of it": Profiled(load_model("tiny-llama"), GPU, PLAIN),
}
SPAN = Shape(decodes=7, decode_context=7 * 311, decode_window_context=2000, decode_window_growth=3)
_MIDDLE_S = COSTS["eager"].span_s(SPAN, 60)[0][30]
COSTS["launch bound"] = Profiled(MODEL, GPU, launching(False, 1e6 * _MIDDLE_S), cuda_graphs=False)
ANY_COST = st.sampled_from(sorted(COSTS))
COUNTS = st.integers(0, 4) | st.integers(0, 400)
SLICES = st.lists(st.tuples(st.integers(1, 9000), st.integers(0, 20_000)), max_size=3).map(tuple)
BYTES = st.just(0) | st.integers(1, 10**9)


def _verifying(groups: list[tuple[int, int, int]]) -> Verifies:
    """Rows of (tokens each, rows, mean past), within a window of 1,024."""
    return tuple((tokens, rows, rows * past, rows * min(past, 1024)) for tokens, rows, past in groups)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    decodes = draw(COUNTS)
    context = draw(st.integers(decodes, decodes * 20_000)) if decodes else 0
    within = draw(st.integers(decodes, min(context, decodes * 1024))) if decodes else 0
    longest = draw(st.just(0) | st.integers(-(-context // decodes), 30_000)) if decodes else 0
    groups = st.tuples(st.integers(2, 8), st.integers(1, 40), st.integers(1, 9000))
    verifies = draw(st.just(()) | st.lists(groups, max_size=3).map(_verifying))
    growth = draw(st.integers(0, decodes))
    shape = Shape(draw(SLICES), decodes, context, draw(BYTES), draw(BYTES), within, growth, verifies)
    return shape._replace(decode_longest=longest)


@given(ANY_COST, shapes())
def test_terms_add_up_and_say_where_they_are_from(name: str, shape: Shape) -> None:
    cost = COSTS[name]
    (seconds,), host_s = cost.span_s(shape, 1)
    terms = cost.explain(shape)
    assert device_seconds(terms.values()) == pytest.approx(seconds, rel=1e-12, abs=1e-18)
    assert terms["host"].seconds == host_s
    assert terms["host"].on_host
    if shape.prefills or shape.decodes or shape.verifies:
        counted_s = cost.counted_s(shape)
        assert {name for name in terms if kind_of(name) == PRODUCTS} <= counted_s.keys()
        assert all(terms[name].seconds == counted_s[name] for name in counted_s.keys() & terms.keys())
    known = {"measured", "interpolated", "fitted", "extrapolated", "roofline"}
    assert {term.source for term in terms.values()} <= known
    assert 0.0 <= seconds < 1e6


@pytest.mark.parametrize("name", sorted(COSTS))
def test_sizes_that_are_priced_together_cost_what_each_costs_alone(name: str) -> None:
    cost = COSTS[name]
    often = cost.beside(NO_RANKS)
    for tokens in (*range(9999, 7500, -13), *range(2999, 500, -7), *range(540, 0, -3)):
        shape, alone = Shape(((tokens, 0),)), cost.beside(NO_RANKS)
        assert often.span_s(shape, 1) == alone.span_s(shape, 1), f"{tokens} tokens"
        assert often.explain(shape) == alone.explain(shape), f"{tokens} tokens"


def test_a_rank_costs_the_same_whatever_ranks_were_asked_for_before() -> None:
    cost = Profiled(load_model("mixtral-8x7b"), GPU, PLAIN, parallel=Parallel(dp=4))
    shape, few, many = Shape(decodes=64, decode_context=6400), Ranks(64, 256), Ranks(600, 2000)
    cost.beside(few).span_s(shape, 1)
    fresh = Profiled(cost.model, GPU, PLAIN, parallel=cost.parallel)
    assert cost.beside(many).span_s(shape, 1) == fresh.beside(many).span_s(shape, 1)
    assert cost.beside(many).span_s(shape, 1) > cost.beside(few).span_s(shape, 1)


@given(ANY_COST, SLICES.filter(bool))
def test_the_attention_of_prompts_costs_what_is_explained(name: str, prefills: tuple[tuple[int, int], ...]) -> None:
    term = COSTS[name].explain(Shape(prefills)).get("prefill attention")
    assert COSTS[name].prefill_attention_s(prefills) == (term.seconds if term else 0.0)


@given(ANY_COST, shapes(), st.integers(1, 200))
def test_a_span_is_its_steps_to_the_bit(name: str, shape: Shape, repeats: int) -> None:
    cost = COSTS[name]
    seconds, host_s = cost.span_s(shape, repeats)
    assert len(seconds) == repeats
    assert {type(step_s) for step_s in seconds} == {float}
    for i in {0, 1, repeats // 2, repeats - 1} & set(range(repeats)):
        assert cost.span_s(advanced(shape, i), 1) == ([seconds[i]], host_s)


@pytest.mark.parametrize("name", sorted(COSTS))
def test_lists_and_vectors_give_the_same_bits(name: str) -> None:
    for repeats in (63, 64, 65, 300):
        for longest in (0, 311, 900, 100):  # the last one contradicts the mean, and must not break the law
            one = SPAN._replace(decode_longest=longest)
            singles = [COSTS[name].span_s(advanced(one, i), 1)[0][0] for i in range(repeats)]
            assert COSTS[name].span_s(one, repeats)[0] == singles


def test_on_the_grid_all_is_measured() -> None:
    """Sixteen rows of 1,024 tokens are a point of every table, and the device is the roofline times a factor."""
    shape = Shape(decodes=16, decode_context=16 * 1024, decode_longest=1024)
    profiled, roofline = COSTS["plain"].explain(shape), Roofline(MODEL, GPU).explain(shape)
    assert {term.source for name, term in profiled.items() if name != "sampling"} == {"measured"}
    for name in ("qkv", "attention output", "mlp up", "mlp down", "LM head", "decode attention"):
        assert profiled[name].seconds == pytest.approx(FACTOR * roofline[name].seconds, rel=1e-4)
    assert profiled["norms"].seconds == pytest.approx(64 * profiled["final norm"].seconds)


@pytest.mark.parametrize(
    ("shape", "term", "source"),
    [
        (Shape(decodes=16, decode_context=16 * 1024), "decode attention", "measured"),
        (Shape(decodes=16, decode_context=16 * 1025), "decode attention", "interpolated"),
        (Shape(decodes=17, decode_context=17 * 1024), "decode attention", "interpolated"),
        (Shape(decodes=16, decode_context=16 * 16_385), "decode attention", "extrapolated"),
        (Shape(decodes=300, decode_context=300 * 1024), "decode attention", "extrapolated"),
        (Shape(prefills=((256, 512),)), "prefill attention", "measured"),
        (Shape(prefills=((257, 512),)), "prefill attention", "interpolated"),
        (Shape(prefills=((256, 512),) * 2), "prefill attention", "interpolated"),
        (Shape(prefills=((8, 512),)), "prefill attention", "extrapolated"),
        (Shape(prefills=((512, 0),)), "qkv", "measured"),
        (Shape(prefills=((1000, 0),)), "qkv", "interpolated"),
        (Shape(prefills=((9000, 0),)), "qkv", "extrapolated"),
        (Shape(copied_bytes=32 * 2**20), "block copies", "interpolated"),
        (Shape(swapped_bytes=32 * 2**26), "swap", "extrapolated"),
    ],
)
def test_sources_are_right(shape: Shape, term: str, source: str) -> None:
    assert COSTS["plain"].explain(shape)[term].source == source


def test_what_is_not_in_the_profile_is_the_rooflines() -> None:
    """Of tiny-llama (fp32) only what has no type was measured: all else is the roofline's, to the bit."""
    shape = Shape(prefills=((100, 7),), decodes=3, decode_context=300, copied_bytes=10**6)
    model = load_model("tiny-llama")
    mine, roofline = COSTS["nothing of it"].explain(shape), Roofline(model, GPU).explain(shape)
    for name in roofline.keys() - {"host", "sampling", "block copies", "launch gaps"}:
        assert mine[name] == roofline[name]
    assert mine["block copies"].source == "interpolated"


def test_the_launch_bound_is_crossed_within_a_span() -> None:
    """Its first steps wait for launches, its last ones do not."""
    seconds = COSTS["launch bound"].span_s(SPAN, 60)[0]
    assert seconds[0] == seconds[20] == pytest.approx(_MIDDLE_S, rel=1e-6)
    assert seconds[59] == COSTS["eager"].span_s(SPAN, 60)[0][59] > seconds[20]


def test_nearer_relatives_weigh_more() -> None:
    """Of two measured matrices, one twice as slow as the roofline and one as fast as it, each prices those near it."""
    rows = []
    for k, n, factor in ((1024, 1024, 2.0), (8192, 8192, 1.0)):
        group = {"dtype": "bf16", "weight_dtype": "bf16", "k": k, "n": n}
        rows += list(table("gemm", [group], {"tokens": (1, 64)}, scaled_roofline(factor)).rows())
    tables = Tables(Profile(meta(), {"gemm": Table.of("gemm", rows)}), GPU, EFFICIENCY)

    def factor(k: int, n: int) -> float:
        group = {"dtype": "bf16", "weight_dtype": "bf16", "k": k, "n": n}
        kernel = tables.kernel("gemm", **group)
        assert kernel is not None
        return kernel.at(1.0).seconds / scaled_roofline(1.0)("gemm", group, (1.0,))

    assert factor(1024, 1024) == pytest.approx(2.0)
    assert 1.8 < factor(1024, 2048) < 2.0
    assert 1.0 < factor(8192, 4096) < 1.2
    assert tables.kernel("gemm", dtype="fp16", weight_dtype="fp16", k=1024, n=1024) is None


def test_relatives_price_what_was_not_measured() -> None:
    """Qwen3-8B has matrices of other sizes and the same heads: efficiency of the nearest ones, a factor here."""
    shape = Shape(decodes=16, decode_context=16 * 1024)
    terms = COSTS["another model"].explain(shape)
    roofline = Roofline(load_model("qwen3-8b"), GPU).explain(shape)
    assert terms["mlp up"].source == "interpolated"
    assert terms["mlp up"].seconds == pytest.approx(FACTOR * roofline["mlp up"].seconds, rel=1e-4)
    assert terms["LM head"].source == "extrapolated"
    assert terms["query and key norms"].source == "roofline"
    assert terms["decode attention"].source == "measured"


@given(st.sampled_from(["plain", "uneven"]), shapes(), st.data())
def test_more_work_never_costs_less_inside_the_grid(name: str, shape: Shape, data: st.DataObject) -> None:
    cost = COSTS[name]
    rows, context = data.draw(st.integers(1, 200)), data.draw(st.integers(16, 15_000))
    here = cost.span_s(Shape(decodes=rows, decode_context=rows * context), 1)[0][0]
    more = data.draw(st.integers(1, 500))
    assert cost.span_s(Shape(decodes=rows, decode_context=rows * (context + more)), 1)[0][0] >= here * (1 - 1e-12)
    wider = Shape(decodes=rows + 1, decode_context=(rows + 1) * context)
    assert cost.span_s(wider, 1)[0][0] >= here * (1 - 1e-12)
    new, past = data.draw(st.integers(16, 4000)), data.draw(st.integers(0, 8000))
    here = cost.span_s(Shape(prefills=((new, past),)), 1)[0][0]
    assert cost.span_s(Shape(prefills=((new + 1, past),)), 1)[0][0] >= here * (1 - 1e-12)
    assert cost.span_s(Shape(prefills=((new, past + 1),)), 1)[0][0] >= here * (1 - 1e-12)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_uneven_batches_cost_their_share_of_the_way_to_the_longest(share: float) -> None:
    cost = Profiled(MODEL, GPU, with_uneven(share))

    def attention_s(context: int, longest: int) -> float:
        shape = Shape(decodes=16, decode_context=16 * context, decode_longest=longest)
        return cost.explain(shape)["decode attention"].seconds

    even, longest = attention_s(1024, 1024), attention_s(4096, 4096)
    assert attention_s(1024, 4096) == pytest.approx(even + share * (longest - even), rel=1e-4)
    assert attention_s(1024, 0) == even
    assert cost.needs_longest == (share > 0)


def test_uneven_rows_cost_more_beside_prompts_too() -> None:
    profile = with_uneven(0.4)
    mixed = llama_profile(FACTOR, mixed=True).tables["mixed_attention"]
    cost = Profiled(MODEL, GPU, replace(profile, tables={**profile.tables, "mixed_attention": mixed}))

    def attention_s(context: int, longest: int) -> float:
        shape = Shape(((512, 0),), decodes=16, decode_context=16 * context, decode_longest=longest)
        return cost.explain(shape)["mixed attention"].seconds

    even, longest = attention_s(1024, 1024), attention_s(4096, 4096)
    assert attention_s(1024, 4096) == pytest.approx(even + 0.4 * (longest - even), rel=1e-4)


def test_launching_adds_on_a_synchronous_device_and_hides_on_others() -> None:
    shape = Shape(decodes=1, decode_context=100)
    bare = COSTS["plain"].span_s(shape, 1)[0][0]
    assert COSTS["synchronous"].explain(shape)["launches"].seconds == pytest.approx(3e-3)
    assert COSTS["synchronous"].span_s(shape, 1)[0][0] == pytest.approx(bare + 3e-3)
    assert bare > 3e-3
    assert COSTS["eager"].span_s(shape, 1)[0][0] == pytest.approx(bare)
    assert "launch gaps" not in COSTS["eager"].explain(shape)


def test_an_engine_with_one_launch_has_one_term() -> None:
    shape = Shape(prefills=((512, 0), (512, 0)), decodes=16, decode_context=16 * 1024)
    terms = COSTS["one launch"].explain(shape)
    assert "mixed attention" in terms
    assert not terms.keys() & {"prefill attention", "decode attention"}
    alone = COSTS["one launch"].explain(shape._replace(decodes=0, decode_context=0))
    assert "prefill attention" in alone


def test_included_terms_cost_nothing_and_are_no_roofline() -> None:
    tables = llama_tables(scaled_roofline(FACTOR))
    rows = [row for row in tables["elementwise"].rows() if row["op"] != "kv_write"]
    tables["elementwise"] = Table.of("elementwise", rows)
    shape = Shape(decodes=16, decode_context=16 * 1024)
    without = Profiled(MODEL, GPU, Profile(meta(), tables)).explain(shape)
    assert without["KV write"].source == "roofline"
    included = Profiled(MODEL, GPU, Profile(meta(included={"KV write": "decode_attention"}), tables)).explain(shape)
    assert "KV write" not in included
    with pytest.raises(InputError, match="included 'KV reads' is none of"):
        Profiled(MODEL, GPU, Profile(meta(included={"KV reads": "gemm"}), tables))


def test_derived_rows_make_derived_prices() -> None:
    tables = dict(PLAIN.tables)
    tables["gemm"] = Table.of("gemm", [{**row, "origin": "derived"} for row in tables["gemm"].rows()])
    terms = Profiled(MODEL, GPU, replace(PLAIN, tables=tables)).explain(Shape(decodes=16, decode_context=16 * 1024))
    assert terms["qkv"].source == "derived"
    assert terms["decode attention"].source == "measured"


def test_graphs_compute_the_sizes_they_were_captured_for() -> None:
    shape = Shape(decodes=9, decode_context=9 * 1024)
    tables = PLAIN.tables
    captured = Profiled(MODEL, GPU, Profile(meta(captured_tokens=(8, 64)), tables)).explain(shape)
    larger = Profiled(MODEL, GPU, Profile(meta(captured_tokens=(64,)), tables), cuda_graphs=False)
    assert captured["qkv"].seconds == larger.explain(Shape(prefills=((64, 0),)))["qkv"].seconds
    assert captured["decode attention"] == COSTS["plain"].explain(shape)["decode attention"]


def test_what_the_profile_says_of_itself_is_told() -> None:
    error = Accuracy(points=12, mean=0.031, p90=0.1, max=0.2, bias=-0.01)
    told = Profiled(MODEL, GPU, llama_profile(accuracy={"gemm": error}, step_accuracy={"decode": error})).describe()
    by_name = {constant.name: constant.source for constant in told}
    assert "mean error 3.1%" in by_name["gemm_rows"]
    assert "12 whole steps" in by_name["step_error_decode"]
    assert by_name["sampling_rows"] == "error not measured"


def test_another_gpus_profile_and_a_wrong_form_are_refused() -> None:
    with pytest.raises(InputError, match=r"was measured on h100, and the GPU is h200; .*calibrate derive"):
        Profiled(MODEL, load_gpu("h200"), PLAIN)
    wrong = Accuracy(points=1, mean=0.0, p90=0.0, max=0.0, bias=0.0, form="cubic")
    with pytest.raises(InputError, match="form 'cubic' must name one of linear, sqrt, efficiency for each of tokens"):
        Profiled(MODEL, GPU, llama_profile(accuracy={"gemm": wrong}))


def test_rows_that_verify_unequally_are_launched_as_mixed_steps_where_these_were_measured_by_graph() -> None:
    def of(*measured: tuple[str, float]) -> Profiled:
        same = {"graph": 1, "layers": 32, "rows": 1, "prefill_tokens": 0}
        launches = [{**same, "parts": parts, "us": us} for parts, us in measured]
        return Profiled(MODEL, GPU, Profile(meta(), {**PLAIN.tables, "launch": Table.of("launch", launches)}))

    equal, unequal = Shape(verifies=((4, 2, 90, 0),)), Shape(verifies=((4, 1, 50, 0), (3, 1, 40, 0)))
    pieces, whole = of(("decode", 1.0), ("mixed", 1e6)), of(("decode", 1.0))
    assert pieces.span_s(unequal, 1)[0] == [pytest.approx(1.0)]
    assert pieces.span_s(equal, 1)[0][0] < 0.1
    assert whole.span_s(unequal, 1)[0][0] < 0.1


def test_an_engine_that_captures_decode_steps_alone_launches_all_others_eagerly() -> None:
    """Where only eager launches of mixed steps were measured they are eager: unpadded, and waiting for launches."""
    launches = [
        {"parts": parts, "graph": 0, "layers": 32, "rows": 1, "prefill_tokens": 0, "us": 30_000.0}
        for parts in ("prefill", "decode", "mixed")
    ]
    hosts = [
        {"parts": parts, "graph": graph, "rows": 1, "prefill_tokens": 0, "us": 100.0}
        for parts, graph in (("prefill", 0), ("decode", 0), ("mixed", 0), ("decode", 1))
    ]

    def of(hosts: list[Row]) -> Profiled:
        tables = {"launch": Table.of("launch", launches), "host": Table.of("host", hosts)}
        return Profiled(MODEL, GPU, Profile(meta(), {**PLAIN.tables, **tables}))

    cost = of(hosts)
    mixed = cost.explain(Shape(prefills=((29, 0),), decodes=4, decode_context=400))
    assert mixed["launch gaps"].seconds > 0.015
    eager = Profiled(MODEL, GPU, PLAIN, cuda_graphs=False).explain(Shape(prefills=((33, 0),)))
    assert mixed["qkv"].seconds == eager["qkv"].seconds
    decode = cost.explain(Shape(decodes=33, decode_context=3300))
    assert "launch gaps" not in decode
    assert decode["qkv"].seconds > eager["qkv"].seconds  # computed as 40
    # Mixed steps by graph that waited for no launch have the host's time alone.
    recorded = of([*hosts, {**hosts[2], "graph": 1}]).explain(Shape(prefills=((29, 0),), decodes=4, decode_context=400))
    assert recorded["qkv"].seconds == decode["qkv"].seconds
    assert "launch gaps" not in recorded
