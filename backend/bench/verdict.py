"""Holds a run against the bars that were set for it, and prints it. A bar is met, missed or not measured.

Bars: from the published H200 figures of vLLM, SGLang, TensorRT-LLM and FlashAttention-3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from backend.bench.attention import PLANNED, prefill_name
from backend.bench.cliff import NOISE, STEP
from backend.bench.record import MEASURED, BenchRow, Report

MET, MISSED, NOT_MEASURED = "met", "missed", "not measured"
GB, MB = 10**9, 10**6


@dataclass(frozen=True, slots=True)
class Bar:
    """What was asked for, what was found, and whether that is enough; `why` says where it was found, or why not."""

    name: str
    asked: str
    state: str
    found: float | None = None
    why: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A bar: its unit's text, whether more or less is wanted, the figure, and for which GPUs it was set."""

    name: str
    text: str
    limit: float
    more: bool
    measure: Callable[[Report], tuple[float, str] | None]
    gpus: tuple[str, ...] = ()
    missing: str = "its cases did not run"

    def judge(self, report: Report) -> Bar:
        """Against a run; small shapes and CPUs meet and miss nothing."""
        name = str(report.environment.get("device", ""))
        if report.environment.get("device_type") != "cuda":
            return Bar(self.name, self.text, NOT_MEASURED, why="no GPU")
        if report.environment.get("small"):
            return Bar(self.name, self.text, NOT_MEASURED, why="small shapes")
        measured = self.measure(report)
        if measured is None:
            return Bar(self.name, self.text, NOT_MEASURED, why=self.missing)
        value, where = measured
        if self.gpus and not any(gpu in name for gpu in self.gpus):
            return Bar(self.name, self.text, NOT_MEASURED, value, f"set for {' and '.join(self.gpus)}, this is {name}")
        met = value >= self.limit if self.more else value <= self.limit
        return Bar(self.name, self.text, MET if met else MISSED, value, where)


def bars(report: Report) -> list[Bar]:
    return [asked.judge(report) for asked in ASKED]


def _cases(report: Report, group: str, **sizes: int | str) -> Iterator[list[BenchRow]]:
    cases: dict[str, list[BenchRow]] = {}
    for row in report.rows:
        if row.group == group and row.state == MEASURED and all(row.sizes.get(k) == v for k, v in sizes.items()):
            cases.setdefault(row.case, []).append(row)
    yield from cases.values()


def _fastest(rows: Iterable[BenchRow], *, ours: bool) -> BenchRow | None:
    """The fastest of ours (each with a plan of its own) or of the peers."""
    candidates = [row for row in rows if row.ours == ours and row.contender != PLANNED and row.time is not None]
    return min(candidates, key=lambda row: row.time.median_s if row.time else 0.0, default=None)


def _decode_tb_per_s(cache: str) -> Callable[[Report], tuple[float, str] | None]:
    """The slowest case of ours with at least 1 GB of keys and values."""

    def measure(report: Report) -> tuple[float, str] | None:
        best = [_fastest(rows, ours=True) for rows in _cases(report, "decode", cache=cache)]
        rates = [
            (row.rate(row.bytes) / 1e12, f"{row.case}, {row.contender}") for row in best if row and row.bytes >= GB
        ]
        return min(rates, default=None)

    return measure


def _against_peers(group: str, least_bytes: int, *, speed: bool, **sizes: int | str) -> Callable[[Report], Any]:
    """Ours over the best peer, the worst case: in time, or in speed."""

    def measure(report: Report) -> tuple[float, str] | None:
        ratios = []
        for rows in _cases(report, group, **sizes):
            ours, peer = _fastest(rows, ours=True), _fastest(rows, ours=False)
            if ours and peer and ours.time and peer.time and ours.bytes >= least_bytes:
                ratio = ours.time.median_s / peer.time.median_s
                ratios.append((1 / ratio if speed else ratio, f"{ours.case}, beside {peer.contender}"))
        return (min(ratios) if speed else max(ratios)) if ratios else None

    return measure


def _prefill_tflop_per_s(report: Report) -> tuple[float, str] | None:
    for rows in _cases(report, "prefill", new_tokens=8192):
        best = _fastest(rows, ours=True)
        if best:
            return best.rate(best.flops) / 1e12, best.contender
    return None


def _cliff(kind: str) -> Callable[[Report], tuple[float, str] | None]:

    def measure(report: Report) -> tuple[float, str] | None:
        worst = [
            (float(values[kind]), f"worst on {line}") for line, values in report.cliffs.items() if values["points"] > 1
        ]
        return max(worst, default=None)

    return measure


def copy_bytes_per_s(report: Report) -> float:
    """This run's copy bandwidth; 0 where it was not measured."""
    return max((row.rate(row.bytes) for rows in _cases(report, "copy") for row in rows), default=0.0)


def _step_over_vllm(report: Report) -> tuple[float, str] | None:
    """Time of the recorded batch-1 step over that of vLLM's own, which the caller told."""
    theirs_s = report.environment.get("vllm_step_s")
    for rows in _cases(report, "step", sequences=1):
        for row in rows:
            if row.contender == "ours, CUDA graph" and theirs_s and row.time:
                return row.time.median_s / theirs_s, row.case
    return None


_H200, _HOPPER = ("H200",), ("H100", "H200")
_NO_PEER = "no peer was measured beside ours"

ASKED = (
    _Asked("decode bf16, 1 GB of KV and more", ">= 4.1 TB/s", 4.1, True, _decode_tb_per_s("bf16"), _H200),
    _Asked(
        "decode time over the best peer, from 64 MB on", "<= 1.1", 1.1, False,
        _against_peers("decode", 64 * MB, speed=False, cache="bf16"), missing=_NO_PEER,
    ),
    _Asked("decode time falls with more work", f"by <= {NOISE:.0%}", NOISE, False, _cliff("fall")),
    _Asked("decode time beyond its bytes", f"+ <= {STEP - 1:.0%}", STEP - 1, False, _cliff("jump")),
    _Asked("the same where the cut changes", f"+ <= {STEP - 1:.0%}", STEP - 1, False, _cliff("switch_jump")),
    _Asked("decode fp8, 1 GB of KV and more", ">= 3.5 TB/s", 3.5, True, _decode_tb_per_s("fp8"), _H200),
    _Asked(prefill_name(8192, 0) + ", first", ">= 450 TFLOP/s", 450, True, _prefill_tflop_per_s, _HOPPER),
    _Asked(prefill_name(8192, 0) + ", then", ">= 600 TFLOP/s", 600, True, _prefill_tflop_per_s, _HOPPER),
    _Asked(
        prefill_name(512, 8192) + ", speed over the best peer", ">= 0.8", 0.8, True,
        _against_peers("chunk", 0, speed=True, new_tokens=512, past_tokens=8192), missing=_NO_PEER,
    ),
    _Asked(
        "batch-1 step over vLLM's own", "<= 1.0", 1.0, False, _step_over_vllm,
        missing="vLLM's own step was not told (--vllm-step-ms)",
    ),
)  # fmt: skip
"""Bandwidths were set for an H200, matrix rates for Hopper (an H100 has an H200's), ratios for any GPU."""


def show(report: Report, console: Console) -> None:
    """The whole run as tables: rows by group, what was not timed, the bars. Cliffs' points are in the file."""
    ceiling = copy_bytes_per_s(report)
    for group in dict.fromkeys(row.group for row in report.rows):
        rows = [row for row in report.rows if row.group == group]
        if group != "cliff":
            console.print(_group_table(group, rows, ceiling))
        for reason, names in _reasons(rows).items():
            console.print(f"  {reason} ({', '.join(names)})", style="dim", highlight=False)
    for line, values in report.cliffs.items():
        worst = (
            f"falls {values['fall']:.1%}, beyond its bytes {values['jump']:.1%}, at cuts {values['switch_jump']:.1%}"
        )
        console.print(f"cliff, {line}, {values['points']} points: worst: {worst}", highlight=False)
        for finding in values["findings"]:
            console.print(f"  {finding}", style="yellow", highlight=False)
    for case, reason in report.unfinished.items():
        console.print(f"not run: {case}: {reason}", style="yellow", highlight=False)
    console.print(_bar_table(report.bars))


def _reasons(rows: list[BenchRow]) -> dict[str, list[str]]:
    """Why contenders were not timed, each with the cases where."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.time is None:
            cases = reasons.setdefault(f"{row.contender}: {row.state}: {row.reason}", [])
            cases += [row.case] * (row.case not in cases)
    return reasons


COLUMNS = ("median us", "+-%", "GB/s", "% copy", "TFLOP/s", "tokens/s", "error", "peak MB")


def _group_table(group: str, rows: list[BenchRow], ceiling: float) -> Table:
    """The measured rows, with the columns that say something."""
    timed = [(row, _cells(row, ceiling)) for row in rows if row.time is not None]
    used = [name for name in COLUMNS if any(cells[name] for _, cells in timed)]
    table = Table(title=group, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("case")
    table.add_column("contender")
    for name in used:
        table.add_column(name, justify="right", no_wrap=True)
    last = ""
    for row, cells in timed:
        style = "bold" if row.ours else None
        table.add_row("" if row.case == last else row.case, row.contender, *(cells[name] for name in used), style=style)
        last = row.case
    return table


def _cells(row: BenchRow, ceiling: float) -> dict[str, str]:
    """A measured row's numbers by column; empty where they say nothing."""
    assert row.time is not None
    bytes_per_s = row.rate(row.bytes)
    values = (
        f"{row.time.median_s * 1e6:,.1f}",
        f"{100 * row.time.spread:.1f}",
        _number(bytes_per_s / 1e9),
        _number(100 * bytes_per_s / ceiling if ceiling else 0.0),
        _number(row.rate(row.flops) / 1e12),
        _number(row.rate(row.tokens)),
        "" if row.error is None else f"{row.error:.1e}",
        "" if row.peak_bytes is None else f"{row.peak_bytes / MB:,.0f}",
    )
    return dict(zip(COLUMNS, values, strict=True))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value else ""


def _bar_table(bars: Iterable[Mapping[str, Any]]) -> Table:
    colours = {MET: "green", MISSED: "red", NOT_MEASURED: "dim"}
    table = Table(title="bars", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in ("bar", "asked", "found", "", "where, or why not"):
        table.add_column(name)
    for bar in bars:
        value = "" if bar["found"] is None else f"{bar['found']:.3g}"
        table.add_row(bar["name"], bar["asked"], value, bar["state"], bar["why"], style=colours[bar["state"]])
    return table
