"""The price of a step of one of several data-parallel ranks, which exchange tokens in every layer with experts.

What a rank computes for itself depends on its own tokens, its experts and the exchange on those of all ranks, which the
shape tells (`Shape.ranks`). In a CUDA graph all ranks compute as many as the fullest, padded (vLLM,
`coordinate_batch_across_dp`); where that one is too large for a graph, none uses one.
"""

from __future__ import annotations

from sim.cost.errors import Error
from sim.cost.layers import Ranks
from sim.cost.roofline import Roofline
from sim.cost.step import Constant, Term
from sim.engine.batch import Shape

_MOST_VIEWS = 4096


class RankedRoofline:
    """`StepCost` of a model with experts and `parallel.dp` above 1; where a shape tells no ranks, all are alike."""

    def __init__(self, alike: Roofline) -> None:
        self.alike = alike
        self._views: dict[tuple[int, int], Roofline] = {}

    def beside(self, ranks: tuple[int, int]) -> Roofline:
        """The prices where the rank with most computes so many tokens, and all together so many; 0: all are alike."""
        view = self._views.get(ranks)
        if view is None:
            if len(self._views) >= _MOST_VIEWS:
                self._views.clear()
            view = self._views[ranks] = self.alike.beside(Ranks(*ranks))
        return view

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        """As `StepCost.span_s`."""
        return self.beside(shape.ranks).span_s(shape, repeats)

    def explain(self, shape: Shape) -> dict[str, Term]:
        """As `StepCost.explain`."""
        return self.beside(shape.ranks).explain(shape)

    def error_of(self, term: str, source: str) -> Error | None:
        """As `Roofline.error_of`."""
        return self.alike.error_of(term, source)

    def describe(self) -> list[Constant]:
        """As `StepCost.describe`."""
        return self.alike.describe()
