"""Recorded spans: packed as numbers, they are what a list of tuples would be."""

from __future__ import annotations

import random

import pytest

from sim.engine.batch import Courses, Shape
from sim.results import steps
from sim.results.spans import RecordedSpans, Span
from sim.results.steps import StepLog

KINDS = (
    Shape(decodes=3, decode_context=40),
    Shape(),
    Shape(prefills=((7, 0),), decodes=3, decode_context=40),
    Shape(decodes=3, decode_context=40, decode_longest=20),
    Shape(decodes=3, decode_context=40, copied_bytes=1),
    Shape(decodes=3, decode_context=40, drafting_ranks=(1, 2)),
)
PLAIN = KINDS[:2]


def recorded(count: int, rng: random.Random) -> list[Span]:
    return [(at, rng.choice(KINDS)._replace(decodes=rng.randrange(9)), rng.randrange(1, 9)) for at in range(count)]


def log_of(spans: list[Span]) -> StepLog:
    log = StepLog(1)
    for _, shape, repeats in spans:
        log._keep(shape, repeats)
    return log


def test_they_are_a_list_of_spans() -> None:
    spans = recorded(101, random.Random(1))
    kept = log_of(spans).sample
    assert list(kept) == spans
    assert kept[3:90:7] == spans[3:90:7]
    assert (kept[-1], kept[100]) == (spans[-1], spans[100])
    assert all(type(shape) is Shape for _, shape, _ in kept)
    assert not RecordedSpans()


def test_every_second_is_dropped_where_there_are_too_many() -> None:
    for count in (100, 101):
        spans = recorded(count, random.Random(count))
        kept = log_of(spans).sample
        kept.thin()
        assert list(kept) == spans[::2]
        assert len(kept.others) == sum(shape[0] != () or shape[3:] != Shape()[3:] for _, shape, _ in spans[::2])
        kept.thin()
        assert list(kept) == spans[::4]


def test_decode_rows_alone_are_four_numbers() -> None:
    kept = log_of([(0, shape, 1) for shape in PLAIN]).sample
    assert (len(kept.packed), kept.others) == (8, [])


@pytest.mark.parametrize("windows", [False, True])
def test_steps_that_verify_drafts_are_sampled_as_spans_of_one_step(
    windows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_SAMPLES", 16)
    rng = random.Random(7 + windows)
    together, alone = StepLog(1), StepLog(1)
    for number in range(40):
        first = Shape(
            copied_bytes=number,
            verifies=((5, 3, 90, 60 * windows),),
            proposals=(3, 12, 4),
            proposal_context=105,
            ranks=(1, 2),
        )
        repeats = rng.randrange(1, 9)
        pasts = [90, *(rng.randrange(90, 500) for _ in range(repeats))]
        courses = Courses(first, pasts, [past - 30 for past in pasts] if windows else [])
        together._keep_steps(courses, repeats)
        for step in range(repeats):
            alone._keep(courses.shape(step), 1)
        for log in (together, alone):
            log._keep(KINDS[2], 3)
    assert list(together.sample) == list(alone.sample)
    assert (together._seen, together._stride) == (alone._seen, alone._stride)
    assert together._stride > 2
