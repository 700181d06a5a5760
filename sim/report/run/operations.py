"""What a run says of what was done with its fleet while it served; nothing where nothing was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sim.results.units import count, count_of, seconds

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
