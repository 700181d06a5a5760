"""Generators whose seeds are hashed together are those that numpy makes one by one."""

from __future__ import annotations

import numpy as np
import pytest

from sim.speculation.streams import Streams

PURPOSE = 3_735_928_559


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**32, 2**40 + 7, 2**63 - 1, 2**70])
def test_each_is_numpys_own(seed: int) -> None:
    streams = Streams(seed, PURPOSE)
    for number in (0, 1, 255, 256, 257, 19_365, 2**32 - 1, 2**32, 2**40 + 3, 2**66 + 1, 0):
        expected = np.random.default_rng([seed, PURPOSE, number]).random(9)
        assert streams.of(number).random(9).tolist() == expected.tolist()
