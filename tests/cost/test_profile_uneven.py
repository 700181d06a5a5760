"""What uneven decode rows cost, learnt from measured ones: by the number of rows, alone and beside a prompt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profile_kit import GPU, HEADS, MODEL, llama_profile

from sim.cost.interpolation import MEASURED, Price, PriceGrid
from sim.cost.lookup import Uneven, mean_shares, uneven_shares
from sim.cost.profile import Profile
from sim.cost.profiled import Profiled
from sim.cost.tables import Table, Value
from sim.engine.batch import Shape

PLAIN = llama_profile(1.3, mixed=True)
SHARES = {4: 0.9, 16: 0.4, 64: 0.05}
MEAN, LONGEST = 1024, 4096


def with_rows(table: str, shares: dict[int, float], beside: dict[str, Value]) -> Table:
    """The table with a batch of each number of rows that costs its share of the way to the longest."""
    count = "sequences" if table == "decode_attention" else "decodes"
    price = Profiled(MODEL, GPU, PLAIN)._priced
    kernels = price._decode if table == "decode_attention" else price._mixed
    assert kernels is not None
    rows: list[dict[str, Value]] = [
        {**row, "max_context_tokens": row["mean_context_tokens"]} for row in PLAIN.tables[table].rows()
    ]
    for number, share in shares.items():
        inner = tuple(float(value) for value in beside.values()) if table == "mixed_attention" else ()
        low, high = (kernels[0][1].at(number, context, *inner).seconds for context in (MEAN, LONGEST))
        row = {**HEADS, count: number, "mean_context_tokens": MEAN, "max_context_tokens": LONGEST, **beside}
        rows.append({**row, "us": 1e6 * (low + share * (high - low))})
    return Table.of(table, [{key: row[key] for key in rows[0]} for row in rows])


def profile(**shares: dict[int, float]) -> Profile:
    tables = dict(PLAIN.tables)
    beside: dict[str, dict[str, Value]] = {
        "decode_attention": {"width": 1},
        "mixed_attention": {"past_tokens": 0, "new_tokens": 1024},
    }
    for name, told in shares.items():
        tables[name] = with_rows(name, told, beside[name])
    return replace(PLAIN, tables=tables)


def share_of(found: Profile, rows: int, prefills: tuple[tuple[int, int], ...] = ()) -> float:
    """How much of the way to the longest a batch of so many rows is priced."""
    cost, term = Profiled(MODEL, GPU, found), "mixed attention" if prefills else "decode attention"

    def seconds(mean: int, longest: int) -> float:
        shape = Shape(prefills, rows, rows * mean, decode_longest=longest)
        return cost.explain(shape)[term].seconds

    even, most = seconds(MEAN, MEAN), seconds(LONGEST, LONGEST)
    return (seconds(MEAN, LONGEST) - even) / (most - even)


@pytest.mark.parametrize(("rows", "share"), [*SHARES.items(), (2, 0.9), (10, 0.65), (256, 0.05)])
def test_the_share_depends_on_the_number_of_rows(rows: int, share: float) -> None:
    """As measured; straight between; the nearest number's beyond."""
    assert share_of(profile(decode_attention=SHARES), rows) == pytest.approx(share, abs=2e-4)


def test_rows_beside_a_prompt_have_shares_of_their_own() -> None:
    both = profile(decode_attention=SHARES, mixed_attention={16: 0.2})
    assert share_of(both, 16, ((1024, 0),)) == pytest.approx(0.2, abs=2e-4)
    assert share_of(both, 16) == pytest.approx(0.4, abs=2e-4)
    assert share_of(profile(decode_attention=SHARES), 16, ((1024, 0),)) == pytest.approx(0.4, abs=2e-4)
    alone = Profiled(MODEL, GPU, profile(mixed_attention={16: 0.2}))
    assert alone.needs_longest
    assert alone.needs_lengths == "never"
    assert not Profiled(MODEL, GPU, PLAIN).needs_longest


def test_uneven_rows_are_no_points_of_the_grid() -> None:
    shape = Shape(((1024, 0),), 16, 16 * MEAN)
    plain, both = (Profiled(MODEL, GPU, one).explain(shape) for one in (PLAIN, profile(mixed_attention={16: 1.0})))
    assert both["mixed attention"] == plain["mixed attention"]


def test_single_wild_batches_do_not_tell_the_share() -> None:
    """The share of least mean relative error: what matters little, and one wrong of five, move it little."""

    def row(mean: int, longest: int, us: float) -> dict[str, Value]:
        return {
            **HEADS,
            "width": 1,
            "sequences": 8,
            "mean_context_tokens": mean,
            "max_context_tokens": longest,
            "us": us,
        }

    def told(rows: list[dict[str, Value]]) -> Uneven:
        table = Table.of("decode_attention", rows)
        points = {(8.0, at): Price(1e-6 * (10 + at), MEASURED) for at in (0.0, 2000.0)}
        grid = PriceGrid(points, ["linear", "linear"], lambda point: 1.0)
        return uneven_shares(table, np.arange(len(table)), grid)

    good = [row(mean, 2 * mean, 10 + 1.25 * mean) for mean in (100, 200, 400, 800)]
    assert told([*good, row(300, 600, 9000.0)]) == Uneven((8.0,), (0.25,))
    assert told([row(100, 100, 5.0)]) == Uneven()


@given(
    st.dictionaries(st.integers(1, 500), st.floats(0.0, 1.0), min_size=1, max_size=6),
    st.integers(1, 600),
    st.floats(0.0, 1.0),
)
def test_shares_stay_between_those_measured(shares: dict[int, float], rows: int, weight: float) -> None:
    counts = sorted(shares)
    one = Uneven(tuple(map(float, counts)), tuple(shares[count] for count in counts))
    assert min(shares.values()) - 1e-12 <= one.at(rows) <= max(shares.values()) + 1e-12
    both = mean_shares([(one, weight), (Uneven((1.0,), (0.5,)), 1.0 - weight)])
    assert both.at(counts[0]) == pytest.approx(weight * shares[counts[0]] + (1.0 - weight) * 0.5)
    assert Uneven().at(rows) == 0.0
