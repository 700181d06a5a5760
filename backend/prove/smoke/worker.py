"""The process that launches operations one after another and prints a line before and after each.

It ends after one that left the device unusable: the driver begins a fresh process for the rest.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence

import torch

from backend.ops import for_device
from backend.prove.smoke import attention, cache, live, rows
from backend.prove.smoke.case import SkipError, SmokeCase, SmokeGround

OK, FAILED, SKIPPED = "ok", "failed", "skipped"
MARK = '{"operation": '
"""How a line of this process begins, among whatever else is printed."""


def all_cases() -> list[SmokeCase]:
    """Of each kind in turn, so that a run that is short of time has seen something of all."""
    kinds = [attention.cases(), cache.cases(), rows.cases(), live.cases()]
    longest = max(map(len, kinds))
    return [kind[at] for at in range(longest) for kind in kinds if at < len(kind)]


def work(names: Sequence[str], device: str, small: bool) -> None:
    """Run the cases of these names, in their order, as long as the device lives."""
    known = {case.name: case for case in all_cases()}
    place = torch.device(device)
    # References are computed on the host by several processes at once.
    torch.set_num_threads(1 if place.type == "cpu" else 2)
    ground = SmokeGround.of(place, for_device(place), small)
    for name in names:
        _say(operation=name, state="begun")
        line, alive = outcome(known[name], ground)
        _say(operation=name, **line)
        if not alive:
            return


def outcome(case: SmokeCase, ground: SmokeGround) -> tuple[dict[str, object], bool]:
    """A case's state with its error or reason, and whether the device is still of use."""
    started = time.monotonic()
    line: dict[str, object]
    try:
        result = case.run(ground)
        state = OK if result.good else FAILED
        line = {"state": state, "error": _finite(result.error), "tolerance": result.tolerance, "note": result.note}
        if not result.good:
            line["reason"] = f"is {result.error:.2g} off, {result.tolerance:.2g} is allowed"
    except SkipError as missing:
        line = {"state": SKIPPED, "reason": str(missing)}
    except Exception as error:  # an operation that no device has run yet may fail in any way
        line = {"state": FAILED, "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
    alive = True
    if ground.cuda:
        try:
            torch.cuda.synchronize(ground.device)
        except RuntimeError as error:
            alive = False
            reason = str(line.get("reason", ""))
            lost = f"the device was lost: {str(error).strip().splitlines()[0]}"
            line = {"state": FAILED, "reason": f"{reason}; {lost}" if reason else lost}
    return {**line, "seconds": round(time.monotonic() - started, 3)}, alive


def _finite(value: float) -> float | None:
    """For JSON: None for what is not finite."""
    return value if math.isfinite(value) else None


def _say(**line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
