"""What steps cost by term, priced again from their shapes. It records nothing and draws nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sim.cost.errors import step_kind
from sim.cost.step import HIDDEN, HostGap, StepCost, advanced, device_seconds
from sim.engine.batch import Shape
from sim.results.result import Run
from traces.late import pd

# The share of each term and source rests on at most so many spans.
MOST_FOR_SHARES = 1024


Spent = dict[tuple[str, str], float]
"""Seconds by (term, source)."""


@dataclass(frozen=True, slots=True)
class StepTerms:
    """The recorded spans of a run, (row of the steps table, shape, repeats) each, with the prices that it used.

    `every` is 1 where all spans were recorded, else one of so many was.
    """

    cost: StepCost
    spans: Sequence[tuple[int, Shape, int]]
    overlap_host: bool
    gap: HostGap = HIDDEN
    """What of the host's work the device waits for although the rest is hidden."""
    most: int = MOST_FOR_SHARES
    """Spans that shares rest on, at most."""
    _known: dict[int, Mapping[tuple[str, str], float]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def every(self) -> int:
        return self.spans[1][0] - self.spans[0][0] if len(self.spans) > 1 else 1

    @property
    def stride(self) -> int:
        """One of so many recorded spans is taken for shares."""
        return -(-len(self.spans) // self.most) or 1

    @property
    def rows(self) -> np.ndarray:
        return np.fromiter((row for row, _, _ in self.spans), np.int64, len(self.spans))

    def under(self, rows: Sequence[int]) -> StepTerms:
        """The same spans under other rows of a table; what of them is explained stays so."""
        spans = [(row, shape, repeats) for row, (_, shape, repeats) in zip(rows, self.spans, strict=True)]
        other = replace(self, spans=spans)
        other._known.update(self._known)
        return other

    def of(self, place: int) -> dict[str, float]:
        """Seconds by term of the middle step of recorded span number `place`; of the host's those not hidden."""
        return {name: seconds for (name, _), seconds in self._exposed(place).items()}

    def seconds(self) -> Spent:
        """Seconds by (term, source) of an even choice of the spans: `spent`."""
        return self.spent()[0]

    def spent(self) -> tuple[Spent, dict[str, Spent]]:
        """The seconds of an even choice of the spans: of all, and by kind of step (`sim.cost.errors.STEP_KINDS`).

        A span is explained at its middle repeat, since its terms grow evenly.
        """
        whole: Spent = {}
        kinds: dict[str, Spent] = {}
        for place in range(0, len(self.spans), self.stride):
            _, shape, repeats = self.spans[place]
            own = kinds.setdefault(step_kind(shape.prefills, shape.decodes + len(shape.verifies)), {})
            for key, exposed_s in self._exposed(place).items():
                whole[key] = whole.get(key, 0.0) + exposed_s * repeats
                own[key] = own.get(key, 0.0) + exposed_s * repeats
        return whole, kinds

    def _exposed(self, place: int) -> Mapping[tuple[str, str], float]:
        """Seconds by (term, source) of the middle step of a span; of the host's those not hidden."""
        if place not in self._known:
            _, shape, repeats = self.spans[place]
            terms = self.cost.explain(advanced(shape, repeats // 2))
            gap_s = self.gap.of(shape) if self.overlap_host else 0.0
            hidden_s = device_seconds(terms.values()) if self.overlap_host else 0.0
            self._known[place] = {
                (name, term.source): max(0.0, term.seconds - hidden_s) + gap_s if term.on_host else term.seconds
                for name, term in terms.items()
            }
        return self._known[place]


class FleetTerms:
    """The recorded spans of several pools, with the prices of each; as `StepTerms`."""

    def __init__(self, pools: Sequence[StepTerms]) -> None:
        self.pools = pools
        rows = [each.rows for each in pools]
        order = np.argsort(np.concatenate(rows), kind="stable")
        self.rows = np.concatenate(rows)[order]
        where = [(pool, place) for pool, each in enumerate(rows) for place in range(len(each))]
        self._where = [where[at] for at in order.tolist()]
        self.spans = [pools[pool].spans[place] for pool, place in self._where]

    def of(self, place: int) -> dict[str, float]:
        pool, at = self._where[place]
        terms: dict[str, float] = self.pools[pool].of(at)
        return terms


def of_all(pools: Sequence[tuple[StepTerms, Spent]]) -> Spent:
    """Seconds by (term, source), each pool's by its share of the recorded spans."""
    if len(pools) == 1:
        return pools[0][1]  # which are not multiplied by anything
    total: Spent = {}
    for terms, spent in pools:
        for key, seconds in spent.items():
            total[key] = total.get(key, 0.0) + seconds * terms.stride
    return total


def term_shares(seconds: Mapping[tuple[str, str], float]) -> dict[str, dict[str, float]]:
    """The share of the seconds by term and then by source, largest terms first; empty where there are none."""
    total = sum(seconds.values())
    if not total > 0:
        return {}
    shares: dict[str, dict[str, float]] = {}
    for (name, source), part in seconds.items():
        shares.setdefault(name, {})[source] = part / total
    return dict(sorted(shares.items(), key=lambda item: -sum(item[1].values())))


MOST_SPANS = 5000


def terms_of(run: Run) -> StepTerms | FleetTerms | None:
    """The terms of a run's steps; None where they were measured as a whole, or the run has no step."""
    terms: StepTerms | FleetTerms | None = getattr(run, "terms", None)
    return terms if terms is not None and terms.spans else None


def term_table(run: Run) -> pd.DataFrame | None:
    """Seconds by term of the middle step of up to `MOST_SPANS` spans, evenly chosen; None where they were measured.

    The first column, `row`, is the span's in the steps table; 0 where a step has no such term.
    """
    terms = terms_of(run)
    if terms is None:
        table: pd.DataFrame | None = getattr(run, "term_table", None)
        return table
    rows = terms.rows
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_SPANS)).astype(np.int64))
    spent = pd.DataFrame([terms.of(place) for place in chosen.tolist()]).fillna(0.0)
    spent.insert(0, "row", rows[chosen])
    return spent
