"""Splitwise-sim's request traces (CSV: request_id, ..., arrival_timestamp in seconds, prompt_size, token_size).

Source: github.com/Mutinifni/splitwise-sim, traces/test_trace.csv.
"""

from __future__ import annotations

from collections.abc import Mapping

from traces.fields import BadRow, Count, Kind, Time
from traces.head import Head
from traces.late import pd
from traces.source import Source

COLUMNS: Mapping[str, Kind] = {
    "arrival_timestamp": Time("s"),
    "batch_size": Count(default=1),
    "prompt_size": Count(),
    "token_size": Count(),
}


def detect(head: Head) -> bool:
    return head.shape == "csv" and head.has("arrival_timestamp", "prompt_size", "token_size")


def splitwise(source: Source) -> pd.DataFrame:
    raw = source.table(COLUMNS)
    if "batch_size" in raw:
        batched = raw["batch_size"] > 1
        for row, size in zip(raw["source_row"][batched], raw["batch_size"][batched], strict=True):
            reason = "a row with batch_size above 1 is several requests, which this reader does not split"
            source.reject(int(row), BadRow(f"batch_size is {size}; {reason}", f"batch_size: {reason}"))
        raw = raw[~batched]
    table = pd.DataFrame(
        {
            "arrival_s": raw["arrival_timestamp"],
            "prompt_tokens": raw["prompt_size"],
            "output_tokens": raw["token_size"],
            "source_row": raw["source_row"],
        }
    ).reset_index(drop=True)
    return source.clock(table, "arrival_timestamp", ordered=True)
