"""vLLM `bench serve` timed traces (JSON Lines with Mooncake's keys, but seconds and blocks of 16 tokens).

Source: vLLM's benchmark datasets, timed_trace with its defaults (chunk 16, multiplier 1). The keys are Mooncake's,
so this format is never detected: it has to be named.
"""

from typing import Any

import pandas as pd

from traces.blocks import started
from traces.fields import Count, Ids, Time, get
from traces.source import Source

BLOCK_TOKENS = 16
MOONCAKE_HINT = " tokens; a Mooncake trace (blocks of 512, milliseconds) is read with --format mooncake"


def vllm_timed(source: Source) -> pd.DataFrame:
    def row(record: dict[str, Any], line: int) -> dict[str, Any]:
        prompt = get(record, "input_length", Count())
        ids = get(record, "hash_ids", Ids())
        return {
            "arrival_s": get(record, "timestamp", Time("s")),
            "prompt_tokens": prompt,
            "output_tokens": get(record, "output_length", Count()),
            "source_row": line,
            "prefix_blocks": started(ids, prompt, BLOCK_TOKENS, "hash_ids", MOONCAKE_HINT),
        }

    table = pd.DataFrame(source.each(row))
    table["prefix_block_tokens"] = BLOCK_TOKENS
    source.notes.append("Read as vLLM's defaults have it: timestamp in seconds, blocks of 16 tokens.")
    return source.clock(table, "timestamp", "s", ordered=True)
