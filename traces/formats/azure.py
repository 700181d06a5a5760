"""Azure LLM inference traces of 2023 and 2024 (CSV: TIMESTAMP, ContextTokens, GeneratedTokens).

Source: github.com/Azure/AzurePublicDataset. Stamps of 2023 have seven fractional digits and no zone, those of 2024
six and +00:00; one without a zone is taken as UTC.
"""

from __future__ import annotations

from collections.abc import Mapping

from traces import tables
from traces.fields import Count, Kind, Stamp, date_words
from traces.head import Head
from traces.source import Source
from traces.table import C, Columns

COLUMNS: Mapping[str, Kind] = {"TIMESTAMP": Stamp(), "ContextTokens": Count(), "GeneratedTokens": Count()}


def detect(head: Head) -> bool:
    return head.shape == "csv" and head.has(*COLUMNS)


def azure(source: Source) -> Columns:
    plain = tables.read_plain(source.path, COLUMNS)
    return _counted(source, source.table(COLUMNS)) if plain is None else _counted(source, plain)


def _counted(source: Source, raw: C) -> C:
    first = int(raw["TIMESTAMP"].min())
    source.notes.append(f"Arrivals are TIMESTAMP, counted from {date_words(first)}.")
    table = type(raw)(
        {
            "arrival_s": (raw["TIMESTAMP"] - first) / 1e9,
            "prompt_tokens": raw["ContextTokens"],
            "output_tokens": raw["GeneratedTokens"],
            "source_row": raw["source_row"],
        }
    )
    return source.clock(table, "TIMESTAMP", ordered=True)
