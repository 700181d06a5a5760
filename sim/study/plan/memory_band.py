"""What the band of an estimated KV capacity does to a plan's answer: a replication at each end where memory limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sim.study.kv_ends import ENDS, at_end
from sim.study.plan.document import Document
from sim.study.plan.glance import Glimpse, glimpse
from traces.schema import InputError

SIZES = ("capacity_tokens", "capacity_low_tokens", "capacity_high_tokens", "capacity_source")


def kv_row(facts: Sequence[Mapping[str, Any]]) -> Document | None:
    """A replica's KV capacity with its band, and whether that limits any of these runs; None where there is no run.

    Of unlike replicas the capacities are None.
    """
    if not facts:
        return None
    return {
        **{name: facts[0]["kv"][name] for name in SIZES},
        "limits": any(each["kv_limits"] for each in facts),
        "ends": {},
    }


def kv_ends(asked: Glimpse) -> Document:
    """The SLO's own values of this replication at both ends of the band, and whether each of them meets it."""
    return {end: _end(asked, end) for end in ENDS}


def _end(asked: Glimpse, end: str) -> Document:
    changed = replace(asked.replication, base=at_end(asked.replication.base, end))
    try:
        glance = glimpse(replace(asked, replication=changed, whole=True))
    except InputError as refusal:
        return {"cannot_run": str(refusal)}
    return {"met": not glance.missed, "slo_values": dict(glance.values), "stable": not glance.grew}
