"""Whoever does not see red or green tells the series apart: by colour, and by dashes and the shapes of points."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from sim.cost.interpolation import SOURCES
from sim.report.templates import PATTERNS, TONES, asset, tone

# What is left of linear RGB for whom one kind of cone is missing (Machado, Oliveira and Fernandes 2009, severity 1).
SEEN = {
    "all": np.eye(3),
    "no red": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "no green": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])
# Of the distance in CIE Lab about 2 is what can just be seen side by side.
APART = 20.0
CONTRAST = 3.0
"""Of a line on its ground, WCAG 2.2 (1.4.11)."""


def linear(colour: str) -> np.ndarray:
    parts = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    ratio = TO_XYZ @ np.clip(rgb, 0, 1) / WHITE
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def palettes() -> dict[str, dict[str, str]]:
    blocks = re.findall(r":root \{(.*?)\}", asset("page.css"), re.DOTALL)
    return dict(
        zip(("light", "dark", "paper"), (dict(re.findall(r"--(\w+): (#\w+)", block)) for block in blocks), strict=True)
    )


@pytest.mark.parametrize("sight", SEEN)
@pytest.mark.parametrize("ground", ["light", "dark", "paper"])
def test_any_two_series_are_told_apart(ground: str, sight: str) -> None:
    colours = palettes()[ground]
    known = {name: lab(SEEN[sight] @ linear(colours[name])) for name in (*(f"c{at}" for at in range(TONES)), "free")}
    near = {(a, b): float(np.linalg.norm(known[a] - known[b])) for a, b in itertools.combinations(known, 2)}
    assert {pair: far for pair, far in near.items() if far < APART} == {}


@pytest.mark.parametrize("ground", ["light", "dark", "paper"])
def test_lines_stand_out_from_their_ground(ground: str) -> None:
    colours = palettes()[ground]
    light = {
        name: float(TO_XYZ[1] @ linear(f"#{value[1:] * (2 if len(value) == 4 else 1)}"))
        for name, value in colours.items()
    }
    for name in (f"c{at}" for at in range(TONES)):
        low, high = sorted((light[name], light["paper"]))
        assert (high + 0.05) / (low + 0.05) >= CONTRAST, name


def test_paper_has_the_colours_of_the_light_page() -> None:
    found = palettes()
    assert all(found["paper"][f"c{at}"] == found["light"][f"c{at}"] for at in range(TONES))


def test_neighbours_are_dashed_differently_and_no_two_of_many_are_alike() -> None:
    looks = [tone(place) for place in range(TONES * PATTERNS)]
    assert len(set(looks)) == len(looks)
    assert all(one.split()[1] != other.split()[1] for one, other in itertools.pairwise(looks[:TONES]))
    dashes = re.findall(r"\.line\.d(\d) \{ stroke-dasharray: ([^;]+);", asset("page.css"))
    assert [int(number) for number, _ in dashes] == list(range(1, PATTERNS))
    assert len({pattern for _, pattern in dashes}) == len(dashes)


def test_each_source_of_seconds_has_a_colour_of_its_own() -> None:
    found = dict(re.findall(r"^\.(\w+) \{ --k: (#\w+); fill: \2; \}$", asset("page.css"), re.MULTILINE))
    assert sorted(found) == sorted(SOURCES)
    assert len(set(found.values())) == len(SOURCES)
