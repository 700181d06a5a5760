"""What became of the KV pools' slots: use, waste and sharing over time, from the tables. Formulas: docs/metrics.md."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sim.results.percentiles import Floats
from sim.results.sums import dot
from traces.late import pd
from traces.schema import InputError
from traces.table import Columns

# The classes that every slot of the KV pool is in exactly one of; the first five are held by requests, the first
# two hold data.
KV_KINDS = ("used", "shared", "reserved", "internal", "external", "free")
KV_HELD = KV_KINDS[:5]
KV_DATA = KV_KINDS[:2]
# Those that change within a span, for which the tables have the mean over its steps too.
KV_CHANGING = ("used", "reserved", "internal", "free")
KV_MEAN_COLUMNS = {f"kv_{kind}_mean_tokens": kind for kind in KV_CHANGING}
FULL = 0.9
"""A pool that is fuller than this is under pressure: the next admission may have to wait or to preempt."""
PREFIX_COLUMNS = ("prompt_tokens", "prefix_hit_tokens", "prefix_blocks", "prefix_hit_blocks")


@dataclass(frozen=True, slots=True)
class KvFacts:
    """What the tables do not say about the KV pools: the size of one replica's, and how that is known.

    Where it is estimated, `band` are the fewest and the most tokens that it may be; `source` says whose accounting that
    is, or which line of a server; "" where the number of blocks was given. `each_tokens` has the size of each replica's
    where they differ, `each_share` the share of the run in which each was there, where that changes.
    """

    capacity_tokens: int
    block_tokens: int
    replicas: float = 1
    """Where their number changes, the mean over the run."""
    band: tuple[int, int] | None = None
    source: str = ""
    each_tokens: tuple[int, ...] = ()
    each_share: tuple[float, ...] = ()

    @property
    def alike(self) -> bool:
        return len(set(self.each_tokens)) < 2

    @property
    def whole_tokens(self) -> float:
        """Of all replicas, as long as they are there."""
        if self.alike:
            return self.capacity_tokens * self.replicas
        if not self.each_share:
            return sum(self.each_tokens)
        return sum(size * share for size, share in zip(self.each_tokens, self.each_share, strict=True))


def busy_s(steps: Columns) -> Floats:
    """Seconds that each span adds to its replica's busy time: overlap with the span before counts once.

    (n,), in the order of the table, whose spans of one replica are in time order.
    """
    replica = np.asarray(steps["replica"])
    order = np.argsort(replica, kind="stable")
    replica = replica[order]
    start_s, end_s = (np.asarray(steps[name], np.float64)[order] for name in ("start_s", "end_s"))
    np.maximum(start_s[1:], end_s[:-1], out=start_s[1:], where=replica[1:] == replica[:-1])
    end_s -= start_s
    start_s[order] = np.maximum(end_s, 0.0, out=end_s)  # where nothing is asked for again, a column less
    return start_s


def kv_tokens(steps: Columns, kind: str) -> Floats:
    """The KV slots of a class, or those `saved` by sharing, at the end of each span: (n,)."""
    return np.asarray(steps[f"kv_{kind}_tokens"], np.float64)


def kv_means(steps: Columns, kind: str) -> Floats:
    """The KV slots of a class, or those `saved` by sharing, as the mean over the steps of each span: (n,)."""
    column = f"kv_{kind}_mean_tokens" if kind in KV_CHANGING else f"kv_{kind}_tokens"
    return np.asarray(steps[column], np.float64)


def with_kv_means(steps: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The steps with their means over spans, which earlier versions did not write; `path` is where they were read.

    Raises InputError where such a table has spans of several steps, whose means nothing in it tells.
    """
    missing = {column: kind for column, kind in KV_MEAN_COLUMNS.items() if column not in steps}
    if missing and (steps["repeats"] > 1).any():
        raise InputError(f"{path} has no column {next(iter(missing))!r}: an earlier version wrote it; run it again")
    return steps.assign(**{column: kv_tokens(steps, kind) for column, kind in missing.items()})


def kv_integrals(steps: Columns) -> dict[str, float]:
    """Token-seconds of each class of KV slots, and of those saved, over the busy time of all replicas."""
    width_s = busy_s(steps)
    return {kind: dot(kv_means(steps, kind), width_s) for kind in (*KV_KINDS, "saved")}


def kv_summary(requests: Columns, steps: Columns, kv: KvFacts, duration: float) -> dict[str, Any]:
    """Use and waste of the KV pools as time-weighted means (idle: nothing held), peaks, sharing, hits, what moved."""
    token_s = kv_integrals(steps)
    whole = float(kv.whole_tokens) * duration
    data_s = sum(token_s[kind] for kind in KV_DATA)
    held_s = sum(token_s[kind] for kind in KV_HELD)
    token_s["free"] = whole - held_s
    classes = {kind: {"mean": _share(token_s[kind], whole), "peak": _peak(steps, kv, kind)} for kind in KV_KINDS}
    scheduled = ~np.isnan(np.asarray(requests["first_scheduled_s"], np.float64))
    hits = {name: int(np.asarray(requests[name])[scheduled].sum()) for name in PREFIX_COLUMNS}
    return {
        **_capacity(kv),
        "block_tokens": kv.block_tokens,
        "peak_used": _peak(steps, kv, *KV_DATA),
        "mean_used": _share(data_s, whole),
        "peak_held": _peak(steps, kv, *KV_HELD),
        "classes": classes,
        "waste": {
            **{kind: classes[kind]["mean"] for kind in ("reserved", "internal", "external")},
            "of_held": {kind: _share(token_s[kind], held_s) for kind in KV_HELD},
        },
        "useful": _share(data_s, held_s),
        "shared": {**classes["shared"], "saving_mean": _share(token_s["saved"], data_s + token_s["saved"])},
        "prefix_hit_rate": _share(hits["prefix_hit_tokens"], hits["prompt_tokens"]),
        "prefix_hit_rate_blocks": _share(hits["prefix_hit_blocks"], hits["prefix_blocks"]),
        "preemptions": int(requests["preemptions"].sum()),
        "swapped_bytes": int(steps["swapped_bytes"].sum()),
        "copied_bytes": int(steps["copied_bytes"].sum()),
    }


def _capacity(kv: KvFacts) -> dict[str, Any]:
    """The size of one replica's pool and its band; None where the replicas' differ."""
    if not kv.alike:
        return {
            **dict.fromkeys(("capacity_tokens", "capacity_low_tokens", "capacity_high_tokens")),
            "capacity_source": "",
        }
    low, high = kv.band or (kv.capacity_tokens, kv.capacity_tokens)
    return {
        "capacity_tokens": kv.capacity_tokens,
        "capacity_low_tokens": low,
        "capacity_high_tokens": high,
        "capacity_source": kv.source,
    }


def _peak(steps: Columns, kv: KvFacts, *kinds: str) -> float:
    """The most slots of these classes together that any replica had at the end of a span, of its capacity."""
    slots = sum(kv_tokens(steps, kind) for kind in kinds)
    if kv.alike:
        return float(np.max(slots, initial=0.0)) / kv.capacity_tokens
    return float(np.max(slots / np.asarray(kv.each_tokens)[np.asarray(steps["replica"])], initial=0.0))


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
