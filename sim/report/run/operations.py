"""What a run says of what was done with its fleet while it served; nothing where nothing was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sim.results.units import count, count_of, number, seconds

Summary = Mapping[str, Any]


def operation_lines(summary: Summary) -> Iterator[tuple[str, str]]:
    """(name, a line) of each for the terminal."""
    if admission := summary.get("admission"):
        met = [f"{count(times)} by {limit}" for limit, times in admission["refused"].items()]
        yield "Admission", f"refused {', '.join(met) or 'nobody'}{_waited(admission)}"
    if retries := summary.get("retries"):
        yield (
            "Retries",
            f"{count_of(retries['requests'], 'request')} sent again, {count_of(retries['sent_again'], 'time')} in all; "
            f"{count(retries['answered'])} of them answered",
        )
    if failures := summary.get("failures"):
        yield (
            "Failures",
            f"{count_of(failures['deaths'], 'death')}, {count_of(failures['restarts'], 'drained restart')}, "
            f"{seconds(failures['down_s'])} down in all; {count_of(failures['requests'], 'request')} sent again",
        )
    for name, pool in (summary.get("scaling") or {}).items():
        yield (
            "Scaling",
            f"{'' if name == 'all' else f'{name}: '}{number(pool['mean_replicas'])} replicas on average, "
            f"{count(pool['least_replicas'])} to {count(pool['most_replicas'])}; {count(pool['ordered'])} ordered, "
            f"{count(pool['released'])} released; {number(pool['gpu_hours'])} GPU-hours",
        )


def _waited(admission: Mapping[str, Any]) -> str:
    if not admission["queued"]:
        return ""
    return (
        f"; {count_of(admission['queued'], 'request')} waited before the router, p99 "
        f"{seconds(admission['wait_s']['p99'])}, {count(admission['longest_queue'])} at once at most"
    )


def operation_panels(summary: Summary) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(title, rows) of a small table of each for the page."""
    if admission := summary.get("admission"):
        yield (
            "Admission",
            [
                *((f"Refused: {limit}", count(times)) for limit, times in admission["refused"].items()),
                ("Waited before the router", count(admission["queued"])),
                ("Their wait, p50 and p99", " and ".join(seconds(admission["wait_s"][at]) for at in ("p50", "p99"))),
                ("Longest queue", count(admission["longest_queue"])),
            ],
        )
    if retries := summary.get("retries"):
        yield (
            "Retries",
            [
                ("Requests sent again", count(retries["requests"])),
                ("Times in all", count(retries["sent_again"])),
                ("Of them answered", count(retries["answered"])),
            ],
        )
    if failures := summary.get("failures"):
        yield (
            "Failures",
            [
                ("Deaths", count(failures["deaths"])),
                ("Drained restarts", count(failures["restarts"])),
                ("Down in all", seconds(failures["down_s"])),
                ("Requests sent again", count(failures["requests"])),
                ("Times in all", count(failures["resent"])),
            ],
        )
    for name, pool in (summary.get("scaling") or {}).items():
        yield (
            "Scaling" if name == "all" else f"Scaling of {name}",
            [
                ("Replicas on average", number(pool["mean_replicas"])),
                ("Fewest and most", f"{count(pool['least_replicas'])} and {count(pool['most_replicas'])}"),
                ("Ordered and released", f"{count(pool['ordered'])} and {count(pool['released'])}"),
                ("GPU-hours", number(pool["gpu_hours"])),
            ],
        )
