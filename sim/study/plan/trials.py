"""Runs the trials of a search on the simulator, in this process or several. It knows no statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sim.scenario import Scenario
from sim.study.plan.observation import Clause, Observation
from sim.study.plan.replication import Replication, measure, sessions_per_request, source
from sim.study.plan.search import Trial
from sim.study.workers.cores import cores
from sim.study.workers.pool import each

BURST = 256
"""Requests that come at once to see how fast they are served: where the search begins."""
WORTH_STARTING_S = 4.0
"""Work for which further processes, which each take a second or two to start, are worth it."""


class Simulated:
    """A bench: trials become simulations of one scenario.

    Args:
        workers: processes at most; None for one on each core.
        executor: as in `sim.study.workers.pool.each`.
        factors: of each kind of step, as `Replication.factors`.
    """

    def __init__(
        self,
        scenario: Scenario,
        clauses: Sequence[Clause],
        *,
        workers: int | None = None,
        executor: str = "processes",
        factors: tuple[tuple[str, float], ...] = (),
    ) -> None:
        self.scenario = scenario
        self.clauses = tuple(clauses)
        self._workers, self._executor = workers, executor
        self._factors = factors
        self._sessions_per_request = sessions_per_request(source(scenario.workload))
        self.runs = 0
        self._cost_s = 0.0
        """Wall seconds of a run, the slowest so far."""

    def __call__(self, trials: Sequence[Trial]) -> list[Observation]:
        points = [self.point(trial) for trial in trials]
        observations: dict[int, Observation] = {}
        for index, observation in each(measure, points, workers=self._crew(points), executor=self._executor):
            observations[index] = observation
            self.runs += 1
        self._cost_s = max([self._cost_s, *(observation.wall_s for observation in observations.values())])
        return [observations[index] for index in range(len(points))]

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

    def _crew(self, points: Sequence[Replication]) -> int | None:
        if self._executor == "processes" and (self._cost_s * len(points) < WORTH_STARTING_S or self._workers == 1):
            return 1
        return min(self._workers or cores(), max(1, len(points)))
