"""Writes down what clients see of their requests behind a front end, which an engine does not know."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.engine.request import Request, indices_of
from sim.engine.tokens import TokenClock


class ClientLog:
    """By request index, in seconds: when it was sent, and when its first and its last token were seen; NaN: never."""

    def __init__(self, requests: int) -> None:
        nan = np.full(requests, np.nan).tobytes()
        self.arrival_s = array("d", nan)
        self.first_token_s = array("d", nan)
        self.finish_s = array("d", nan)
        self.process = array("i", bytes(4 * requests))
        """The server process that has its connection."""
        self.coming: dict[int, Request] = {}
        """Requests that have been sent, and that no engine has yet."""
        self.handed_over: set[int] = set()
        """Requests that an engine had which has died."""
        self.refused: Counter[str] = Counter()
        """How often a request was refused, by the limit that it met."""


class Runs(NamedTuple):
    """Runs of tokens as `sim.engine.tokens.TokenClock` has them: of some of an engine's sequences."""

    request: npt.NDArray[np.int64]
    first_step: npt.NDArray[np.int64]
    last_step: npt.NDArray[np.int64]
    same_step: int


def by_process(clock: TokenClock, process: Sequence[int], count: int) -> list[Any]:
    """The runs of an engine's clock, by the server process that streams them.

    Args:
        process: of each request.
        count: processes of the front end.
    """
    if count == 1:
        return [clock]
    request, first, last = (
        np.frombuffer(column, np.int64) for column in (clock.request, clock.first_step, clock.last_step)
    )
    own = np.asarray(process)[indices_of(request)]
    # Gaps of no time are of no process more than of another: they are counted once.
    return [
        Runs(request[own == at], first[own == at], last[own == at], clock.same_step if at == 0 else 0)
        for at in range(count)
    ]
