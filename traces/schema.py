"""The trace contract: which columns a request has, and what a trace is. It imports no table of anybody's.

Knows nothing of files and formats; `traces.rows` checks what their readers make.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from traces.framed import framed, held

if TYPE_CHECKING:
    import pandas as pd

    from traces.table import ColumnTable

MAX_TOKENS = 10_000_000
MAX_REQUESTS = 10_000_000
"""Of a trace that is drawn; each takes about a kilobyte."""
MAX_TIME_S = 100 * 365.25 * 86_400

REQUIRED = ("arrival_s", "prompt_tokens", "output_tokens")
DTYPES: Mapping[str, str] = {
    "arrival_s": "float64",
    "prompt_tokens": "int64",
    "output_tokens": "int64",
    "source_row": "int64",
    "session": "string",
    "turn": "int64",
    "after": "int64",
    "think_s": "float64",
    "prefix_blocks": "object",
    "prefix_block_tokens": "int64",
    "prefix_starts": "object",
    "token_ids": "object",
    "output_token_ids": "object",
    "model": "string",
    "adapter": "string",
    "samples": "int64",
    "priority": "int64",
    "acceptance": "float64",
}


class InputError(Exception):
    """A mistake of the user's: one sentence that names the file and line, or the key and the known ones."""


@framed("requests")
@dataclass(frozen=True)
class Trace:
    """Requests in order of arrival, and what a reader of a report has to know about them.

    `requests` has a RangeIndex and the columns of `DTYPES`: the first four always, the others where the
    source has them. `turns` is what the length of a session's later turn is in the source, "whole" (prompts) or "new"
    (text alone), "" where no request follows another; prompts here are whole. `notes` are sentences: how arrivals were
    derived, how tokens were counted. `window_s` is the length of the stretch that arrivals were laid over evenly
    (`traces.redraw`), None where they were not.
    """

    requests: pd.DataFrame
    name: str
    kind: str
    synthetic: bool = False
    notes: tuple[str, ...] = ()
    path: str = ""
    has_arrivals: bool = True
    dropped: int = 0
    dropped_reasons: Mapping[str, int] = field(default_factory=dict)
    window_s: float | None = None
    turns: str = ""

    def __len__(self) -> int:
        return len(self.table)

    @property
    def table(self) -> ColumnTable | pd.DataFrame:
        """The requests as they are held, which of a small trace is no DataFrame."""
        table: ColumnTable | pd.DataFrame = held(self, "requests")
        return table

    @property
    def span_s(self) -> float:
        times = self.table["arrival_s"]
        return float(times.max() - times.min())

    def require_arrivals(self) -> Trace:
        """This trace, or InputError where its source has lengths only."""
        if not self.has_arrivals:
            raise InputError(
                f"{self.path or self.name} has no arrival times ({self.kind}); "
                "give a rate (--rate) or a number of clients (--concurrency)"
            )
        return self

    def edited(
        self, requests: pd.DataFrame, note: str, *, has_arrivals: bool | None = None, window_s: float | None = None
    ) -> Trace:
        known = self.has_arrivals if has_arrivals is None else has_arrivals
        if len(requests) and not (last_s := float(requests["arrival_s"].max())) <= MAX_TIME_S:
            raise InputError(
                f"{self.path or self.name}: the last request would arrive at {last_s:.3g} s, in over 100 years"
            )
        return replace(self, requests=requests, notes=(*self.notes, note), has_arrivals=known, window_s=window_s)
