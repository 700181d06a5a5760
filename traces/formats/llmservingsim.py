"""LLMServingSim workloads (JSON Lines: input_toks, output_toks, arrival_time_ns; or sessions of sub_requests).

Source: github.com/casys-kaist/LLMServingSim, workloads. Rows may carry input_tok_ids and output_tok_ids, or
block16_hash_ids (one id for each full prefix block of 16 tokens). In a session, each sub-request starts its
tool_duration_ns after the one before it ended. Both kinds of row may stand in one file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from traces.blocks import full
from traces.fields import BadRow, Count, Ids, Record, Text, Time, broken, get
from traces.head import Head
from traces.late import pd
from traces.names import BlockNames
from traces.sessions import Rows
from traces.source import Source

BLOCK_TOKENS = 16
NS = Time("ns", whole=True)


def detect(head: Head) -> bool:
    flat, session = head.has("input_toks", "output_toks"), head.has("sub_requests")
    return head.shape == "json" and head.has("arrival_time_ns") and (flat or session)


def llmservingsim(source: Source) -> pd.DataFrame:
    rows = Rows()

    def add(record: dict[str, Any], line: int) -> None:
        arrival = float(get(record, "arrival_time_ns", NS))
        if "sub_requests" not in record:
            rows.add(**_request(record), arrival_s=arrival, source_row=line, session="", turn=0, after=-1, think_s=0.0)
            return
        session, last = f"{get(record, 'session_id', Text())}#{line}", -1
        parts = [(_request(part), _pause_s(part)) for part in _sub_requests(record)]
        for turn, (request, pause) in enumerate(parts):
            think = pause if turn else 0.0
            arrival += think
            follows = {"session": session, "turn": turn, "after": last, "think_s": think}
            last = rows.add(**request, arrival_s=arrival, source_row=line, **follows)

    source.each(add)
    table = rows.table()
    sessions = bool((table["session"] != "").any())
    if sessions:
        source.notes.append(
            "A session's sub-requests start tool_duration_ns after the one before them ended; their arrival_s leaves "
            "out the unknown service times."
        )
    else:
        table = table.drop(columns=["session", "turn", "after", "think_s"])
    for column in ("token_ids", "output_token_ids", "prefix_blocks"):
        if not table[column].map(len).any():
            table = table.drop(columns=column)
    if "prefix_blocks" in table:
        table["prefix_block_tokens"] = BLOCK_TOKENS
    return source.clock(table, "arrival_time_ns", "ns", ordered=not sessions)


def _sub_requests(record: Record) -> list[Record]:
    parts = record["sub_requests"]
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        raise broken("sub_requests", parts, "it must be a list of objects")
    return parts


def _pause_s(part: Record) -> float:
    return float(get(part, "tool_duration_ns", NS)) if part.get("tool_duration_ns") is not None else 0.0


def _request(record: Record) -> dict[str, Any]:
    prompt, output = get(record, "input_toks", Count()), get(record, "output_toks", Count())
    blocks = get(record, "block16_hash_ids", BlockNames(optional=True))
    return {
        "prompt_tokens": prompt,
        "output_tokens": output,
        "prefix_blocks": full(blocks, prompt, BLOCK_TOKENS, "block16_hash_ids") if len(blocks) else blocks,
        "token_ids": _tokens(record, "input_tok_ids", prompt),
        "output_token_ids": _tokens(record, "output_tok_ids", output),
    }


def _tokens(record: Record, key: str, count: int) -> npt.NDArray[np.int64]:
    ids: npt.NDArray[np.int64] = get(record, key, Ids(optional=True))
    if len(ids) not in (0, count):
        raise BadRow(f"{key} holds {len(ids):,} ids for {count:,} tokens", f"{key}: wrong number of ids")
    return ids
