"""Those who verify drafts together, as sums by tick, against each of them by itself."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest

from sim.engine.request import Request, Seat
from sim.engine.verifying import ByTick, Verifying

WIDTH, WINDOW = 4, 40


class Told:
    """Requests by what they have computed, with the right drafts of their steps: those to come, done, and told so."""

    def __init__(self) -> None:
        self.alone: dict[Request, int] = {}
        self.to_come: dict[Request, list[int]] = {}
        self.done: dict[Request, list[int]] = {}
        self.told: dict[Request, list[int]] = {}

    def request(self, number: int, right: list[int]) -> Request:
        req = Request(number, 0.0, 10 + number, 1 + sum(right) + len(right))
        req.computed, req.known, req.confirmed = 10 + number, 11 + number, 1
        req.seat = Seat()
        req.seat.seq, req.seat.drafts = number, WIDTH - 1
        self.alone[req], self.to_come[req], self.done[req], self.told[req] = req.computed, right, [], []
        return req

    def step(self) -> None:
        for req in self.alone:
            right = self.to_come[req].pop(0)
            self.done[req].append(right)
            self.alone[req] += right + 1

    def foresee(self, req: Request) -> tuple[list[int], list[int]]:
        right = self.to_come[req].copy()
        return right, list(accumulate([some + 1 for some in right[:-1]], initial=req.computed))

    def left(self, req: Request, right: list[int]) -> None:
        self.told[req] += right


@pytest.mark.parametrize("seed", range(20))
def test_sums_are_those_of_the_members(seed: int) -> None:
    """Whoever joins, leaves in between, or does several steps at once."""
    rng, told = random.Random(seed), Told()
    members, alone = Verifying(WIDTH, WINDOW, told.foresee, told.left), told.alone
    for number in range(60):
        members.join(told.request(number, [rng.randrange(WIDTH) for _ in range(rng.choice((1, 3, 30, 900)))]))
        if rng.random() < 0.3:
            req = rng.choice(list(alone))
            members.leave(req)
            past = alone.pop(req)
            assert (req.computed, req.known, req.seat.in_flight, req.seat.drafts) == (past, past + 1, 0, WIDTH - 1)
            assert req.confirmed == 1 + sum(told.done[req]) + len(told.done[req])
            assert told.told[req] == told.done[req]
        if not alone:
            continue
        members.tick += 1
        steps = min(1 + members.steps_to_drain(), rng.choice((1, 2, 50)))
        pasts, withins = members.pasts(steps)
        assert members.group() == ((WIDTH, len(alone), pasts[0], withins[0]),)
        for step in range(steps):
            if step:
                told.step()
            assert pasts[step] == sum(alone.values())
            assert withins[step] == sum(min(past, WINDOW) for past in alone.values())
        members.tick += steps - 1
        members.settled = members.tick - 1
        assert members.context_tokens() == sum(alone.values()) + WIDTH * len(alone)
        for req in members.due():
            assert [members.right_now(req)] == told.to_come[req]
            assert members.ends(req) == (told.to_come[req] == [0])
            members.leave(req)
            past = alone.pop(req)
            assert (req.computed, req.known, req.seat.in_flight) == (past + WIDTH, past + WIDTH + 1, 1)
            assert told.told[req] == told.done[req]
        members.settled = members.tick
        told.step()
        assert members.context_tokens() == sum(alone.values())
        assert all(members.computed(req) == past for req, past in alone.items())


def test_who_comes_back_without_a_step_in_between_is_due_once() -> None:
    told = Told()
    members = Verifying(WIDTH, 0, told.foresee, told.left)
    req = told.request(0, [1, 0])
    members.join(req)
    members.leave(req)
    members.join(req)
    members.tick = 2
    assert members.due() == [req]


def test_numbers_by_tick() -> None:
    """Those of ticks that have passed may be forgotten, none of the others."""
    numbers, known, rng = ByTick(), {}, random.Random(1)
    for now in range(0, 9000, 7):
        first, values = now + rng.randrange(90), [rng.randrange(9) for _ in range(rng.choice((1, 40, 700)))]
        numbers.add(first, values, now)
        for tick, value in enumerate(values, first):
            known[tick] = known.get(tick, 0) + value
        assert numbers[now + 3] == known.get(now + 3, 0)
        assert numbers.at(now, 900, now) == [known.get(tick, 0) for tick in range(now, now + 900)]
