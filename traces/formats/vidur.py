"""Vidur's processed traces (CSV: num_prefill_tokens, num_decode_tokens, and arrived_at in seconds where known).

Source: github.com/microsoft/vidur, data/processed_traces.
"""

from __future__ import annotations

from collections.abc import Mapping

from traces.fields import Count, Kind, Time
from traces.head import Head
from traces.late import pd
from traces.source import Source

COLUMNS: Mapping[str, Kind] = {"arrived_at": Time("s"), "num_prefill_tokens": Count(), "num_decode_tokens": Count()}
LENGTHS = {name: COLUMNS[name] for name in ("num_prefill_tokens", "num_decode_tokens")}


def detect(head: Head) -> bool:
    return head.shape == "csv" and head.has(*LENGTHS)


def vidur(source: Source) -> pd.DataFrame:
    timed = "arrived_at" in source.columns()
    raw = source.table(COLUMNS if timed else LENGTHS)
    table = pd.DataFrame(
        {
            "arrival_s": raw["arrived_at"] if timed else 0.0,
            "prompt_tokens": raw["num_prefill_tokens"],
            "output_tokens": raw["num_decode_tokens"],
            "source_row": raw["source_row"],
        }
    )
    source.has_arrivals = timed
    return source.clock(table, "arrived_at", ordered=True) if timed else table
