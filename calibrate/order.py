"""In which order cases are measured: the most valuable first, so that a run cut at any time has the best for its time.

Of each family of steps (prompts, chunks, decode batches ...) the next is the one furthest, in octaves, from all that
were measured: the middle, the ends, then ever finer. It runs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from calibrate.cases import BETWEEN, GRID, STEPS, Case

PROMPTS, CHUNKS, SEVERAL, DECODES, UNEVEN, MIXED = "prompts", "chunks", "prompts at once", "decode", "uneven", "mixed"
VALUE = {PROMPTS: 1.0, DECODES: 1.0, CHUNKS: 0.7, SEVERAL: 0.5, UNEVEN: 0.5, MIXED: 0.5}
"""Of the same gap, which family's is worth most: matrices and decode attention are most of what serving does."""
FIRST_GAP, HELD_OUT_GAP = 20.0, 4.0
"""Octaves: what a family's first point and the first held-out case count as; wider than any grid's, and as a coarse
grid's."""

Spot = tuple[float, ...]


def family(case: Case) -> str:
    """Which kind of step it is: cases of one kind differ by sizes alone."""
    if case.prefills and case.decodes:
        return MIXED
    if case.decodes:
        return DECODES if len(set(case.decodes)) == 1 else UNEVEN
    if len(case.prefills) > 1:
        return SEVERAL
    return CHUNKS if case.prefills[0][1] else PROMPTS


def by_value(measured: Sequence[Case], seed: int) -> list[int]:
    """Numbers of the cases, the most valuable first. Held-out ones, which tell errors, lie among those of the grid."""
    values: dict[int, float] = {}
    for kind, value in VALUE.items():
        mine = [at for at, case in enumerate(measured) if case.role == GRID and family(case) == kind]
        values.update({mine[at]: value * gap for at, gap in coarse_to_fine([_spot(measured[at]) for at in mine])})
    for role in (BETWEEN, STEPS):
        held_out = [at for at, case in enumerate(measured) if case.role == role]
        values.update({at: HELD_OUT_GAP / (1.0 + rank / 2.0) for rank, at in enumerate(held_out)})
    # Of equal value a random one, so that no size is always measured after the same other one.
    chance = np.random.default_rng([seed, 11]).permutation(len(measured))
    return sorted(values, key=lambda at: (-values[at], chance[at]))


def _spot(case: Case) -> Spot:
    """Where a case lies among those of its family, in octaves."""
    new, past = case.prefills[0] if case.prefills else (1, 0)
    rows, context = len(case.decodes), max(case.decodes, default=1)
    # Past tokens count half: prices are straight along them.
    return math.log2(new), math.log2(1 + past) / 2.0, math.log2(max(rows, 1)), math.log2(context) / 2.0


def coarse_to_fine(spots: Sequence[Spot]) -> Iterator[tuple[int, float]]:
    """(number, how far it is from all before it) of each spot, from the middle of all to the densest part."""
    if not spots:
        return
    places: npt.NDArray[np.float64] = np.array(spots)
    middle = (places.min(axis=0) + places.max(axis=0)) / 2.0
    at = int(np.linalg.norm(places - middle, axis=1).argmin())
    gaps = np.full(len(places), FIRST_GAP)
    left = np.ones(len(places), bool)
    for _ in spots:
        yield at, float(gaps[at])
        left[at] = False
        gaps = np.minimum(gaps, np.linalg.norm(places - places[at], axis=1))
        at = int(np.where(left, gaps, -1.0).argmax())
