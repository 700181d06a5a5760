"""Synthetic traces: arrivals x lengths x sessions x shared prefixes. Everything random comes from the rng given."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from traces import arrivals, blocks
from traces.late import pd
from traces.lengths import Counts, FromTrace, Independent, Pairs, parse
from traces.reader import SYNTHETIC_NOTE, read
from traces.rows import in_order, validate
from traces.schema import MAX_REQUESTS, InputError, Trace

Floats = npt.NDArray[np.float64]
Arrivals = Callable[[int, np.random.Generator], Floats]
Number = TypeVar("Number", np.int64, np.float64)
MOST_PREFIX_TOKENS = 10**9
PROCESSES = ("poisson", "gamma", "weibull", "constant", "diurnal")


@dataclass(frozen=True, slots=True)
class Sessions:
    """Conversations: geometric turns, lognormal think time; a later prompt repeats all before it and adds its own."""

    next_turn: float = 1 / 6
    most_turns: int = 11
    think_median_s: float = 60.0
    think_sigma: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.next_turn < 1:
            raise InputError(f"next_turn is {self.next_turn}; it must be at least 0 and below 1")
        if self.most_turns < 1:
            raise InputError(f"most_turns is {self.most_turns}; it must be at least 1")
        if not (self.think_median_s > 0 and self.think_sigma >= 0):
            raise InputError("the median of think times must be above 0 and their sigma at least 0")

    def mean_turns(self) -> float:
        return sum(self.next_turn**turn for turn in range(self.most_turns))

    def turns(self, count: int, rng: np.random.Generator) -> Counts:
        if self.next_turn == 0:
            return np.ones(count, dtype=np.int64)
        return np.minimum(rng.geometric(1 - self.next_turn, count), self.most_turns).astype(np.int64)

    def think_s(self, count: int, rng: np.random.Generator) -> Floats:
        return np.exp(math.log(self.think_median_s) + self.think_sigma * rng.standard_normal(count))


@dataclass(frozen=True, slots=True)
class Prefixes:
    """`count` system prompts of `tokens` tokens, one of which opens each session; drawn evenly."""

    count: int
    tokens: int
    block_tokens: int = 16

    def __post_init__(self) -> None:
        if self.count < 1 or self.tokens < 0 or self.block_tokens < 1:
            raise InputError("prefixes need a count and a block size of at least 1, and 0 tokens or more")
        if self.count * self.tokens > MOST_PREFIX_TOKENS:
            raise InputError(
                f"{self.count:,} prefixes of {self.tokens:,} tokens are more than {MOST_PREFIX_TOKENS:,} tokens in all"
            )


def process(name: str, rate_per_s: float, cv: float | None = None, start_hour: float | None = None) -> Arrivals:
    """An arrival process by name. `cv` is for gamma and weibull, `start_hour` for diurnal; elsewhere it is refused."""
    if name not in PROCESSES:
        raise InputError(f"unknown arrival process {name!r}; known are {', '.join(PROCESSES)}")
    if cv is not None and name not in ("gamma", "weibull"):
        raise InputError(f"cv does not apply to {name} arrivals; it does to gamma and weibull")
    if start_hour is not None and name != "diurnal":
        raise InputError(f"start_hour does not apply to {name} arrivals; it does to diurnal")
    if name == "constant":
        return lambda count, rng: arrivals.constant(count, rate_per_s)
    if name == "poisson":
        return lambda count, rng: arrivals.poisson(count, rate_per_s, rng)
    if name == "diurnal":
        return lambda count, rng: arrivals.diurnal(count, rate_per_s, rng, start_hour=start_hour or 0.0)
    draw = arrivals.gamma if name == "gamma" else arrivals.weibull
    return lambda count, rng: draw(count, rate_per_s, rng, 2.0 if cv is None else cv)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A synthetic trace in plain values, as the command line gives them; lengths as `traces.lengths.parse` reads them.

    `make` refuses a value that the others leave without effect.
    """

    count: int
    rate: float
    arrivals: str = "poisson"
    cv: float | None = None
    start_hour: float | None = None
    prompt: str | None = None
    output: str | None = None
    lengths_from: str | None = None
    next_turn: float | None = None
    think: float | None = None
    prefixes: int | None = None
    prefix_tokens: int | None = None

    def make(self, rng: np.random.Generator, name: str = "synthetic") -> Trace:
        """The trace; `rate` counts requests, so sessions start at rate / mean turns."""
        if self.think is not None and self.next_turn is None:
            raise InputError("think needs next_turn: without it there are no sessions")
        if self.prefix_tokens is not None and self.prefixes is None:
            raise InputError("prefix_tokens needs prefixes, the number of them")
        sessions = None
        if self.next_turn is not None:
            sessions = Sessions(self.next_turn, think_median_s=60.0 if self.think is None else self.think)
        prefixes = None
        if self.prefixes is not None:
            prefixes = Prefixes(self.prefixes, 256 if self.prefix_tokens is None else self.prefix_tokens)
        starts = process(
            self.arrivals, self.rate / (sessions.mean_turns() if sessions else 1.0), self.cv, self.start_hour
        )
        return synthesise(self.count, starts, self._lengths(), rng, sessions=sessions, prefixes=prefixes, name=name)

    def _lengths(self) -> Pairs:
        if self.lengths_from is not None:
            if self.prompt is not None or self.output is not None:
                raise InputError("lengths_from and prompt or output exclude one another")
            return FromTrace(read(self.lengths_from))
        if self.prompt is None or self.output is None:
            raise InputError("lengths are missing: give prompt and output, or lengths_from")
        return Independent(parse(self.prompt), parse(self.output))


def synthesise(
    count: int,
    starts: Arrivals,
    lengths: Pairs,
    rng: np.random.Generator,
    *,
    sessions: Sessions | None = None,
    prefixes: Prefixes | None = None,
    name: str = "synthetic",
) -> Trace:
    """`count` requests. With sessions, `starts` gives the arrivals of first turns, and later turns stand after the
    turn before by its think time (service times are unknown here).
    """
    turns = _turns(count, sessions, rng)
    first = np.cumsum(turns) - turns
    session = np.repeat(np.arange(len(turns)), turns)
    turn = np.arange(count) - first[session]
    prompt, output = lengths.draw(count, rng)
    after = np.where(turn > 0, np.arange(count) - 1, -1)
    think = np.where(turn > 0, sessions.think_s(count, rng), 0.0) if sessions else np.zeros(count)
    which = rng.integers(0, prefixes.count if prefixes else 1, len(turns))[session]
    prompt = prompt + np.where(turn == 0, prefixes.tokens if prefixes else 0, 0)
    prompt = _since_start(prompt, first, session) + _since_start(output, first, session) - output
    table = pd.DataFrame(
        {
            "arrival_s": starts(len(turns), rng)[session] + _since_start(think, first, session),
            "prompt_tokens": prompt.astype(np.int64),
            "output_tokens": output,
            "source_row": np.arange(1, count + 1),
        }
    )
    if sessions:
        table["session"] = ("s" + pd.Series(session).astype("string")).astype("string")
        table["turn"], table["after"], table["think_s"] = turn, after, think
    if prefixes:
        table["prefix_blocks"] = pd.Series(_blocks(prefixes, which, after, prompt, output), dtype=object)
        table["prefix_block_tokens"] = prefixes.block_tokens
    table, _ = validate(table, name)
    return Trace(in_order(table), name=name, kind="synthetic", synthetic=True, notes=(SYNTHETIC_NOTE,))


def _turns(count: int, sessions: Sessions | None, rng: np.random.Generator) -> Counts:
    """Turns of each session, `count` in all: the last session is cut."""
    if not 1 <= count <= MAX_REQUESTS:
        raise InputError(f"count is {count}; it must be at least 1 and at most {MAX_REQUESTS:,}")
    if sessions is None:
        return np.ones(count, dtype=np.int64)
    turns = sessions.turns(count, rng)
    used = int(np.searchsorted(np.cumsum(turns), count)) + 1
    turns = turns[:used]
    turns[-1] -= turns.sum() - count
    return turns


def _since_start(values: npt.NDArray[Number], first: Counts, session: Counts) -> npt.NDArray[Number]:
    """Sums within each session up to and including each row."""
    total = np.cumsum(values)
    before = np.concatenate([np.zeros(1, dtype=total.dtype), total[first[1:] - 1]])
    since: npt.NDArray[Number] = total - before[session]
    return since


def _blocks(
    prefixes: Prefixes, which: Counts, after: Counts, prompt: Counts, output: Counts
) -> list[npt.NDArray[np.int64]]:
    whole = prefixes.tokens // prefixes.block_tokens
    heads = [np.arange(one * whole, (one + 1) * whole) for one in range(prefixes.count)]
    return blocks.of_sessions(after, prompt, output, prefixes.block_tokens, [heads[one] for one in which])
