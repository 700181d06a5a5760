"""vLLM `bench serve` timed traces (JSON Lines with Mooncake's keys, but seconds and blocks of 16 tokens).

Source: vLLM's benchmark datasets, timed_trace with its defaults (chunk 16, multiplier 1). The keys are Mooncake's,
so this format is never detected: it has to be named.
"""

from __future__ import annotations

from traces.formats.mooncake import Usual, read
from traces.late import pd
from traces.source import Source

USUAL = Usual("s", 16)


def vllm_timed(source: Source) -> pd.DataFrame:
    table = read(source, USUAL)
    source.notes.append("Read as vLLM's defaults have it: timestamp in seconds, blocks of 16 tokens, unless told.")
    return table
