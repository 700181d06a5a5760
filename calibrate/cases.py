"""What is measured: steps of the live backend on a grid, between its points, and at random. It runs nothing.

Operations are timed where they run, inside whole steps: a grid is therefore one of steps, and every step yields points
of all its operations. Prefill steps give matrices and norms by tokens, and attention by new and past tokens; decode
steps give attention by sequences and context; mixed ones what a step costs beside its operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sim.engine.batch import Shape

GRID, BETWEEN, STEPS = "grid", "between", "steps"
PAIRS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Tile edges: a product of one row more takes a whole tile more, so that both sides are measured."""


@dataclass(frozen=True, slots=True)
class Case:
    """A step: `prefills` are (new, past) tokens of each slice, `decodes` the contexts of the rows, new token included.

    `role` is what its measurements are for: "grid" points are fitted, those "between" and whole "steps" never are.
    """

    prefills: tuple[tuple[int, int], ...] = ()
    decodes: tuple[int, ...] = ()
    role: str = GRID

    @property
    def name(self) -> str:
        slices = ";".join(f"{new}+{past}" for new, past in self.prefills) or "-"
        even = len(set(self.decodes)) == 1
        rows = f"{len(self.decodes)}x{self.decodes[0]}" if even else ",".join(map(str, self.decodes))
        return f"{self.role} prefill {slices} decode {rows or '-'}"

    @classmethod
    def named(cls, name: str) -> Case:
        """The case that goes by this name: nothing of it is lost in its name.

        Raises:
            ValueError: no case has such a name.
        """
        role, prefill, slices, decode, rows = name.split(" ")
        if (prefill, decode) != ("prefill", "decode") or role not in (GRID, BETWEEN, STEPS):
            raise ValueError(f"{name!r} is the name of no case")
        pairs = [] if slices == "-" else [one.split("+") for one in slices.split(";")]
        prefills = tuple((int(new), int(past)) for new, past in pairs)
        if "x" in rows:
            count, context = rows.split("x")
            return cls(prefills, (int(context),) * int(count), role)
        return cls(prefills, () if rows == "-" else tuple(map(int, rows.split(","))), role)

    @property
    def shape(self) -> Shape:
        """What a cost model is told of it."""
        longest = max(self.decodes, default=0)
        return Shape(self.prefills, len(self.decodes), sum(self.decodes), decode_longest=longest)

    @property
    def kv_tokens(self) -> int:
        return sum(self.decodes) + sum(new + past for new, past in self.prefills)


@dataclass(frozen=True, slots=True)
class Range:
    """The largest steps to measure: new tokens of a step, rows of a decode batch, context of a row, tokens cached."""

    tokens: int
    rows: int
    context: int
    cached_tokens: int

    def holds(self, case: Case) -> bool:
        longest = max([0, *case.decodes, *(new + past for new, past in case.prefills)])
        return longest <= self.context and case.kv_tokens <= self.cached_tokens


@dataclass(frozen=True, slots=True)
class Density:
    """How fine the grid is: neighbours differ by `ratio`; `random` points between and whole steps; passes, repeats."""

    ratio: int
    random: int
    passes: int
    repeats: int


DENSITIES = (
    Density(2, 40, 3, 5),
    Density(2, 32, 2, 3),
    Density(4, 32, 2, 3),
    Density(4, 20, 2, 1),
    Density(8, 12, 2, 1),
)
"""From the finest; the first that fits into the budget is taken."""


def cases(limits: Range, density: Density, seed: int) -> list[Case]:
    rng = np.random.default_rng([seed, 5])
    grid = [case for case in _grid(limits, density.ratio) if limits.holds(case)]
    known = {(case.prefills, case.decodes) for case in grid}
    random = [*_between(limits, density.random, rng), *_steps(limits, density.random, rng)]
    # What happens to be a point of the grid can tell no error.
    unseen = [case for case in random if limits.holds(case) and (case.prefills, case.decodes) not in known]
    return list(dict.fromkeys([*grid, *unseen]))


def alike(every: Iterable[Case]) -> list[Case]:
    """Those of prompts alone or decode rows alone, all alike: what one operation can be asked, and no whole step."""
    return [
        case
        for case in every
        if case.role != STEPS
        and bool(case.prefills) != bool(case.decodes)
        and len({*case.prefills, *case.decodes}) == 1
    ]


def chosen(
    limits: Range, budget_s: float, seed: int, seconds: Callable[[list[Case], Density], float]
) -> tuple[Density, float]:
    """(the finest density whose expected `seconds` fit into the budget, or the coarsest; its seconds)."""
    for density in DENSITIES:
        expected_s = seconds(cases(limits, density, seed), density)
        if expected_s <= budget_s:
            break
    return density, expected_s


def describe(
    models: Iterable[str], measured: Sequence[Case], density: Density, groups: Sequence[int] = ()
) -> dict[str, str]:
    """What a calibration measures of each of these models, and of groups of GPUs, in words."""
    grid = [case for case in measured if case.role == GRID]
    even = [case.decodes for case in grid if len(set(case.decodes)) == 1 and not case.prefills]
    sizes = {
        "prefill_tokens": {new for case in grid for new, _ in case.prefills if not case.decodes},
        "prefill_past_tokens": {past for case in grid for _, past in case.prefills if not case.decodes},
        "prefill_sequences": {len(case.prefills) for case in grid if case.prefills and not case.decodes},
        "decode_sequences": {len(rows) for rows in even},
        "decode_context_tokens": {rows[0] for rows in even},
    }
    sizes["collectives_gpus"] = set(groups)
    counts = {role: sum(case.role == role for case in measured) for role in (GRID, BETWEEN, STEPS)}
    texts = {name: ", ".join(map(str, sorted(values))) for name, values in sizes.items() if values}
    return {
        "models": "; ".join(models),
        **texts,
        "cases": f"{counts[GRID]} fitted, {counts[BETWEEN]} between, {counts[STEPS]} whole steps",
        "passes": f"{density.passes}, the middle of {density.repeats} in each",
    }


def _sizes(least: int, most: int, ratio: int) -> list[int]:
    sizes = []
    size = least
    while size < most:
        sizes.append(size)
        size *= ratio
    return [*sizes, most]


def _grid(limits: Range, ratio: int) -> Iterator[Case]:
    tokens, rows = _sizes(1, limits.tokens, ratio), _sizes(1, limits.rows, ratio)
    edges = [edge for edge in PAIRS if edge < limits.tokens and ratio == 2]
    for new in sorted({*tokens, *edges, *(edge + 1 for edge in edges)}):
        yield Case(((new, 0),))
    pasts = _sizes(128, limits.context - limits.tokens, 2 * ratio) if limits.context > limits.tokens + 128 else []
    for past in pasts:
        for new in _sizes(8, limits.tokens, 2 * ratio):
            yield Case(((new, past),))
    for past in (0, *pasts[-1:]):
        for new in _sizes(8, limits.tokens // 4, 2 * ratio):
            yield Case(((new, past),) * 4)
    contexts = _sizes(16, limits.context, ratio)
    for count in rows:
        for context in contexts:
            yield Case(decodes=(context,) * count)
    for count in rows[1::2]:  # one long context among short ones
        long = limits.context // 2
        yield Case(decodes=(long, *((max(2, long // 8),) * (count - 1))))
    middle = contexts[len(contexts) // 2]
    for count in rows[:: 2 if len(rows) > 3 else 1]:
        for new in _sizes(8, limits.tokens, 4 * ratio):
            yield Case(((new, 0),), (middle,) * count)


def _between(limits: Range, count: int, rng: np.random.Generator) -> Iterator[Case]:
    """Points inside the grid, spread evenly over its octaves: half prefill, half decode."""
    for number in range(count):
        if number % 2:
            past = _spread(rng, 1, limits.context - limits.tokens) if number % 4 == 1 else 0
            yield Case(((_spread(rng, 8, limits.tokens), past),), role=BETWEEN)
        else:
            context, rows = _spread(rng, 16, limits.context), _spread(rng, 1, limits.rows)
            yield Case(decodes=(context,) * rows, role=BETWEEN)


def _steps(limits: Range, count: int, rng: np.random.Generator) -> Iterator[Case]:
    """Whole steps as serving has them: decode batches even and uneven, chunks of prompts, both together."""
    for number in range(count):
        kind = ("decode", "mixed", "uneven", "prefill")[number % 4]
        rows, middle = _spread(rng, 1, limits.rows), _spread(rng, 32, limits.context // 2)
        if kind == "uneven":
            contexts = [_spread(rng, 2, limits.context) for _ in range(rows)]
        else:
            contexts = [int(middle * rng.uniform(0.85, 1.15)) + 2 for _ in range(rows)]
        slices = []
        for _ in range(int(rng.integers(1, 4))):
            past = _spread(rng, 1, limits.context - limits.tokens) if rng.random() < 0.3 else 0
            slices.append((_spread(rng, 8, limits.tokens // 3), past))
        step = Case(tuple(slices), tuple(contexts), STEPS)
        if kind == "prefill":
            step = replace(step, decodes=())
        yield step if kind in ("prefill", "mixed") else replace(step, prefills=())


def _spread(rng: np.random.Generator, least: int, most: int) -> int:
    """A whole number from `least` to `most`, evenly by octave."""
    return round(float(np.exp(rng.uniform(np.log(least), np.log(max(most, least))))))
