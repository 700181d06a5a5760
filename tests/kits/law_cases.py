"""Random workloads that run short of everything, for the laws that hold for every policy with every allocator.

Set LAW_EXAMPLES to a larger number for a longer, random search; by default the examples are the same in each run.
"""

from __future__ import annotations

import os
import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from engine_kit import Setup
from hypothesis import settings
from hypothesis import strategies as st

from sim.cost.fixed import FixedCost
from sim.engine.batch import Limits
from sim.engine.memory import KvPool
from sim.engine.request import BeamDraw, Request
from sim.engine.step import Step
from sim.serving.source import Workload

EXAMPLES = int(os.environ.get("LAW_EXAMPLES", "0"))
laws = settings(max_examples=EXAMPLES or 20)
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "static": [{}, {"batch_size": 3, "timeout_s": 0.002}],
    "continuous": [{"order": "prefill-first"}, {"order": "decode-first"}],
    "chunked": [{}, {"long_prefill_token_threshold": 5}],
    "sjf": [{}, {"by": "total", "long_prefill_token_threshold": 7}],
    "paged": [{}, {"watermark": 0.1}, {"reserve_full_prompt": False}],
    "prefix": [{}, {"reserve_full_prompt": False}],
    "contiguous-oracle": [{"fit": "first"}, {"fit": "best"}],
}
# Durations that floats hold exactly, so that arrivals fall on step boundaries, and some that they do not.
COSTS = (
    FixedCost(2.0**-10),
    FixedCost(2.0**-10, 2.0**-14, 2.0**-18),
    FixedCost(0.001, 0.0003, 1e-5),
)


class Row(NamedTuple):
    """One request of a random workload."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    priority: int = 0
    prefix: tuple[int, ...] = ()
    samples: int = 1
    beams: bool = False
    session: int = -1
    """A row follows the one before it of the same session, `think_s` after that has ended; -1 is no session."""
    think_s: float = 0.0


class Draws:
    """Chooses the beams that go on, and remembers what it chose."""

    def __init__(self, index: int, churn: float) -> None:
        self._rng = random.Random(index)
        self._churn = churn
        self.counts: list[list[int]] = []

    def __call__(self, beams: int) -> list[int]:
        rng = self._rng
        chosen = [rng.randrange(beams) if rng.random() < self._churn else at for at in range(beams)]
        self.counts.append([chosen.count(at) for at in range(beams)])
        return self.counts[-1]


@dataclass
class Case:
    """One random scenario."""

    setup: Setup
    rows: list[Row]
    unit_tokens: int
    churn: float = 0.5

    def requests(self) -> list[Request]:
        work = self.workload()
        return [work.request(at, work.arrival_s[at]) for at in range(len(work))]

    def workload(self) -> Workload:
        arrival_s, prompt, output, priority, prefix, samples, _, sessions, think_s = (
            list(column) for column in zip(*self.rows, strict=True)
        )
        newest: dict[int, int] = {}
        after = []
        for at, session in enumerate(sessions):
            after.append(newest.get(session, -1) if session >= 0 else -1)
            newest[session] = at
        return Workload(
            arrival_s,
            prompt,
            output,
            priority,
            prefix,
            self.unit_tokens,
            after=after,
            think_s=think_s,
            samples=samples,
            draw_beams=self._draws,
        )

    def _draws(self, index: int) -> BeamDraw:
        return Draws(index, self.churn) if self.rows[index].beams else None  # type: ignore[return-value]

    def admissible(self) -> Case:
        """Without the requests that the engine refuses."""
        engine = self.setup.engine()
        kept = [row for row, req in zip(self.rows, self.requests(), strict=True) if engine.refusal(req) is None]
        return replace(self, rows=kept)

    def without_spans(self) -> Case:
        return replace(self, setup=replace(self.setup, spans=False))


def chained(units: tuple[int, ...]) -> tuple[int, ...]:
    """Names of units that each tell all units before them too: the path's number in a tree of three branches."""
    path, names_of = 0, []
    for unit in units:
        path = 3 * path + 1 + unit
        names_of.append(path)
    return tuple(names_of)


@st.composite
def cases(draw: st.DrawFn, policy: Any, allocator: str, most_samples: int = 1) -> Case:
    """Few seats, a small budget and a pool that holds little more than the largest request."""
    cost = draw(st.sampled_from(COSTS))
    horizon = draw(st.sampled_from([0, 6, 60]))
    sessions, users = draw(st.sampled_from([(False, 0), (False, 2), (True, 0), (True, 3)]))
    row = st.builds(
        Row,
        st.integers(0, horizon).map(lambda steps: steps * cost.base_s / 2),
        st.integers(1, 30),
        st.integers(1, 24 if most_samples == 1 else 12),
        st.integers(0, 2),
        st.lists(st.integers(0, 1), max_size=6).map(lambda units: chained(tuple(units))),
        st.integers(1, most_samples),
        st.booleans() if most_samples > 1 else st.just(False),
        st.sampled_from([-1, 0, 1]) if sessions else st.just(-1),
        st.sampled_from([0.0, 0.0, cost.base_s, 0.0123]),
    )
    count = draw(st.sampled_from([1, 2, 3, 5, 7, 9] if most_samples == 1 else [1, 2, 4, 6]))
    rows = sorted(draw(st.lists(row, min_size=count, max_size=count)), key=lambda one: one[0])
    longest = max(one.prompt_tokens + one.output_tokens for one in rows)
    block_tokens = draw(st.sampled_from([1, 2, 4, 8]))
    blocks = -(-(longest + draw(st.integers(0, longest))) // block_tokens)
    if most_samples > 1:
        each = [-(-(one.prompt_tokens + one.output_tokens - 1) // block_tokens) for one in rows]
        full = [0 if allocator.startswith("contiguous") else one.prompt_tokens // block_tokens for one in rows]
        blocks = max(at + (one.samples - 1) * (at - shared) for at, shared, one in zip(each, full, rows, strict=True))
        blocks += draw(st.integers(0, max(each)))
    setup = Setup(
        policy,
        allocator,
        draw(st.sampled_from(VARIANTS.get(policy, [{}]))) if isinstance(policy, str) else {},
        draw(st.sampled_from(VARIANTS.get(allocator, [{}]))),
        KvPool(blocks, block_tokens, draw(st.sampled_from([longest, 40]))),
        Limits(
            max_num_seqs=draw(st.sampled_from([1, 2, 3, 4, 6] if most_samples == 1 else [3, 5, 8])),
            max_num_batched_tokens=draw(st.sampled_from([1, 2, 5, 16, 64])),
            chunked_prefill=draw(st.sampled_from([True, True, False])),
        ),
        cost,
        depth=draw(st.integers(1, 2)),
        concurrency=users,
        host_blocks=0 if allocator == "prefix" else draw(st.sampled_from([0, 0, 3, 100])),
    )
    return Case(setup, rows, draw(st.sampled_from([1, 3, 4, 8])), draw(st.sampled_from([0.1, 0.5, 1.0])))


def pressed(seed: int, policy: str, allocator: str, most_samples: int = 1) -> Case:
    """Two dozen requests of which about three fit at a time, coming in clumps."""
    rng = random.Random(seed)
    rows = [
        Row(
            rng.randrange(12) * 0.004,
            rng.choice((1, 3, 9, 14, 22)),
            rng.choice((1, 4, 11, 19)),
            rng.randrange(3),
            chained(tuple(rng.randrange(2) for _ in range(rng.randrange(6)))),
            *((rng.randint(1, most_samples), rng.random() < 0.5) if most_samples > 1 else ()),
        )
        for _ in range(24)
    ]
    # Enough for the largest request alone.
    blocks = 22 if most_samples == 1 else 54 if allocator.startswith("contiguous") else 28
    setup = Setup(
        policy,
        allocator,
        rng.choice(VARIANTS.get(policy, [{}])),
        rng.choice(VARIANTS.get(allocator, [{}])),
        KvPool(blocks, 3, 45),
        Limits(
            rng.choice((4, 6) if most_samples == 1 else (8, 12)), 200 if policy == "static" else rng.choice((4, 24))
        ),
        COSTS[seed % 3],
        depth=1 + seed % 2,
        concurrency=5 if seed % 4 == 3 else 0,
        host_blocks=0 if allocator == "prefix" else rng.choice((0, 2, 6)),
    )
    return Case(setup, sorted(rows, key=lambda row: row[0]), 4)


class Chaos:
    """Grants and evicts at random, for so many calls; then like the chunked policy, so that the run ends.

    It never evicts the first of the running list, lest a step compute nothing.
    """

    def __init__(self, seed: int, *, every_step: bool, holds_finished: bool, calls: int = 120) -> None:
        self._rng = random.Random(seed)
        self._calls = calls
        self.every_step = every_step
        self.holds_finished = holds_finished

    def victim(self, running: Collection[Request]) -> Request:
        return self._rng.choice(list(running)) if self._calls > 0 else list(running)[-1]

    def __call__(self, step: Step) -> None:
        rng = self._rng
        self._calls -= 1
        for _ in range(rng.randrange(7) if self._calls > 0 else 0):
            verb = rng.choice(("advance", "advance", "grant", "grant", "admit", "admit", "evict"))
            some = list(step.waiting if verb == "admit" else step.running)
            if verb == "advance":
                step.advance_running(rng.choice((0, 0, 1, 4)))
            elif verb == "evict" and len(some) > 1:
                step.evict(rng.choice(some[1:]))
            elif some and verb != "evict":
                step.grant(rng.choice(some), rng.choice((0, 1, 3)), whole=rng.random() < 0.3)
        if not step.entries and not step.advanced:
            step.advance_running()
            for req in step.waiting:
                if not step.grant(req):
                    break
