"""WEKA agent sessions (one JSON object a file: requests with t, in, out, hash_ids, api_time, think_time; or a folder).

Source: github.com/callanjfox/kv-cache-tester, traces. Blocks are full blocks of `block_size` tokens, ids local to
the file. Requests of type "subagent" nest requests whose t starts from 0: the sub-agent's first request follows the
parent's request before it, its others follow one another, and the parent does not wait for it, since the parent's
recorded think_time covers it. Sessions record no common clock: in a folder all start at 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from traces import files
from traces.blocks import full
from traces.fields import BadRow, Count, Ids, Record, Text, Time, get
from traces.head import Head, json_files
from traces.late import pd
from traces.sessions import Rows
from traces.source import Source

SECONDS = Time("s")
MAX_DEPTH = 8


def detect(head: Head) -> bool:
    return head.shape == "json" and head.has("requests", "block_size", "hash_id_scope")


def weka(source: Source) -> pd.DataFrame:
    folder = Path(source)
    paths = json_files(folder) if files.is_dir(folder) else [folder]
    rows = Rows()
    block_tokens: dict[int, Path] = {}
    names: set[str] = set()
    for path in paths:
        one = source.sibling(path)
        session = _Session(one, rows, names)
        session.read()
        block_tokens.setdefault(session.block_tokens, path)
        source.adopt(one)
    if len(block_tokens) > 1:
        sizes = ", ".join(f"{size} in {path.name}" for size, path in block_tokens.items())
        source.fail(f"mixes block sizes: {sizes}")
    if not rows.count:
        source.nothing()
    if len(paths) > 1:
        source.notes.append(
            f"{len(paths)} sessions without a common clock: all start at 0 "
            "(`sim trace convert --stagger` gives them arrivals)."
        )
    return rows.table()


class _Session:
    """One file's requests, added to rows that other files share."""

    def __init__(self, source: Source, rows: Rows, names: set[str]) -> None:
        self.source, self.rows, self.names = source, rows, names
        source.where = "request"
        self.served_s: dict[int, float] = {}
        self.block_tokens = 0
        self.number = 0
        self.guessed = 0
        self.first_id = 1 + max(
            (int(ids.max()) for ids in rows.columns.get("prefix_blocks", []) if len(ids)), default=-1
        )

    def read(self) -> None:
        document = self.source.document()
        if not isinstance(document, dict) or not isinstance(document.get("requests"), list):
            self.source.fail("is not a session: it lacks a list of requests")
        try:
            self.block_tokens = get(document, "block_size", Count())
            name = get(document, "id", Text())
        except BadRow as why:
            self.source.fail(f"is not a session: {why}")
        name = f"{self.source.path.name}:{name}" if name in self.names else name
        self.names.add(name)
        self._requests(document["requests"], name, 0.0, -1, 0)
        if self.guessed:
            self.source.notes.append(
                f"{self.source.path.name}: {self.guessed} requests lack think_time; it is taken as the time since the "
                "request before, less its api_time where that is known."
            )

    def _requests(self, requests: list[Any], session: str, start_s: float, parent: int, depth: int) -> None:
        last, turn = parent, 0
        for record in requests:
            self.number += 1
            try:
                if not isinstance(record, dict):
                    raise BadRow("is not a JSON object")
                if record.get("type") == "subagent":
                    self._subagent(record, session, start_s, last, depth)
                    continue
                last = self._add(record, session, start_s, last, turn)
                turn += 1
            except BadRow as why:
                self.source.reject(self.number, why)

    def _subagent(self, record: Record, session: str, start_s: float, parent: int, depth: int) -> None:
        if depth >= MAX_DEPTH:
            raise BadRow(f"sub-agents are nested more than {MAX_DEPTH} deep")
        if not isinstance(record.get("requests"), list):
            raise BadRow("requests of the subagent must be a list")
        begin = start_s + get(record, "t", SECONDS)
        name = f"{session}/{get(record, 'agent_id', Text(optional=True)) or self.number}"
        self._requests(record["requests"], name, begin, parent, depth + 1)

    def _add(self, record: Record, session: str, start_s: float, last: int, turn: int) -> int:
        if record.get("type", "n") not in ("n", "s"):
            raise BadRow(f"type is {record['type']!r}; known are n, s, subagent", "type: unknown")
        arrival = start_s + get(record, "t", SECONDS)
        prompt = get(record, "in", Count())
        ids = full(get(record, "hash_ids", Ids()), prompt, self.block_tokens, "hash_ids")
        known = next((key for key in ("api_time", "ttft") if record.get(key) is not None), None)
        served = get(record, known, SECONDS) if known else 0.0
        index = self.rows.add(
            arrival_s=arrival,
            prompt_tokens=prompt,
            output_tokens=get(record, "out", Count()),
            source_row=self.number,
            session=session,
            turn=turn,
            after=last,
            think_s=self._think_s(record, arrival, last, turn),
            prefix_blocks=ids + self.first_id,
            prefix_block_tokens=self.block_tokens,
            model=get(record, "model", Text(optional=True)),
        )
        self.served_s[index] = served
        return index

    def _think_s(self, record: Record, arrival: float, last: int, turn: int) -> float:
        """Recorded; else (and for a sub-agent's first) the time since the request before, less its api_time."""
        if last < 0:
            return 0.0
        earlier = self.rows.columns["arrival_s"][last]
        if arrival < earlier:
            raise BadRow(f"t is before that of the request that it follows ({arrival:.9g} s after {earlier:.9g} s)")
        if turn and record.get("think_time") is not None:
            return float(get(record, "think_time", SECONDS))
        self.guessed += turn > 0
        return max(0.0, float(arrival - earlier - self.served_s[last]))
