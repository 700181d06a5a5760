"""Constants fitted to kernel tables: whose a card takes, what is said of it, what a file may hold; links; experts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.catalog import load_gpu, load_model, names
from sim.cost import fits
from sim.cost.collectives import Collectives, _at
from sim.cost.efficiency import Efficiency
from sim.cost.experts import TILE_ROWS, Routing
from sim.cost.roofline import Roofline
from sim.engine.batch import Shape
from sim.specs.parallel import Parallel
from traces.schema import InputError

OWN = fits.names()
STEP = Shape(((512, 0),), 16, 16_000)
FILE = """gpu = "a10g"
date = "2026-11-30"
source = "made for a test"
[operations.gemm]
tables = "gemm table"
rows = 3
mean_error = 0.05
p90_error = 0.1
constants = {gemm_compute = 0.8}
[all_reduce]
link = "PCIe"
link_bytes_per_s = 32e9
gpus_2 = [[256, 5e-6], [1048576, 60e-6]]
"""


def changed(tmp_path: Path, old: str, new: str) -> Path:
    assert old in FILE
    path = tmp_path / f"fit{abs(hash(new))}.toml"
    path.write_text(FILE.replace(old, new))
    return path


@pytest.mark.parametrize("kind", ["curves", "exchanges"])
def test_collectives_are_met_between_their_sizes(kind: str) -> None:
    """Each measured size that is left out, so that the gap is a factor of four, from those on both sides of it."""
    errors = []
    for curve in getattr(fits.load(fits.FOLDER / "h100.toml"), kind).values():
        for at in range(1, len(curve) - 1):
            size, seconds = curve[at]
            errors.append(abs(_at((*curve[:at], *curve[at + 1 :]), size) / seconds - 1))
    assert sum(error < 0.1 for error in errors) / len(errors) > 0.85
    assert max(errors) < 0.17


def test_exchanges_are_those_of_the_link_and_a_rate_that_is_given_replaces_them() -> None:
    h100, h200 = load_gpu("h100"), load_gpu("h200")
    measured = Collectives(h100, Efficiency.of(h100)).all_to_all_s(2**24, 8, 1.0, 1.0)
    assert measured == pytest.approx(dict(fits.load(fits.FOLDER / "h100.toml").exchanges[8])[2**24])
    assert Collectives(h200, Efficiency.of(h200)).all_to_all_s(2**24, 8, 1.0, 1.0) == pytest.approx(measured)
    faster = replace(h100, name="other", link_bytes_per_s=900e9)
    least = fits.load(fits.FOLDER / "h100.toml").exchanges[8][0][1]
    halved = Collectives(faster, Efficiency.of(faster)).all_to_all_s(2**24, 8, 1.0, 1.0)
    assert halved == pytest.approx(least + (measured - least) / 2)
    given = Efficiency.of(h100, {"all_reduce_link": 0.5})
    by_rate = given.all_reduce_floor_s + 2**24 * 7 / 8 / (0.5 * 450e9)
    assert Collectives(h100, given).all_to_all_s(2**24, 8, 1.0, 1.0) == pytest.approx(by_rate)
    pcie = load_gpu("l40s")
    eff = Efficiency.of(pcie)
    assert Collectives(pcie, eff).all_to_all_s(2**24, 4, 1.0, 1.0) == pytest.approx(
        eff.all_reduce_floor_s + 2**24 * 3 / 4 / (eff.all_reduce_link * pcie.peer_bytes_per_s)
    )


@pytest.mark.parametrize("name", names("gpus"))
def test_every_gpu_has_a_fit_and_says_whose(name: str) -> None:
    efficiency = Efficiency.of(load_gpu(name))
    fit = efficiency.fit
    assert fit is not None
    assert (fit.gpu == name) == fit.own == (name in OWN)
    assert fit.sentence == "" if fit.own else "this card has none" in fit.sentence
    sources = {item.name: item.source for item in efficiency.describe()}
    assert f"fitted to the {fit.gpu}'s" in sources["gemm_memory"]


def test_a_card_of_its_own_tables_is_fitted_and_one_of_anothers_is_not() -> None:
    model = load_model("llama-3.1-8b")
    for gpu, source in (("a100-80", "fitted"), ("a100-40", "roofline")):
        terms = Roofline(model, load_gpu(gpu)).explain(STEP)
        assert {terms[name].source for name in ("mlp up", "prefill attention", "decode attention")} == {source}
        assert {terms[name].source for name in ("norms", "sampling", "host")} == {"roofline"}
    quantised = Roofline(model.with_dtypes(weights="int4"), load_gpu("a100-80")).explain(STEP)
    assert (quantised["mlp up"].source, quantised["LM head"].source) == ("roofline", "fitted")


def test_the_scenario_chooses(tmp_path: Path) -> None:
    path = changed(tmp_path, "0.8", "0.7")
    assert Efficiency.of(load_gpu("h100"), fit="a100-80").fit == replace(
        fits.choose(load_gpu("a100-80")), own=False, why="chosen by cost.fit"
    )
    own = Efficiency.of(load_gpu("a10g"), fit=str(path))
    assert (own.gemm_compute, own.is_fitted("gemm"), own.is_fitted("decode_attention")) == (0.7, True, False)
    with pytest.raises(
        InputError, match=r"unknown cost.fit 'h900'; known are auto, a100-80, b200, h100, l40s, or a file"
    ):
        fits.choose(load_gpu("h100"), "h900")
    with pytest.raises(InputError, match=r"GPU .h1.: unknown generation .Ada Hopper.; known are Volta,.*CDNA 3"):
        fits.choose(replace(load_gpu("h100"), name="h1", generation="Ada Hopper"))
    assert "names no generation" in fits.choose(replace(load_gpu("h100"), name="h1", generation="")).sentence


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('date = "2026-11-30"\n', "", "missing key 'date'"),
        ("[all_reduce]", "[links]", "unknown key 'links'"),
        ("rows = 3\n", "", r"\[operations.gemm\] must have tables, rows"),
        ("0.8", "-0.8", "gemm_compute = -0.8 must be a number, not negative"),
        ("60e-6", "4e-6", "all_reduce.gpus_2 must be two or more .bytes, seconds., both rising"),
        ("32e9", "32", "must be the rate of the link"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fits.load(changed(tmp_path, old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [("0.8", "1.2", "gemm_compute = 1.2 must be above 0, at most 1"), ("gemm_compute", "gemm_c", "unknown efficiency")],
)
def test_an_impossible_constant_of_a_file_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Efficiency.of(load_gpu("a10g"), fit=str(changed(tmp_path, old, new)))


@given(st.sampled_from(["h100", "l40s", "rtx-4090", "a100-40", "t4"]), st.integers(2, 8), st.floats(1, 1e9))
def test_all_reduces_grow_with_the_message(name: str, gpus: int, size: float) -> None:
    gpu = load_gpu(name)
    links = Collectives(gpu, Efficiency.of(gpu))
    assert 0 < links.all_reduce_s(size, gpus) <= links.all_reduce_s(1.5 * size, gpus) * (1 + 1e-12)
    assert links.gather_s(size, gpus) <= links.all_reduce_s(size, gpus) * (1 + 1e-12)


def test_links_are_those_of_the_kind_that_a_card_has() -> None:
    """Over PCIe those of the L40S (60.25 us for 1 MiB on two), twice as long without peer access."""
    size = 2.0**20
    l40s, rtx = (load_gpu(name) for name in ("l40s", "rtx-4090"))
    seconds = {gpu.name: Collectives(gpu, Efficiency.of(gpu)).all_reduce_s(size, 2) for gpu in (l40s, rtx)}
    assert seconds["l40s"] == pytest.approx(60.25e-6, rel=1e-3)
    assert seconds["rtx-4090"] == pytest.approx(5.4e-6 + 2 * (60.25e-6 - 5.4e-6), rel=0.01)
    peers = replace(rtx, peer_access=True)
    assert Collectives(peers, Efficiency.of(peers)).all_reduce_s(size, 2) == pytest.approx(seconds["l40s"], rel=1e-9)
    given_s = Collectives(l40s, Efficiency.of(l40s, {"all_reduce_link": 0.5, "all_reduce_floor_s": 1e-6}))
    assert given_s.all_reduce_s(size, 2) == pytest.approx(1e-6 + size / 16e9)
    cost = Roofline(load_model("llama-3.1-8b"), l40s, parallel=Parallel(2))
    assert cost.explain(STEP)["all-reduce"].source == "fitted"
    assert "measured on the l40s" in {item.name: item.source for item in cost.describe()}["all_reduce_bytes_per_s"]


class TestRouting:
    @given(
        st.sampled_from(["uniform", "balanced", "power-law:1.2", ",".join(["0.125"] * 8)]),
        st.integers(1, 5000),
        st.integers(1, 8),
    )
    def test_loads(self, text: str, tokens: int, visited: int) -> None:
        load = Routing(text).load(tokens, 8, visited)
        assert load.rows == tokens * visited
        assert 0 < load.touched <= 8 * (1 + 1e-12)
        for tall, tiles in zip(TILE_ROWS, load.tiles, strict=True):
            assert max(load.touched, load.rows / tall) * (1 - 1e-9) <= tiles <= load.rows / tall + 8.01

    def test_uneven_shares_touch_fewer_and_fill_more_tiles(self) -> None:
        skewed = Routing("0.93,0.01,0.01,0.01,0.01,0.01,0.01,0.01")
        even = Routing()
        assert skewed.load(8, 8, 1).touched < even.load(8, 8, 1).touched
        costs = [Roofline(load_model("mixtral-8x7b"), load_gpu("h100"), routing=one) for one in (even, skewed)]
        few = Shape(decodes=8, decode_context=800)
        assert costs[1].explain(few)["expert up"].seconds < costs[0].explain(few)["expert up"].seconds

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("0.5,0.4", r"shares of 2 experts that sum to 0.9; they must not be negative and sum to 1"),
            ("1.5,-0.5", "must not be negative"),
            ("a,b", "'a' is not a number"),
            ("random", "unknown routing 'random'; known are uniform, balanced, power-law:1.2"),
            ("power-law:1", "must lie above 0, be at most 10 and not be 1"),
            ("power-law:x", "'x' is not a number"),
        ],
    )
    def test_what_is_none_is_one_sentence(self, text: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            Routing(text)

    def test_as_many_shares_as_experts(self) -> None:
        with pytest.raises(InputError, match="shares of 2 experts, and the model's layers have 8"):
            Roofline(load_model("mixtral-8x7b"), load_gpu("h100"), routing=Routing("0.5,0.5"))
