"""Links shared evenly: by hand, and whatever is sent."""

from __future__ import annotations

import math
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from law_cases import laws

from sim.serving.clock import Clock
from sim.serving.links import Links

SIZES = st.sampled_from([0.0, 1.0, 33.3, 100.0])
Sent = tuple[float, int, int, float]


def landed_s(sent: list[Sent], rates: dict[int, float], latency_s: float = 0.0) -> list[float]:
    """When each of (time, source, target, bytes) is there."""
    clock, there = Clock(), [math.nan] * len(sent)
    links = Links(clock, rates, latency_s)
    for at, (time_s, source, target, size) in enumerate(sent):

        def arrived(at: int = at) -> None:
            there[at] = clock.now

        send = partial(links.send, source, target, size, arrived)
        clock.call_at(time_s, lambda event, send=send: send())  # type: ignore[misc]
    clock.run_out()
    return there


def test_two_that_share_a_link_take_turns_by_the_byte() -> None:
    """100 bytes and 50 on one link of 10 a second: the smaller ends after 10 s, the larger has the link then."""
    assert landed_s([(0.0, 0, 1, 100.0), (0.0, 0, 2, 50.0)], dict.fromkeys(range(3), 10.0)) == pytest.approx([15, 10])
    # The same to one receiver, whose link is the narrow one.
    assert landed_s([(0.0, 0, 2, 100.0), (0.0, 1, 2, 50.0)], dict.fromkeys(range(3), 10.0)) == pytest.approx([15, 10])
    # Apart nobody waits for anybody; one that comes later slows what is under way.
    assert landed_s([(0.0, 0, 2, 100.0), (0.0, 1, 3, 50.0)], dict.fromkeys(range(4), 10.0)) == pytest.approx([10, 5])
    assert landed_s([(0.0, 0, 1, 100.0), (5.0, 0, 1, 25.0)], {0: 10.0, 1: 20.0}, 1.0) == pytest.approx([13.5, 11.0])


def test_an_infinite_link_takes_no_time() -> None:
    assert landed_s([(1.0, 0, 1, 1e12), (1.0, 0, 1, 1e12)], {0: math.inf, 1: math.inf}) == [1.0, 1.0]


@laws
@given(
    st.lists(st.tuples(st.floats(0, 10), st.integers(0, 1), st.integers(2, 3), SIZES), max_size=8),
    st.sampled_from([0.0, 0.25]),
)
def test_nobody_is_lost_and_nobody_is_faster_than_alone(sent: list[Sent], latency_s: float) -> None:
    rates = {0: 10.0, 1: 5.0, 2: 10.0, 3: 20.0}
    there = landed_s(sent, rates, latency_s)
    for (time_s, source, target, size), end_s in zip(sent, there, strict=True):
        alone_s = size / min(rates[source], rates[target])
        assert end_s >= time_s + latency_s + alone_s * (1 - 1e-9)
    # No link carries more than its rate allows from its first byte to its last.
    for link, rate in rates.items():
        mine = [(one, end_s) for one, end_s in zip(sent, there, strict=True) if link in one[1:3]]
        if mine:
            begun_s = min(one[0] for one, _ in mine) + latency_s
            carried = sum(one[3] for one, _ in mine)
            assert max(end_s for _, end_s in mine) - begun_s >= carried / rate * (1 - 1e-9)
