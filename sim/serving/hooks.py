"""What may be put into a run from outside: a live session, and what a validation watches or replaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sim.cost.step import StepCost
from sim.engine.flight import Listener
from sim.engine.protocol import ServingEngine
from sim.engine.rules import Rules
from sim.results.clients import ClientLog
from sim.results.gaps import TokenGaps
from sim.results.terms import MOST_FOR_SHARES
from sim.serving.executor import Executor

Progress = Callable[[int, int], None]
"""Told how many of so many requests have ended."""


class LiveSession(Protocol):
    """What a live run needs of the backend (`backend.session.Session`)."""

    device_name: str

    def executor(self, engine: ServingEngine) -> Executor: ...

    def outputs(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """(sequence id, prompt tokens, ids of prompt and answer) of each sequence."""
        ...


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a validation puts into a run: nothing by default.

    Args:
        session: runs the batches of a live scenario, whose settings are taken as they are, instead of the backend.
        wrap: is given the executor of each replica and returns the one to use.
        observer: told of every decision, beside the run's own log.
        cost: prices instead of the profile that the scenario names.
        rules: of another version of the engine than the scenario names.
        spans: whether the engine may repeat steps unasked; None leaves it to the executor.
        most_explained: spans that the shares of terms, sources and resources rest on, at most.
        gaps: is given the gaps between the tokens that clients saw, once the run is over.
        clients: is where a front end writes down what clients see, a place for each admissible request; None for a log
            of the run's own.
    """

    session: LiveSession | None = None
    wrap: Callable[[Executor], Executor] | None = None
    observer: Listener | None = None
    cost: StepCost | None = None
    rules: Rules | None = None
    spans: bool | None = None
    gaps: Callable[[TokenGaps], None] | None = None
    most_explained: int = MOST_FOR_SHARES
    clients: ClientLog | None = None


NO_HOOKS = Hooks()
