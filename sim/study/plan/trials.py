"""Runs the trials of a search on the simulator, in this process or several. It knows no statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sim.scenario import Scenario
from sim.study.plan.observation import Clause, Observation
from sim.study.plan.replication import Informed, Replication, measure, sessions_per_request, source
from sim.study.plan.search import Trial
from sim.study.workers.cores import cores
from sim.study.workers.crew import Crew
from sim.study.workers.pool import each

BURST = 256
"""Requests that come at once to see how fast they are served: where the search begins."""
WORTH_STARTING_S = 4.0
"""Work for which further processes, which each take a second or two to start, are worth it."""


class Hands:
    """Who simulates what a plan asks for, from its first trial to its last: this process, or others beside it.

    These are started for the first batch that is worth it and stay, with the trace that they have read and the prices
    that they remember.

    Args:
        workers: processes at most; None for one on each core.
        executor: as in `sim.study.workers.pool.each`.
    """

    def __init__(self, workers: int | None = None, executor: str = "processes") -> None:
        self._workers, self._executor = workers, executor
        self._crew: Crew[Replication, Observation] = Crew(Informed(measure), workers=workers, executor=executor)
        self._started = False
        self._cost_s = 0.0
        """Wall seconds of a run, the slowest so far."""

    def __call__(self, points: Sequence[Replication]) -> list[Observation]:
        """What each of them showed, in their order."""
        observations: dict[int, Observation] = dict(
            self._crew(points) if self._is_worth(points) else each(measure, points, workers=1)
        )
        self._cost_s = max([self._cost_s, *(observation.wall_s for observation in observations.values())])
        return [observations[index] for index in range(len(points))]

    def _is_worth(self, points: Sequence[Replication]) -> bool:
        """Is it worth it to ask others?"""
        if self._executor != "processes":
            return True
        if (self._workers or cores()) == 1 or len(points) == 1:
            return False
        self._started = self._started or self._cost_s * len(points) >= WORTH_STARTING_S
        return self._started

    def close(self) -> None:
        """End the other processes."""
        self._crew.close()


class Simulated:
    """A bench: trials become simulations of one scenario.

    Args:
        hands: who runs them.
        factors: of each kind of step, as `Replication.factors`.
    """

    def __init__(
        self,
        scenario: Scenario,
        clauses: Sequence[Clause],
        hands: Hands,
        *,
        factors: tuple[tuple[str, float], ...] = (),
    ) -> None:
        self.scenario = scenario
        self.clauses = tuple(clauses)
        self._hands = hands
        self._factors = factors
        self._sessions_per_request = sessions_per_request(source(scenario.workload))
        self.runs = 0

    def __call__(self, trials: Sequence[Trial]) -> list[Observation]:
        self.runs += len(trials)
        return self._hands([self.point(trial) for trial in trials])

    def guess(self) -> float:
        """Requests per second that are served when many come at once: near the capacity, or not far below it."""
        [observation] = self([Trial(1e6, 0, BURST)])
        return BURST / float(np.nanmax(observation.finish_s))

    def point(self, trial: Trial) -> Replication:
        """What a trial simulates."""
        sessions = math.ceil(trial.requests * self._sessions_per_request)
        return Replication(
            self.scenario, trial.rate_per_s, trial.replication, sessions, self.clauses, trial.window, self._factors
        )
