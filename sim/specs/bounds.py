"""The least and the most that a number may be: what the fields of a scenario are declared with.

A bound is wide enough for everything that makes sense and narrow enough that what is beyond is a slip of the keyboard,
which would end as a run without end or without memory. It knows nothing of what the numbers mean together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from traces.schema import InputError

MAX_SEED = 2**62
MAX_BLOCKS = 10**8
"""KV blocks of all replicas together: each takes about 40 bytes of this machine's memory."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A number from `least` to `most`, both included; with `above`, more than `least`.

    `zero` says what 0 stands for, and `infinite` what infinity does, which then are allowed as well.
    """

    least: float
    most: float
    zero: str = ""
    above: bool = False
    infinite: str = ""

    def __str__(self) -> str:
        least = f"above {_shown(self.least)}" if self.above else f"at least {_shown(self.least)}"
        most = f"at most {_shown(self.most)}" + (f", or inf ({self.infinite})" if self.infinite else "")
        if self.zero and self.least > 0:
            return f"0 ({self.zero}), or {least} and {most}"
        return f"{least} and {most}" + (f" (0: {self.zero})" if self.zero else "")

    def holds(self, value: float) -> bool:
        """Whether the value lies in it; NaN never does."""
        if (self.zero and value == 0) or (self.infinite and value == math.inf):
            return True
        return self.least <= value <= self.most and not (self.above and value == self.least)

    def check(self, key: str, value: float) -> None:
        """Raise InputError, naming key and bound, for a value outside."""
        if not self.holds(value):
            raise InputError(f"{key} is {_given(value)}; it must be {self}")


def _shown(number: float) -> str:
    """A bound as a sentence has it."""
    return f"{number:,}" if isinstance(number, int) and abs(number) < 10**12 else f"{number:g}"


def _given(value: float) -> str:
    """A value as it was given, unless it has more digits than anyone reads (or Python prints)."""
    if isinstance(value, int) and abs(value) >= 10**40:
        return f"a number of about {math.log10(abs(value)):.0f} digits"
    return str(value)


PARAMETER = Bound(-1e15, 1e15)
"""Of every number among the parameters of a policy, an allocator or a router, whose own bounds are narrower."""
EFFICIENCY = Bound(0.0, 1e9)
"""Of every value of `cost.efficiency`; those that are shares have narrower bounds in `sim.cost.efficiency`."""
