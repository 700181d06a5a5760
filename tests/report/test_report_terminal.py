"""The terminal tables: 80 columns, no colour in a pipe, every number that a reader looks for."""

from __future__ import annotations

import io

import pytest
from report_samples import make_run
from rich.console import Console

from sim.report import terminal
from sim.report.run.sentences import ROOFLINE_WARNING, notes_of, sources_line
from sim.results import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (1234.5, "1,234"),
        (12.34, "12.3"),
        (0.01234, "0.0123"),
        (9.996, "10.00"),
        (-2.5, "-2.50"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert units.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (0.0, "0 s"), (0.00085, "850 us"), (0.0123, "12.3 ms"), (4.56, "4.56 s"), (119.0, "119 s"),
        (3502.0, "58 min 22 s"), (11_100.0, "3 h 05 min"), (7_200_000.0, "2,000 h 00 min"), (3599.7, "1 h 00 min"),
    ],
)  # fmt: skip
def test_times(value: float | None, text: str) -> None:
    assert units.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0 %"), (1.0, "100 %"), (0.9999, "99.9+ %"), (0.0001, "<0.1 %"), (0.1234, "12.3 %")],
)
def test_percent_never_says_all_or_nothing_for_some(value: float | None, text: str) -> None:
    assert units.percent(value) == text


def test_a_summary_is_one_screen_of_80_columns() -> None:
    note = "A note that is long enough to need a second line of the terminal, as notes about real traces often are."
    notes = ["Arrivals are Poisson draws, not recorded times.", note]
    run = make_run(300, rate=14.0, slo="ttft_p99=0.05,tpot_p99=0.05,itl=0.2", notes=notes)
    text = terminal.render(terminal.summary_view(run.summary, warnings=["The queue kept growing."]))
    assert "\n! The queue kept growing.\n" in text
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 34
    assert "\x1b" not in text
    ttft = next(line.split() for line in lines if line.startswith("TTFT"))
    expected = [f"{run.summary['ttft_s'][name] * 1e3:.1f}" for name in terminal.SHOWN]
    assert ttft == ["TTFT", "ms", *expected]
    for words in ("300 requests", "299 completed, 1 rejected", "100 % roofline", "Synthetic", "Poisson draws"):
        assert words in text
    assert "TTFT p99 64.7 ms, limit 50 ms: MISSED" in text
    assert "TPOT p99 13.4 ms, limit 50 ms: met" in text
    assert "! Every second of this run comes from data-sheet rooflines" in text


def test_names_with_markup_are_shown_as_they_are() -> None:
    run = make_run(20, trace="[bold]x[/bold]", notes=["[red]n[/red]"])
    text = terminal.render(terminal.summary_view(run.summary))
    assert "[bold]x[/bold]" in text
    assert "[red]n[/red]" in text
    assert "[b]" in terminal.render(terminal.compare_view({"[b]": run.summary, "[/b]": run.summary}))


def test_colour_on_a_terminal_only() -> None:
    summary = make_run(20, slo="ttft=9").summary
    for tty in (False, True):
        stream = io.StringIO()
        terminal.show(terminal.summary_view(summary), Console(file=stream, force_terminal=tty, width=80))
        assert ("\x1b[" in stream.getvalue()) == tty


@pytest.mark.parametrize("count", [0, 1])
def test_nearly_nothing_is_shown_with_dashes(count: int) -> None:
    text = terminal.render(terminal.summary_view(make_run(count, slo="ttft_p99=1").summary))
    assert "nan" not in text.lower().replace("tenant", "")
    assert ("undefined" in text) == (count == 0)
    assert ("1 request in" in text) == (count == 1)


def test_sources_and_their_warnings() -> None:
    summary = make_run(20).summary
    assert ROOFLINE_WARNING in terminal.warnings_of(summary)
    summary["cost_sources"] = {"measured": 0.7, "interpolated": 0.2, "extrapolated": 0.06, "roofline": 0.04}
    assert sources_line(summary) == "70.0 % measured, 20.0 % interpolated, 6.0 % extrapolated, 4.0 % roofline"
    told = " ".join(terminal.warnings_of(summary))
    assert "4.0 %" in told
    assert "6.0 %" in told
    summary["cost_sources"] = {"measured": 1.0, "interpolated": 0.0, "extrapolated": 0.0, "roofline": 0.0}
    assert terminal.warnings_of(summary) == []


def test_notes_come_once() -> None:
    summary = make_run(20, notes=["a", "b", "a", "c"]).summary
    assert notes_of(summary)[1:] == ["a", "b", "c"]


def test_runs_side_by_side() -> None:
    runs = {"paged": make_run(300, rate=14.0, slo="ttft=1").summary, "slow": make_run(200, rate=4.0).summary}
    text = terminal.render(terminal.compare_view(runs))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line.split() for line in lines if line.startswith("TTFT p99 ms"))
    base, other = runs["paged"]["ttft_s"]["p99"], runs["slow"]["ttft_s"]["p99"]
    change = 100 * (other / base - 1)
    assert row == [
        "TTFT",
        "p99",
        "ms",
        f"{base * 1e3:.1f}",
        f"{other * 1e3:.1f}",
        f"{change:+.{int(abs(change) < 10)}f}%",
    ]
    assert next(line.split() for line in lines if line.startswith("Goodput"))[-1] == "-"


def test_a_change_of_magnitudes_is_a_factor() -> None:
    """607 times as much fits its column, and stands apart from the value."""
    slow, fast = make_run(20).summary, make_run(20).summary
    slow["queue_s"] = dict.fromkeys(slow["queue_s"], 2.046)
    fast["queue_s"] = dict.fromkeys(fast["queue_s"], 0.00337)
    text = terminal.render(terminal.compare_view({"fast": fast, "slow": slow}))
    row = next(line.split() for line in text.splitlines() if line.startswith("Queue p99 s"))
    assert row == ["Queue", "p99", "s", "0.00337", "2.05", "x607"]


def test_many_runs_are_rows_of_one_table() -> None:
    summary = make_run(20).summary
    names = [f"a run with a long name {i}" for i in range(7)]
    text = terminal.render(terminal.compare_view(dict.fromkeys(names, summary), failures={"other": "too [b]large[/b]"}))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line[:24].strip() for line in lines if line.startswith("a run")] == names
    assert lines[1].split()[:3] == ["/s", "p50", "p99"]
    ttft = next(line for line in lines if line.startswith(names[3])).split()[9]
    assert ttft == f"{summary['ttft_s']['p99'] * 1e3:.1f}"
    assert lines[-1] == "! other did not run: too [b]large[/b]"
    wide = terminal.render(terminal.compare_view(dict.fromkeys(names, summary), 160), 160)
    assert "Requests/s" in wide
    assert max(map(len, wide.splitlines())) <= 160


def test_one_run_and_none() -> None:
    assert terminal.render(terminal.compare_view({"one": make_run(20).summary})).count("Requests/s") == 1
    assert terminal.render(terminal.compare_view({}, failures={"a": "b"})) == "! a did not run: b\n"


def test_the_best_of_a_column_is_green() -> None:
    fast, slow = make_run(300, rate=4.0).summary, make_run(300, rate=14.0).summary
    stream = io.StringIO()
    view = terminal.compare_view({"a": slow, "b": fast, "c": slow, "d": slow})
    terminal.show(view, Console(file=stream, force_terminal=True, width=80, highlight=False))
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("\x1b[1m")][-4:]
    rate, ttft = (
        f"\x1b[32m{value:.1f}\x1b[0m" for value in (slow["throughput"]["requests_per_s"], fast["ttft_s"]["p50"] * 1e3)
    )
    # a, c and d read alike and serve the most; b answers soonest.
    assert [rate in line for line in lines] == [True, False, True, True]
    assert [ttft in line for line in lines] == [False, True, False, False]


def test_sharing_hits_and_copies_are_told_where_there_are_any() -> None:
    summary = dict(make_run(50, rate=5).summary)
    plain = terminal.render(terminal.summary_view(summary))
    assert not [word for word in ("Sharing", "Copies", "Prefixes", "Evictions") if word in plain]
    kv = summary["kv"]
    held = {"used": 0.5, "shared": 0.25, "reserved": 0.125, "internal": 0.125, "external": 0.0}
    summary["kv"] = {
        **kv,
        "useful": 0.75,
        "waste": {**kv["waste"], "of_held": held},
        "shared": {**kv["shared"], "saving_mean": 0.4},
        "copied_bytes": 3 * 2**30,
        "swapped_bytes": 2**20,
        "prefix_hit_rate": 0.3,
        "prefix_hit_rate_blocks": 0.2,
    }
    text = terminal.render(terminal.summary_view(summary))
    for line in (
        "KV held    75.0 % data, 12.5 % reserved, 12.5 % internal, 0 % external waste",
        "Sharing    saved 40.0 % of the KV data; 25.0 % of what was held was shared",
        "Copies     3.00 GiB copied on write",
        "Evictions  0 preemptions, 1.00 MiB swapped",
    ):
        assert line in text.splitlines()
    assert "30.0 % of the prompt tokens were in the cache, 20.0 % of the blocks" in " ".join(text.split())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1.00 KiB"),
        (3584, "3.50 KiB"),
        (5 * 2**30, "5.00 GiB"),
        (2**50, "1,024 TiB"),
    ],
)
def test_sizes(value: int, text: str) -> None:
    assert units.size_of(value) == text


def test_a_storm_of_preemptions_is_told() -> None:
    summary = dict(make_run(50, rate=5).summary)
    assert "preemptions for" not in terminal.render(terminal.summary_view(summary))
    summary["kv"] = {**summary["kv"], "preemptions": 6}
    assert "6 preemptions for 50 requests" in terminal.render(terminal.summary_view(summary))
