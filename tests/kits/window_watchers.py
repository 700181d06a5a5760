"""The KV slots' content where layers have windows: what each group of layers holds, and what a token attends in it."""

from __future__ import annotations

from typing import Any

from law_cases import Case
from law_watchers import Contents

from sim.engine.batch import Batch
from sim.engine.engine import Engine
from sim.engine.flight import Flight
from sim.engine.memory import NULL_BLOCK, Drift
from sim.engine.request import Request
from sim.serving.replica import Replica


class WindowContents(Contents):
    """Each group of layers has a table of its own, and tokens in a layer with a window attend few others."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.allocator: Any = None
        self._rows: dict[tuple[int, int], int] = {}
        self._single_steps: list[dict[Request, list[list[int]]]] = []

    def before_plan(self, replica: Replica) -> None:
        super().before_plan(replica)
        if self.allocator is not replica.engine.allocator:
            self.allocator = replica.engine.allocator
            self._watch_advances(replica.engine)

    def _watch_advances(self, engine: Engine) -> None:
        advance = self.allocator.advance

        def step_by_step(tick: int, steps: int) -> Drift:
            self._single_steps = []
            drifts = []
            for passed in range(1, steps + 1):
                drifts.append([passed * slots for slots in advance(tick + passed - 1, 1)])
                self._single_steps.append({req: self.tables(engine, req) for req in engine.running})
            return Drift(*(sum(column) for column in zip(*drifts, strict=True)))

        self.allocator.advance = step_by_step

    def tables(self, engine: Engine, req: Request) -> list[list[int]]:
        return [list(table) for table in self.allocator.tables(req)]

    def attended(self, layers: int, position: int) -> list[int]:
        window, sinks = self.windows[layers], getattr(self.allocator, "sink_tokens", 0)
        first = max(0, position - window + 1) if window else 0
        return [*range(min(first, sinks)), *range(first, position)]

    @property
    def windows(self) -> list[int]:
        """Of each group of layers its window, 0 without one."""
        return [group.window_tokens for group in self.allocator.groups for _ in range(group.blocks)]

    def planned(self, replica: Replica, batch: Batch) -> None:
        super().planned(replica, batch)
        computing = {req for req, _, _ in self._share}
        self._check_rows({req: self._before.get(req) or self.tables(replica.engine, req) for req in computing})
        for child in self.forked:
            self._note(child, self.tables(replica.engine, child))

    def sealed(self, replica: Replica, flight: Flight) -> None:
        for tables in self._single_steps[: flight.batch.repeats - 1] if flight.batch.repeats > 1 else []:
            self._share = [(req, 1, past + tokens) for req, tokens, past in self._share]
            self._run(tables)
            self._check_rows(tables)
        self._check(replica.engine)

    def _note(self, req: Request, tables: list[list[int]]) -> None:
        for layers, table in enumerate(tables):
            self._rows[req.id, layers] = len(table)

    def _check_rows(self, tables: dict[Request, list[list[int]]]) -> None:
        """Where a row was added just what is needed is held; else at least that. A row is dropped in all groups."""
        size, allocator = self.pool.block_tokens, self.allocator
        for req, tokens, past in self._share:
            for layers, table in enumerate(tables[req]):
                held = {at for at, block in enumerate(table) if block != NULL_BLOCK}
                rows = -(-(past + tokens) // size)
                assert len(table) == rows
                window = self.windows[layers]
                if not window:
                    assert held == set(range(rows))
                    continue
                sinks = range(min(rows, -(-getattr(allocator, "sink_tokens", 0) // size)))
                needed = {*sinks, *range(max(0, past - window + 1) // size, rows)}
                assert needed <= held
                if self._rows.get((req.id, layers), 0) != rows:
                    assert held == needed, "what no token needs is kept beside a new row"
                most = len(sinks) + self.pool.blocks_for(window + self.pool.max_step_tokens) + 1
                assert len(held) <= most
            self._note(req, tables[req])
