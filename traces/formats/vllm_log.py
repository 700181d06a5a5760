"""What a vLLM server prints with --enable-log-requests, and --enable-log-outputs (text lines: Received request, ...).

Source: vllm/entrypoints/logger.py (RequestLogger): "Received request ID: prompt: TEXT, params: SamplingParams(n=1, ...,
max_tokens=16, ...), prompt_token_ids: [...]", in newer versions with the prompt in a line of its own ("Request ID
details: ...", at DEBUG), and "Generated response ID: output: TEXT, output_token_ids: [...]". A time has whole seconds
and no year, unless a container's runtime put its own in front. What --max-log-len cut off is not seen.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from traces import files
from traces.fields import BadRow, Count, Stamp, Text
from traces.head import Head
from traces.late import pd
from traces.source import Source

_EVENT = re.compile(
    r"\] (Received request|Generated response|Request) (\S+?)(?: \((streaming \w+)\)| details)?: (.*)", re.DOTALL
)
_OWN_TIME = re.compile(r"\b[A-Z]+ ((\d\d)-(\d\d) (\d\d):(\d\d):(\d\d))\b")
_OUTER_TIME = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?)\s")
_LITERAL = r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|None)"""
_TEXTS = {key: re.compile(rf"\b{key}: {_LITERAL}") for key in ("prompt", "output")}
_IDS = {key: re.compile(rf"\b{key}_token_ids: \[([\d, ]+)\]") for key in ("prompt", "output")}
_ADAPTER = re.compile(rf"\blora_request: LoRARequest\(lora_name={_LITERAL}")
_LIMIT = re.compile(r"\bmax_tokens=(\d+)")
_SAMPLES = re.compile(r"SamplingParams\(n=(\d+)")
_ANY_NAME = Text(optional=True)
_DAY_S = 86_400
_YEAR_DAYS = 365


def detect(head: Head) -> bool:
    return head.shape == "log"


def vllm_log(source: Source) -> pd.DataFrame:
    log = _Log(source)
    for number, line in files.lines(source.path):
        try:
            log.take(number, line)
        except BadRow as why:
            source.reject(number, why)
    return log.table()


@dataclass(slots=True)
class _Logged:
    """A request as far as the log tells it."""

    line: int
    ticks: int
    shown: str
    prompt: int | None
    limit: int | None
    samples: int
    adapter: str
    output: int | None = None


@dataclass(slots=True)
class _Log:
    source: Source
    requests: dict[str, _Logged] = field(default_factory=dict)
    answered: bool = False
    outer: bool | None = None
    last_day: int = 0
    years: int = 0

    def take(self, number: int, line: bytes) -> None:
        """Whatever a line tells of a request; raises BadRow."""
        text = line.decode("utf-8", errors="replace")
        if (event := _EVENT.search(text)) is None:
            return
        what, name, stream, rest = event.groups()
        if what == "Received request":
            if name in self.requests:
                raise BadRow(f"request {name} is received twice", "received twice")
            prompt, behind = self._tokens(rest, "prompt")
            limit, samples, adapter = (form.search(behind) for form in (_LIMIT, _SAMPLES, _ADAPTER))
            self.requests[name] = _Logged(
                number,
                *self._time(text[: event.start()]),
                prompt,
                _count(limit.group(1)) if limit else None,
                _count(samples.group(1)) if samples else 1,
                _ANY_NAME.parse(ast.literal_eval(adapter.group(1))) if adapter else "",
            )
        elif (asked := self._of(name)) is None or stream == "streaming delta":
            return
        elif what == "Request":
            asked.prompt = self._tokens(rest, "prompt")[0] if asked.prompt is None else asked.prompt
        else:
            self.answered = True
            asked.output = self._tokens(rest, "output")[0]

    def table(self) -> pd.DataFrame:
        kept: dict[str, dict[str, Any]] = {}
        for name, asked in self.requests.items():
            try:
                if (row := self._row(name, asked)) is not None:
                    kept[name] = row
            except BadRow as why:
                self.source.reject(asked.line, why)
        if not kept:
            self.source.nothing()
        if self.answered:
            self.source.notes.append("Output lengths are those of the answers that the log holds.")
        else:
            self.source.notes.append(
                "Output lengths are max_tokens, the most that each request may write (vLLM logs answers with "
                "--enable-log-outputs)."
            )
        first = min((self.requests[name] for name in kept), key=lambda one: one.ticks)
        stamps = "the stamps before the lines" if self.outer else "the times of the lines, in whole seconds"
        self.source.notes.append(f"Arrivals are {stamps}, counted from {first.shown}.")
        found = pd.DataFrame(list(kept.values()))
        if not found["adapter"].any():
            del found["adapter"]
        return found.assign(arrival_s=(found["arrival_s"] - found["arrival_s"].min()) / 1e9)

    def _row(self, name: str, asked: _Logged) -> dict[str, Any] | None:
        if self.answered and asked.output is None:
            self.source.dropped["requests whose answer is not logged"] += 1
            return None
        output = asked.output if self.answered else asked.limit
        if asked.prompt is None:
            raise BadRow(f"request {name}: the log tells neither its prompt nor its prompt_token_ids", "no prompt")
        if output is None:
            raise BadRow(f"request {name}: the log tells neither max_tokens nor an answer", "no output length")
        return {
            "arrival_s": asked.ticks,
            "prompt_tokens": asked.prompt,
            "output_tokens": output,
            "source_row": asked.line,
            "samples": asked.samples,
            "adapter": asked.adapter,
        }

    def _of(self, name: str) -> _Logged | None:
        """The request of that name; an answer may lack the number that its prompt has in a completion of several."""
        return self.requests.get(name) or self.requests.get(f"{name}-0")

    def _tokens(self, text: str, side: str) -> tuple[int | None, str]:
        """(tokens of a side, where they are told, and what stands behind its text): a text may hold anything."""
        literal = _TEXTS[side].search(text)
        behind = text[literal.end() :] if literal else text
        if ids := _IDS[side].search(behind):
            return ids.group(1).count(",") + 1, behind
        if literal is None or literal.group(1) == "None":
            return None, behind
        try:
            return self.source.tokens(str(ast.literal_eval(literal.group(1)))), behind
        except (ValueError, SyntaxError):
            raise BadRow(f"its {side} is no text as Python writes one", f"{side}: no text") from None

    def _time(self, before: str) -> tuple[int, str]:
        """(nanoseconds, the time as it stands); of one kind in all lines, since the two clocks are not one."""
        outer = _OUTER_TIME.search(before)
        if self.outer is None:
            self.outer = outer is not None
        if self.outer:
            if outer is None:
                raise BadRow("lacks the runtime's stamp that the first request has", "no stamp")
            return Stamp().parse(outer.group(1)), outer.group(1)
        own = _OWN_TIME.search(before)
        if own is None:
            raise BadRow("has no time such as INFO 08-21 10:00:00 before it", "no time")
        month, day, hour, minute, second = map(int, own.groups()[1:])
        try:
            date = datetime(2000 if (month, day) == (2, 29) else 2001, month, day, hour, minute, second)
        except ValueError:
            raise BadRow(f"{own.group(1)} is no date and time", "no such date") from None
        ordinal = date.timetuple().tm_yday
        self.years += ordinal < self.last_day - _YEAR_DAYS // 2
        self.last_day = ordinal
        seconds = (self.years * _YEAR_DAYS + ordinal) * _DAY_S + hour * 3600 + minute * 60 + second
        return seconds * 10**9, own.group(1)


def _count(text: str) -> int:
    return Count().parse(int(text) if len(text) < 20 else 10**20)
