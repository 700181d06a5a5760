"""Summaries as tables for a terminal of 80 columns. It reads the summary alone and computes no metric."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from sim.engine.build import PURE
from sim.load import OURS
from sim.report.fitted import FittedTable
from sim.report.measures import MEASURES, LatencyUnits, best, compared, latency_rows
from sim.report.run.adapters import adapter_lines
from sim.report.run.band import band_lines
from sim.report.run.operations import operation_lines
from sim.report.run.pools import model_lines, pool_lines, transfer_line
from sim.report.run.sentences import (
    answer,
    binds,
    clause_words,
    drafts_by_position,
    energy_line,
    front_end_line,
    kv_capacity_lines,
    kv_capacity_words,
    load_line,
    money_line,
    notes_of,
    requests_line,
    sources_line,
    title,
    warnings_of,
)
from sim.report.run.tiers import tier_lines
from sim.results.metrics import verdicts
from sim.results.units import count, number, percent, seconds, size_of

if TYPE_CHECKING:
    from sim.results.paired import Paired


MOST_DIGITS = 7
SHOWN = ("mean", "p50", "p90", "p99", "max")
# Measures of the table that has a row for each run, the most wanted first, with their headings.
ROWS_OF = {
    "throughput.requests_per_s": "Req.\n/s", "ttft_s.p50": "TTFT\np50", "ttft_s.p99": "TTFT\np99",
    "tpot_s.p50": "TPOT\np50", "tpot_s.p99": "TPOT\np99", "e2e_s.p99": "E2E\np99", "kv.useful": "KV\nuseful",
    "kv.prefix_hit_rate": "prefix\nhits", "kv.shared.saving_mean": "shared\nsaves",
    "goodput.requests_per_s": "Good-\nput/s", "kv.preemptions": "pre-\nempt.",
    "bill.usd_per_million_output_tokens": "$/Mtok\noutput", "kv.peak_used": "KV\npeak",
    "throughput.output_tokens_per_s": "Output\ntokens/s", "e2e_s.p50": "E2E\np50",
}  # fmt: skip
VERDICTS = {True: ("met", "green"), False: ("MISSED", "bold red"), None: ("undefined", "yellow")}


def latency_table(summary: Mapping[str, Any], width: int = 80) -> Table:
    """TTFT, TPOT, ITL, E2E and queueing: one row each, in the unit that fits its p99."""
    table = Table(box=None, padding=(0, 0, 0, 2), pad_edge=False)
    # What a narrow terminal takes away is the room between the numbers, never the names and units.
    table.add_column("Latency", style="bold", min_width=8, no_wrap=True)
    table.add_column("", min_width=2, style="dim", no_wrap=True)
    for name in SHOWN:
        table.add_column(name, justify="right", width=max(MOST_DIGITS, min(10, (width - 12) // len(SHOWN) - 2)))
    for label, unit, cells in latency_rows(summary, SHOWN, LatencyUnits.of([summary])):
        table.add_row(label, unit, *cells)
    return table


def kv_lines(kv: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    size = f"{kv_capacity_words(kv)} in blocks of {count(kv['block_tokens'])}"
    yield "KV pool", f"mean {percent(kv['mean_used'])}, peak {percent(kv['peak_used'])} used of {size}"
    held = kv["waste"]["of_held"]
    waste = ", ".join(f"{percent(held[kind])} {kind}" for kind in ("reserved", "internal", "external"))
    yield "KV held", f"{percent(kv['useful'])} data, {waste} waste"
    if kv["shared"]["saving_mean"]:
        saving = percent(kv["shared"]["saving_mean"])
        yield "Sharing", f"saved {saving} of the KV data; {percent(held['shared'])} of what was held was shared"
    if kv["copied_bytes"]:
        yield "Copies", f"{size_of(kv['copied_bytes'])} copied on write"
    if kv["prefix_hit_rate"]:
        blocks = kv["prefix_hit_rate_blocks"]
        of_blocks = "" if blocks is None else f", {percent(blocks)} of the blocks looked up"
        yield "Prefixes", f"{percent(kv['prefix_hit_rate'])} of the prompt tokens were in the cache{of_blocks}"
    if kv["preemptions"] or kv["swapped_bytes"]:
        yield "Evictions", f"{count(kv['preemptions'])} preemptions, {size_of(kv['swapped_bytes'])} swapped"


def speculation_lines(drafts: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    gave = f"{number(drafts['tokens_per_target_step'])} tokens a target step"
    yield "Drafts", f"{gave}; right by position: {drafts_by_position(drafts)}"
    memory = ""
    if drafts["draft_weight_bytes"]:
        memory = f"; weights {size_of(drafts['draft_weight_bytes'])}"
        if drafts["draft_kv_bytes_per_token"]:
            memory += f", KV {size_of(drafts['draft_kv_bytes_per_token'])} a token"
        memory += " on each GPU"
    yield "Drafter", f"{drafts['drafter']}, {percent(drafts['drafting_share'])} of the time{memory}"


def slo_lines(summary: Mapping[str, Any]) -> Iterable[tuple[str, Text]]:
    if not (goodput := summary.get("goodput")):
        return
    units = LatencyUnits.of([summary])
    rate, share = number(goodput["requests_per_s"]), percent(goodput["fraction"])
    yield "Goodput", Text(f"{rate} requests/s met every limit: {share} of all requests")
    for clause in verdicts(summary):
        word, style = VERDICTS[clause.met]
        yield "SLO", Text(f"{clause_words(clause, units)}: ").append(word, style=style)


def facts_table(summary: Mapping[str, Any]) -> Table:
    """Everything but latency, one labelled line each; long lines wrap beside their label."""
    rates = summary["throughput"]
    output, total = number(rates["output_tokens_per_s"]), number(rates["total_tokens_per_s"])
    tokens = f"{output} output tokens/s, {total} in all"
    lines: list[tuple[str, str | Text]] = []
    if "load" in summary:  # of a folder that an earlier version wrote it is not
        lines.append(("Load", load_line(summary["load"])))
    lines.append(("Served", f"{number(rates['requests_per_s'])} requests/s, {tokens}"))
    if summary["computed"]["padding_fraction"]:
        lines.append(
            ("Padding", f"{percent(summary['computed']['padding_fraction'])} of the computed tokens were padding")
        )
    if "front_end" in summary:
        lines.append(("Front end", front_end_line(summary)))
    lines += operation_lines(summary)
    lines += [("Model", f"{model}: {line}") for model, line in model_lines(summary)]
    lines += pool_lines(summary)
    if transfers := transfer_line(summary):
        lines.append(("Transfers", transfers))
    lines += kv_lines(summary["kv"])
    lines += tier_lines(summary["kv"])
    lines += adapter_lines(summary)
    lines += [("KV band", line) for line in kv_capacity_lines(summary)[1:]]
    if drafts := summary.get("speculation"):
        lines += speculation_lines(drafts)
    lines += slo_lines(summary)
    lines += [("Money", money_line(summary["bill"])), ("Energy", energy_line(summary["bill"]))]
    if sources := sources_line(summary):
        lines.append(("Costs", f"{sources} (share of the simulated seconds)"))
    lines += band_lines(summary)
    simulator = summary["simulator"]
    if simulator.get("wall_s"):
        pace = f"{count(round(simulator.get('requests_per_cpu_s') or 0))} requests a CPU second"
        pace += f", {build}" if (build := simulator.get("build", PURE)) != PURE else ""
        lines.append(("Wall time", f"{seconds(simulator['wall_s'])} for {count(simulator.get('steps'))} steps, {pace}"))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", width=9, no_wrap=True)
    table.add_column(overflow="fold")
    for label, line in lines:
        table.add_row(label, line if isinstance(line, Text) else Text(line))
    return table


def remarks(marked: Sequence[tuple[str, str, str]]) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    for mark, text, style in marked:
        table.add_row(Text(mark, style=style), Text(text, style=style))
    return table


def summary_view(summary: Mapping[str, Any], *, warnings: Iterable[str] = ()) -> RenderableType:
    """One run on one screen: its verdict, what ran, latencies, rates, KV use, SLO, sources, warnings and notes.

    warnings: sentences beyond those that the summary itself gives rise to.
    """
    marked = [("!", text, "yellow") for text in (*warnings_of(summary), *warnings)]
    marked += [("*", text, "dim") for text in notes_of(summary)]
    first: list[RenderableType] = [Text(answer(summary), style="bold"), ""] if answer(summary) else []
    engine = str(summary["inputs"].get("engine") or OURS)
    whole = title(summary, "" if engine == OURS else engine)
    head = (Text(whole, style="bold", overflow="fold"), Text(requests_line(summary)))
    parts: list[RenderableType] = [
        *first,
        *head,
        "",
        FittedTable(lambda width: latency_table(summary, width)),
        "",
        facts_table(summary),
    ]
    return Group(*parts, "", remarks(marked)) if marked else Group(*parts)


def _change(value: float | None, base: float | None) -> str:
    """How far a value lies from the first run's, in percent or as a factor; nothing where that has no meaning."""
    if value is None or not base or value == base:
        return " " * 7
    if value / base >= 10:
        return f" x{value / base:,.0f}".rjust(7)
    change = 100 * (value / base - 1)
    return f"{change:+.{0 if abs(change) >= 10 else 1}f}%".rjust(7)


def compare_view(
    summaries: Mapping[str, Mapping[str, Any]],
    width: int = 80,
    *,
    failures: Mapping[str, str] | None = None,
    pairs: Mapping[str, Paired] | None = None,
) -> RenderableType:
    """Runs side by side, name -> summary, in one table; failures: name -> why it did not run; pairs: the differences
    from the first run, request by request.

    As columns, each with its difference from the first, where they fit in `width`; else as rows of the measures
    that fit.
    """
    from sim.report.compare.paired import paired_tables  # noqa: PLC0415 - a run alone has nothing beside it
    from sim.report.compare.winners import nearest_words, turned_words, unlike_clients  # noqa: PLC0415

    parts: list[RenderableType] = []
    if summaries:
        fit = len(summaries) <= max(2, (width - 19) // 18)
        parts.append(_columns_table(summaries) if fit else _rows_table(summaries, width))
        behind = {name: "front_end" in summary for name, summary in summaries.items()}
        for told in filter(None, (nearest_words(summaries), turned_words(summaries), unlike_clients(behind))):
            parts += ["", remarks([("!", told, "yellow")])]
    if pairs:
        parts += [*([""] if parts else []), *paired_tables(pairs)]
    if failures:
        marked = [("!", f"{name} did not run: {reason}", "yellow") for name, reason in failures.items()]
        parts += ["", remarks(marked)] if parts else [remarks(marked)]
    return Group(*parts)


def _columns_table(summaries: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 0, 0, 2), pad_edge=False)
    table.add_column("", style="bold", no_wrap=True)
    for name in summaries:
        table.add_column(Text(name, overflow="fold"), justify="right", max_width=18)
    units = LatencyUnits.of(summaries.values())
    for measure in compared(summaries.values()):
        values = [measure.value(summary) for summary in summaries.values()]
        unit, shown = units.texts(measure, values)
        changes = ["", *(_change(value, values[0]) for value in values[1:])]
        cells = [cell + change for cell, change in zip(shown, changes, strict=True)]
        table.add_row(f"{measure.title} {unit}".strip(), *cells)
    if any(map(binds, summaries.values())):
        # As far to the left as a value that has its difference behind it.
        table.add_row(
            "Binds", *(f"{binds(summary)}{' ' * 7 * (place > 0)}" for place, summary in enumerate(summaries.values()))
        )
    return table


def _rows_table(summaries: Mapping[str, Mapping[str, Any]], width: int) -> Table:
    """A row for each run and a column for each measure of `ROWS_OF`, as many as fit; the best of each in green."""
    table = Table(box=None, padding=(0, 0, 0, 2), pad_edge=False)
    longest = min(24, max(map(len, summaries)))
    table.add_column("", style="bold", width=longest, overflow="fold")
    known, units = compared(summaries.values()), LatencyUnits.of(summaries.values())
    columns, used = [], longest
    for key, heading in ROWS_OF.items():
        if (measure := MEASURES[key]) not in known:
            continue
        values = [measure.value(summary) for summary in summaries.values()]
        unit, shown = units.texts(measure, values)
        lines = [*heading.split("\n"), unit]
        wide = max(map(len, [*lines, *shown]))
        if used + 2 + wide > width:
            break
        used += 2 + wide
        winners = best(measure, values, units)
        table.add_column("\n".join(lines), justify="right", width=wide)
        columns.append([Text(text, "green" if place in winners else "") for place, text in enumerate(shown)])
    if any(map(binds, summaries.values())):
        wide = max(map(len, map(binds, summaries.values())))
        if used + 2 + wide <= width:
            table.add_column("Binds", justify="right", width=wide)
            columns.append([Text(binds(summary)) for summary in summaries.values()])
    for name, *cells in zip(summaries, *columns, strict=True):
        table.add_row(Text(name, overflow="fold"), *cells)
    return table


def render(view: RenderableType, width: int = 80) -> str:
    """A view as plain text without colour, for files and tests."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(view)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def show(view: RenderableType, console: Console | None = None) -> None:
    """Print a view on stdout (or `console`): colour on a terminal only; piped output is 80 columns wide."""
    (console or Console(highlight=False)).print(view)
