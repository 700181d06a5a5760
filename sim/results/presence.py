"""From the events of replicas to the times in which they served and were paid for. It knows no cause."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sim.results.percentiles import Floats
from traces.late import pd

SERVES, DRAINS, DOWN, ABSENT = "serves", "drains", "is down", "is gone"
"""States of a replica: it is sent requests; it ends those that it has; it will be back; it is not paid for.

Those that are not there from the start have the last as their first event.
"""
ORDERED, DIES, STOPS = "is ordered", "dies", "stops"
"""Further events: it is paid for from now on and will serve; it loses its requests; it is drained."""
_BEGINS = {"serving": (SERVES,), "paid": (ORDERED,)}
_ENDS = {"serving": (DRAINS, DIES), "paid": (ABSENT,)}


class Presence(NamedTuple):
    """Times from `start_s` to `end_s` (NaN: to the end of the run), each of a `replica`."""

    replica: np.ndarray
    start_s: Floats
    end_s: Floats


def present(events: pd.DataFrame, replicas: int, begin_s: float, what: str) -> Presence:
    """When so many replicas were `serving`, or `paid` for, by their events (`time_s`, `replica`, `event`, in order)."""
    first = events.groupby("replica")["event"].first()
    since = {replica: begin_s for replica in range(replicas) if first.get(replica) != ABSENT}
    found: list[tuple[int, float, float]] = []
    for time_s, replica, event in zip(events["time_s"], events["replica"], events["event"], strict=True):
        if event in _BEGINS[what]:
            since.setdefault(replica, time_s)
        elif event in _ENDS[what] and replica in since:
            found.append((replica, since.pop(replica), time_s))
    found += [(replica, start_s, np.nan) for replica, start_s in since.items()]
    replica, start_s, end_s = (np.array(column) for column in zip(*sorted(found), strict=True))
    return Presence(replica, start_s, end_s)
