"""What drafting gave and took, as a summary and as columns by request. It knows no engine and draws nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.engine.request import indices_of
from sim.engine.tally import Tally
from sim.specs.parallel import Parallel
from sim.speculation.drafters import Drafter
from traces.table import ColumnTable


def summary(
    drafter: Drafter,
    parallel: Parallel,
    tallies: Sequence[Tally],
    terms: Mapping[tuple[str, str], float],
    measured_s: float,
) -> dict[str, Any]:
    """The keys of docs/metrics.md, section Drafts.

    Args:
        terms: (term, source) to seconds, of a sample of the steps where a model priced them.
        measured_s: what all steps took where they were measured, and 0 where not.
    """
    rows, tokens = sum(one.rows for one in tallies), sum(one.tokens for one in tallies)
    drafted, accepted, looked_at, wanted, proposed = (
        [sum(column) for column in zip_longest(*(getattr(one, name) for one in tallies), fillvalue=0)]
        for name in ("drafted", "accepted", "looked_at", "asked", "found")
    )
    if measured_s:
        spent_s, drafting_s = measured_s, sum(one.drafting_s for one in tallies)
    else:
        spent_s = sum(terms.values())
        drafting_s = sum(seconds for (name, _), seconds in terms.items() if name.startswith("draft"))
    return {
        "drafter": drafter.kind,
        "tokens_per_target_step": tokens / rows if rows else None,
        "acceptance": sum(accepted) / sum(drafted) if sum(drafted) else None,
        "acceptance_by_position": [right / tried for right, tried in zip(accepted, drafted, strict=True)],
        "rate_by_position": [
            right / tried if tried else None for right, tried in zip(accepted, looked_at, strict=True)
        ],
        "found_by_position": [part / whole for part, whole in zip(proposed, wanted, strict=True)],
        "drafted_tokens": sum(drafted),
        "accepted_tokens": sum(accepted),
        "drafting_share": drafting_s / spent_s if spent_s else None,
        "draft_weight_bytes": drafter.weight_bytes(parallel),
        "draft_kv_bytes_per_token": drafter.kv_bytes_per_token(parallel),
    }


def with_drafts(requests: ColumnTable, mask: npt.NDArray[np.bool_], tallies: Sequence[Tally]) -> ColumnTable:
    """The requests' table with `draft_tokens`, `accepted_tokens` and `acceptance` (NaN where nothing was verified).

    `kept` says which rows were sent.
    """
    sent = np.flatnonzero(mask)
    counts = np.zeros((len(requests), 3), np.int64)
    for tally in tallies:
        if tally.requests:
            ids = np.fromiter(tally.requests, np.int64, len(tally.requests))
            counts[sent[indices_of(ids)]] += np.array(list(tally.requests.values()), np.int64)
    drafted, right, tried = counts.T
    share = np.divide(right, tried, out=np.full(len(requests), np.nan), where=tried > 0)
    return requests.assign(draft_tokens=drafted, accepted_tokens=right, acceptance=share)
