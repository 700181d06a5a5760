"""Scenarios for two engines: what both are told, and a random choice of what runs short of everything."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from drafting_kit import Drafts
from engine_kit import Setup
from hypothesis import strategies as st
from law_cases import COSTS, VARIANTS

from sim.cost.fixed import FixedCost
from sim.engine.batch import Limits, Shape
from sim.engine.memory import KvPool
from sim.engine.request import Request
from sim.serving.source import Workload

PARAMETERS = {**VARIANTS, "static": [{}, *({"batch_size": rows, "timeout_s": 0.002} for rows in (2, 3, 6))]}
Slices = Sequence[tuple[int, int]]
"""(tokens computed, tokens computed before) of each row of a step."""


@dataclass(frozen=True)
class HostedCost(FixedCost):
    """A fixed cost and seconds of the host, which may be longer."""

    host_s: float = 0.0

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        return super().span_s(shape, repeats)[0], self.host_s


class Turn(NamedTuple):
    """One request. With `goes_on` its prompt repeats the prompt and the answer of `after`, and adds `prompt` tokens."""

    arrival_s: float
    prompt: int
    output: int
    priority: int = 0
    shared: tuple[int, ...] = ()
    after: int = -1
    think_s: float = 0.0
    goes_on: bool = False


class Ask(NamedTuple):
    """What a request asks for. `text` tells the first tokens, which others may have too; the rest is its own."""

    arrival_s: float
    prompt: int
    output: int
    priority: int
    text: tuple[Any, ...]
    after: int
    think_s: float

    @property
    def total(self) -> int:
        return self.prompt + self.output


@dataclass(frozen=True)
class Scenario:
    """Everything that both engines are told."""

    policy: str
    allocator: str
    turns: tuple[Turn, ...]
    parameters: dict[str, Any]
    allocator_parameters: dict[str, Any]
    blocks: int
    block_tokens: int
    limits: Limits
    cost: HostedCost
    depth: int
    users: int = 0
    unit_tokens: int = 4
    spans: bool = True
    drafts: int = 0
    right: tuple[int, ...] = ()

    # ---- the requests -----------------------------------------------------------------------------------------------

    def prompts(self) -> list[int]:
        lengths: list[int] = []
        for turn in self.turns:
            before = lengths[turn.after] + self.turns[turn.after].output if turn.goes_on else 0
            lengths.append(before + turn.prompt)
        return lengths

    def units(self) -> tuple[list[tuple[Any, ...]], list[int]]:
        """Of each request: the units of its text that others may have too, and how many tokens they speak for."""
        prompts, size, units = self.prompts(), self.unit_tokens, []
        for at, turn in enumerate(self.turns):
            if turn.goes_on:
                before = units[turn.after]
                text = prompts[turn.after] + self.turns[turn.after].output
                # The answer is the parent's own, whoever goes on from it.
                before += [("answer", turn.after)] * (text // size - len(before))
                units.append(list(before))
            else:
                units.append(list(turn.shared[: prompts[at] // size]))
        known = [max(len(own) * size, prompt) for own, prompt in zip(units, prompts, strict=True)]
        return [tuple(own) for own in units], known

    @cached_property
    def asks(self) -> list[Ask]:
        units, _ = self.units()
        size = self.unit_tokens
        return [
            Ask(
                turn.arrival_s,
                prompt,
                turn.output,
                turn.priority,
                tuple((own[: at // size + 1], at) for at in range(len(own) * size)),
                turn.after,
                turn.think_s,
            )
            for turn, prompt, own in zip(self.turns, self.prompts(), units, strict=True)
        ]

    def workload(self) -> Workload:
        units, known = self.units()
        names: dict[tuple[Any, ...], int] = {}
        ids = [[names.setdefault(own[: at + 1], len(names)) for at in range(len(own))] for own in units]
        turns = self.turns
        return Workload(
            [turn.arrival_s for turn in turns],
            self.prompts(),
            [turn.output for turn in turns],
            [turn.priority for turn in turns],
            ids,
            self.unit_tokens,
            known,
            [turn.after for turn in turns],
            [turn.think_s for turn in turns],
        )

    # ---- what a request takes ---------------------------------------------------------------------------------------

    def seconds(self, slices: Slices) -> float:
        """What a step takes: two batches in flight hide the host's share behind the device."""
        cost = self.cost
        device_s = cost.base_s + cost.per_token_s * sum(new for new, _ in slices)
        device_s += cost.per_context_token_s * sum(new + past for new, past in slices)
        return max(device_s, cost.host_s) if self.depth == 2 else device_s + cost.host_s

    def accepted(self, request: int, verification: int) -> int:
        """How many drafts are right, at most, in a request's so many-th verification."""
        return self.right[(7 * request + verification) % len(self.right)] if self.right else 0

    @property
    def contiguous(self) -> bool:
        return self.allocator.startswith("contiguous")

    @cached_property
    def reserved_tokens(self) -> int:
        return max(ask.total for ask in self.asks) + 2 * self.drafts

    @property
    def watermark_blocks(self) -> int:
        return math.floor(self.allocator_parameters.get("watermark", 0.0) * self.blocks)

    def blocks_for(self, tokens: int) -> int:
        return math.ceil(tokens / self.block_tokens)

    def slots(self, ask: Ask) -> int:
        """Slots that a request may come to write: all tokens but the last, and drafts as far as there are positions."""
        answer, longest = ask.total - 1, self.limits.max_model_len
        most = answer + self.drafts * self.depth
        return min(most, max(longest - 1, answer)) if longest and self.drafts else most

    def reservation(self, ask: Ask) -> int:
        """Blocks that a contiguous allocator sets aside."""
        if self.allocator == "contiguous-max":
            return self.blocks_for(self.reserved_tokens)
        rounded = 1
        while rounded < ask.output:
            rounded *= 2
        pow2 = ask.prompt + rounded if self.allocator == "contiguous-pow2" else 0
        return self.blocks_for(max(pow2, self.slots(ask)))

    # ---- the product ------------------------------------------------------------------------------------------------

    def setup(self) -> Setup:
        pool = KvPool(self.blocks, self.block_tokens, self.reserved_tokens)
        plain = (self.policy, self.allocator, self.parameters, self.allocator_parameters, pool, self.limits, self.cost)
        told: dict[str, Any] = {"depth": self.depth, "spans": self.spans, "concurrency": self.users}
        if not self.drafts:
            return Setup(*plain, **told)
        asked: Counter[int] = Counter()

        def draw(req: Request, drafts: int) -> int:
            asked[req.id] += 1
            return min(self.accepted(req.id, asked[req.id] - 1), drafts)

        return Drafts(*plain, **told, base=self.policy, k=self.drafts, draw=draw)


@st.composite
def scenarios(draw: st.DrawFn, policy: str, allocator: str, *, drafting: bool = False) -> Scenario:
    """Few seats and blocks, a small budget, ties in arrivals, shared prefixes, sessions, closed loops."""
    cost = draw(st.sampled_from(COSTS))
    host_s = draw(st.sampled_from([0.0, 0.0, 1.5 * cost.base_s]))
    users = draw(st.sampled_from([0, 0, 0, 0, 2, 4, 7]))
    turns = draw(conversations(cost.base_s / 2, branching=not users))
    drafts = draw(st.integers(1, 4)) if drafting else 0
    whole = draw(st.sampled_from([False, False, True]))
    scenario = Scenario(
        policy,
        allocator,
        tuple(in_order(turns)),
        draw(st.sampled_from(PARAMETERS.get(policy, [{}, {"long_prefill_token_threshold": 5}]))),
        draw(st.sampled_from(VARIANTS.get(allocator, [{"fit": "first"}, {"fit": "best"}]))),
        1,
        draw(st.sampled_from([1, 2, 4, 8])),
        Limits(draw(st.sampled_from([1, 2, 3, 4, 6, 6, 8, 8])), draw(st.sampled_from([1, 2, 5, 16, 16, 64, 300]))),
        HostedCost(cost.base_s, cost.per_token_s, cost.per_context_token_s, host_s),
        draw(st.integers(1, 2)),
        users,
        draw(st.sampled_from([1, 3, 4, 8])),
        draw(st.sampled_from([True, True, False])),
        drafts,
        tuple(draw(st.lists(st.integers(0, drafts), min_size=1, max_size=6))) if drafting else (),
    )
    longest = max(ask.total for ask in scenario.asks)
    limits = replace(scenario.limits, max_model_len=draw(st.sampled_from([0, longest, longest + 3])))
    if whole:
        budget = longest + draw(st.sampled_from([0, 9, 90]))
        limits = replace(limits, chunked_prefill=False, max_num_batched_tokens=budget)
    need = most_blocks(replace(scenario, limits=limits))
    more = draw(st.sampled_from([0, 0, 0, 1, 2, need // 4, need // 2, need, 3 * need]))
    return replace(scenario, limits=limits, blocks=need + more)


@st.composite
def conversations(draw: st.DrawFn, half_s: float, *, branching: bool) -> list[Turn]:
    """Requests that come at once or apart, some of them after others have ended."""
    count = draw(st.sampled_from([1, 2, 3, 5, 8, 8, 12, 12]))
    # Where all are about as long, a pool that holds the largest holds few more than that.
    alike = draw(st.booleans())
    prompt = draw(st.integers(1, 27)).__add__
    lengths = st.integers(0, 3).map(prompt) if alike else st.integers(1, 30)
    horizon, thinking = draw(st.sampled_from([0, 6, 20, 60])), draw(st.sampled_from([0, 0, 3, 30]))
    following = draw(st.sampled_from([False, False, True]))
    turns: list[Turn] = []
    for at in range(count):
        turn = Turn(
            half_s * draw(st.integers(0, horizon)),
            draw(lengths),
            draw(st.integers(8, 24) if alike else st.integers(1, 24)),
            draw(st.integers(0, 2)),
            tuple(draw(st.lists(st.integers(0, 1), max_size=6))),
        )
        after = draw(st.integers(-at - 1, at - 1)) if following else -1
        if after >= 0 and (branching or all(other.after != after for other in turns)):
            goes_on = draw(st.booleans()) and not turns[after].goes_on
            turn = turn._replace(after=after, think_s=half_s * draw(st.integers(0, thinking)), goes_on=goes_on)
        turns.append(turn)
    return turns


def in_order(turns: list[Turn]) -> list[Turn]:
    """Rows stand in the order of their arrival times, which those that follow another do not use."""
    order = sorted(range(len(turns)), key=lambda at: turns[at].arrival_s if turns[at].after < 0 else math.inf)
    place = {old: new for new, old in enumerate(order)}
    return [turns[at]._replace(after=place.get(turns[at].after, -1)) for at in order]


def most_blocks(scenario: Scenario) -> int:
    """Blocks that the largest request needs, by itself."""
    if scenario.contiguous:
        return max(map(scenario.reservation, scenario.asks))
    need = blocks = max(scenario.blocks_for(scenario.slots(ask)) for ask in scenario.asks)
    while blocks - replace(scenario, blocks=blocks).watermark_blocks < need:
        blocks += 1
    return blocks
