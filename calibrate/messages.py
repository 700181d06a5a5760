"""Which collectives are measured: every operation over a group of GPUs by size, the most valuable first. It runs none.

A message is as large as the table `all_reduce` counts it: of an all-reduce and a reduce-scatter what each GPU puts in,
of an all-gather what each gets, of an all-to-all what each has for all, itself included.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from calibrate.cases import BETWEEN, GRID
from calibrate.order import HELD_OUT_GAP, coarse_to_fine
from sim.cost.tables import Row
from sim.specs.model import ModelSpec

VALUE: Mapping[str, float] = {"all_reduce": 1.0, "all_gather": 0.6, "all_to_all": 0.5, "reduce_scatter": 0.4}
"""Of the same gap, which operation's is worth most: a replica of several GPUs reduces twice a layer."""
LEAST_BYTES, STEP = 1024, 2
HELD_OUT = 4
"""Messages of each operation that are not fitted."""
ELEMENT_BYTES = 4
"""Parts of a message are whole elements of any type."""


@dataclass(frozen=True, slots=True)
class Message:
    """One size of a collective over `gpus` GPUs; "grid" ones are fitted, those "between" are not."""

    op: str
    gpus: int
    bytes: int
    role: str = GRID

    @property
    def name(self) -> str:
        return f"{self.role} {self.op} over {self.gpus}, {self.bytes} bytes"

    @property
    def row(self) -> Row:
        """Group and axis of the table `all_reduce`."""
        return {"op": self.op, "gpus": self.gpus, "bytes": self.bytes}


@dataclass(frozen=True, slots=True)
class Orders:
    """What one of the processes does: its `rank` among `gpus`, `device` "cuda" or "cpu", `meeting` the file through
    which they find each other."""

    rank: int
    gpus: int
    device: str
    meeting: str
    messages: tuple[Message, ...]

    def text(self) -> str:
        """As it is handed over."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Orders:
        """From `text`."""
        told = json.loads(text)
        return cls(**{**told, "messages": tuple(Message(**one) for one in told["messages"])})


def most_bytes(specs: Sequence[ModelSpec], tokens: int) -> int:
    """The largest message of a step of so many tokens of any of the models: what an all-reduce after a layer sums."""
    return tokens * max(spec.hidden * spec.element_bytes for spec in specs)


def messages(gpus: int, most: int, seed: int) -> list[Message]:
    """Those of one group up to `most` bytes, the most valuable first."""
    most = max(most, 2 * LEAST_BYTES)
    sizes = sorted({_whole(size, gpus) for size in [*_powers(most), most]})
    rng = np.random.default_rng([seed, 17, gpus])
    values: dict[Message, float] = {}
    for op, value in VALUE.items():
        gaps = coarse_to_fine([(math.log2(size),) for size in sizes])
        values.update({Message(op, gpus, sizes[at]): value * gap for at, gap in gaps})
        between = np.exp(rng.uniform(math.log(sizes[0]), math.log(sizes[-1]), HELD_OUT))
        unseen = dict.fromkeys(_whole(round(size), gpus) for size in between)
        held_out = [Message(op, gpus, size, BETWEEN) for size in unseen if size not in sizes]
        values.update({one: HELD_OUT_GAP / (1.0 + rank / 2.0) for rank, one in enumerate(held_out)})
    return sorted(values, key=lambda one: -values[one])


def _powers(most: int) -> Iterator[int]:
    size = LEAST_BYTES
    while size < most:
        yield size
        size *= STEP


def _whole(size: int, gpus: int) -> int:
    part = gpus * ELEMENT_BYTES
    return max(1, round(size / part)) * part
