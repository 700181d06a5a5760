"""BurstGPT v1 and v2 (CSV: Timestamp in seconds, Model, Request tokens, Response tokens, Session ID since v2).

Source: github.com/HPMLL/BurstGPT. Read by column name, since v2 inserts columns. A row with 0 response (or request)
tokens is a failed request by the source's own account, and is dropped and counted.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from traces.fields import Count, Kind, Text, Time
from traces.head import Head
from traces.late import pd
from traces.rows import keep_rows
from traces.sessions import linked
from traces.source import Source

COLUMNS: Mapping[str, Kind] = {
    "Timestamp": Time("s"),
    "Session ID": Text(optional=True),
    "Elapsed time": Time("s", optional=True),
    "Model": Text(optional=True),
    "Request tokens": Count(least=0),
    "Response tokens": Count(least=0),
}


def detect(head: Head) -> bool:
    return head.shape == "csv" and head.has("Timestamp", "Request tokens", "Response tokens")


def burstgpt(source: Source) -> pd.DataFrame:
    raw = source.table(COLUMNS)
    done = ((raw["Request tokens"] > 0) & (raw["Response tokens"] > 0)).to_numpy()
    if failed := int((~done).sum()):
        source.dropped["failed requests (0 response or request tokens, BurstGPT's mark of failure)"] += failed
        raw = keep_rows(raw, done)
    table = pd.DataFrame(
        {
            "arrival_s": raw["Timestamp"],
            "prompt_tokens": raw["Request tokens"],
            "output_tokens": raw["Response tokens"],
            "source_row": raw["source_row"],
        }
    )
    if "Model" in raw:
        table["model"] = raw["Model"]
    if "Session ID" not in raw:
        return source.clock(table, "Timestamp", ordered=False)
    table["session"] = raw["Session ID"]
    elapsed = raw["Elapsed time"].to_numpy() if "Elapsed time" in raw else None
    order = np.argsort(table["arrival_s"].to_numpy(), kind="stable")
    source.notes.append(
        "Turns of a Session ID follow one another; think time runs from the end of the answer before "
        "(Timestamp + Elapsed time) to the next Timestamp."
    )
    ordered = linked(table.iloc[order].reset_index(drop=True), elapsed if elapsed is None else elapsed[order])
    return source.clock(ordered, "Timestamp", ordered=False)
