"""The sentences that every report of a run shares: what ran, how it ended, what to believe, which limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sim.report.measures import LatencyUnits, latency
from sim.report.run.pools import pool_words, replicas_words, split_words
from sim.results.binding import front_end_busy, kv_limits
from sim.results.metrics import SOURCES, SloResult
from sim.results.units import count, count_of, dollars, energy, mean_count_of, number, percent, seconds
from sim.results.verdict import clause_name
from traces import documents
from traces.schema import InputError

# More preemptions than this for each request are told as a storm.
STORM = 0.1
# A run of more arithmetic than this, on a card that keeps less than this of its rate, sits on its sustained clocks.
ARITHMETIC_FROM, SUSTAINED_FROM = 0.5, 0.95
ROOFLINE_WARNING = (
    "Every second of this run comes from data-sheet rooflines, none from a measurement: "
    "compare settings with it, but do not promise its latencies."
)


def title(summary: Mapping[str, Any], engine: str = "") -> str:
    """`llama-3.1-8b on 2 x h100 (TP 1, 2 replicas), foretoken, 25 requests/s: chat.jsonl`, as far as it is known."""
    inputs = summary["inputs"]
    return heading(inputs, engine, load_words(summary.get("load") or {}), str(inputs.get("trace") or "a trace"))


def heading(inputs: Mapping[str, Any], engine: str, load: str, trace: str) -> str:
    """Of any report: the model on its GPUs, the engine, the load, and the trace behind them."""
    where = gpus_words(inputs)
    several = any(pool.get("model") for pool in (inputs.get("pools") or {}).values())  # each pool says its own
    what = " on ".join(filter(None, ["" if several else str(inputs.get("model") or ""), where]))
    return ": ".join(filter(None, [", ".join(filter(None, [what, engine, load])), trace]))


def gpus_words(inputs: Mapping[str, Any]) -> str:
    """`4 x h100 (TP 2, 2 replicas)`; "" where no GPU is named."""
    if pools := inputs.get("pools"):
        return " and ".join(f"{name} {pool_words(pool)}" for name, pool in pools.items())
    gpu, tp, replicas = (inputs.get(key) for key in ("gpu", "tp", "replicas"))
    if not gpu:
        return ""
    sizes = split_words(inputs)
    if replicas:
        sizes.append(replicas_words(inputs))
    split = (inputs.get("pp") or 1) * (inputs.get("dp") or 1)
    gpus = tp * split * replicas if tp and replicas and not inputs.get("scales") else 1
    many = f"{count(gpus)} x " if gpus > 1 else ""
    return f"{many}{gpu} ({', '.join(sizes)})" if sizes else f"{many}{gpu}"


def load_words(load: Mapping[str, Any]) -> str:
    """How much was asked for, as a title has it: `25 requests/s`; "" of a run that an earlier version wrote."""
    words = {
        "recorded": "at its recorded times",
        "at once": "all at once",
        "staged": "in stages",
        "closed": f"{count(load.get('users'))} users",
    }
    asked = load.get("asked_per_s")
    return f"{asked:g} requests/s" if asked else words.get(load.get("kind", ""), "")


def engine_of(inputs: Mapping[str, Any], scenario: str) -> str:
    """What a run calls its engine; of an earlier version, which says none, what its scenario as TOML does, or ""."""
    if inputs.get("engine"):
        return str(inputs["engine"])
    try:
        engine = documents.toml_of(scenario, "the scenario").get("engine")
    except InputError:
        return ""
    return str(engine.get("preset") or engine.get("name", "")) if isinstance(engine, Mapping) else ""


def answer(summary: Mapping[str, Any]) -> str:
    """The run's verdict, the first line of every report; "" of a run that an earlier version wrote."""
    return str(summary.get("verdict", {}).get("sentence", ""))


def binds(summary: Mapping[str, Any]) -> str:
    """What binds the run, in a word or two; "" of a run that an earlier version wrote."""
    return str(summary.get("binding", {}).get("by", ""))


def requests_line(summary: Mapping[str, Any]) -> str:
    counts = summary["requests"]
    rest = [f"{count(counts[name])} {name}" for name in ("rejected", "unfinished") if counts.get(name)]
    if counts.get("dropped"):
        rest.append(f"{count(counts['dropped'])} rows of the trace dropped")
    ended = ", ".join([f"{count(counts['completed'])} completed", *rest])
    return f"{count_of(counts['total'], 'request')} in {seconds(summary['duration_s'])}: {ended}"


def load_line(load: Mapping[str, Any]) -> str:
    """What was offered, admitted and served per second while requests came."""
    who = {"closed": f"{count(load['users'])} users, ", "at once": "all at once, ", "staged": "in stages, "}
    start = who.get(load["kind"], "")
    if load["offered_per_s"] is None:
        return f"{start or 'all at one time, '}the last ended {seconds(load['drain_s'])} later"
    asked = "" if load["asked_per_s"] is None else f" ({number(load['asked_per_s'])} asked)"
    rates = [f"{number(load[f'{what}_per_s'])}/s {what}" for what in ("offered", "admitted", "served")]
    rates[0] += asked
    return f"{start}{', '.join(rates)}"


def front_end_line(summary: Mapping[str, Any]) -> str:
    """Whose latencies are whose, and how busy the front end's processes are."""
    processes, busy = summary["front_end"]["processes"], percent(front_end_busy(summary))
    where = f"{count(processes)} process{'' if processes == 1 else 'es'}, {busy} busy"
    return f"{where}; latencies are a client's, those named Engine without it"


def load_rows(load: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same as (name, value)."""
    kinds = {"closed": f"{count(load['users'])} users, each waits for an answer", "open": "at a rate"}
    return [
        ("Arrivals", kinds.get(load["kind"], load["kind"])),
        *([] if load["asked_per_s"] is None else [("Asked for", f"{number(load['asked_per_s'])}/s")]),
        *((what.capitalize(), f"{number(load[f'{what}_per_s'])}/s") for what in ("offered", "admitted", "served")),
        ("Window in which they came", seconds(load["window_s"])),
        ("From its end to the last answer", seconds(load["drain_s"])),
    ]


def clause_words(clause: SloResult, units: LatencyUnits) -> str:
    """A clause of the SLO with what was measured: `TTFT p99 0.932 s, limit 0.5 s`."""
    unit = units.of_clause(clause.name)
    return f"{clause_name(clause.name)} {unit.words(clause.measured_s)}, limit {unit.limit(clause.limit_s)}"


def notes_of(summary: Mapping[str, Any]) -> list[str]:
    """The run's notes: what the inputs say about themselves (`synthetic`, `notes`)."""
    inputs = summary["inputs"]
    texts = [str(note) for note in inputs.get("notes") or []]
    if inputs.get("synthetic") and not any(note.startswith("Synthetic") for note in texts):
        texts.insert(0, "Synthetic: the trace was made, not recorded.")
    return list(dict.fromkeys(texts))


def kv_capacity_words(kv: Mapping[str, Any]) -> str:
    """`437,376 tokens (425,040 to 441,232)`: a pool's size, with its band where it is estimated."""
    if kv["capacity_tokens"] is None:
        return "pools of several sizes"
    low, high = kv.get("capacity_low_tokens"), kv.get("capacity_high_tokens")
    band = f" ({count(low)} to {count(high)})" if low != high else ""
    return f"{count(kv['capacity_tokens'])} tokens{band}"


def kv_capacity_lines(summary: Mapping[str, Any]) -> list[str]:
    """How the size of a KV pool is known, and what the ends of its band do; nothing of a size that was given."""
    kv = summary["kv"]
    source = kv.get("capacity_source")
    if not source:
        return []
    low, high = kv["capacity_low_tokens"], kv["capacity_high_tokens"]
    if low == high:
        return [f"The KV capacity of {count(kv['capacity_tokens'])} tokens is what a server wrote: {source}."]
    told = (
        f"The KV capacity of {count(kv['capacity_tokens'])} tokens is estimated, {count(low)} to {count(high)}: "
        f"{source} (docs/kv.md); kv.from_log takes it from a line that the server writes at its start."
    )
    if not kv_limits(summary):
        return [told]
    if ends := kv.get("ends"):
        return [told, *(_end_words(name, figures, summary) for name, figures in ends.items())]
    return [told, "KV memory limits this run, so that its answer hangs on that band: sim run --kv-ends tells how far."]


def _end_words(end: str, figures: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The figures at one end of the band beside those of the run."""
    if "cannot_run" in figures:
        return f"With the {end} KV memory it does not run: {figures['cannot_run']}."
    units = LatencyUnits.of([summary, figures])
    latencies = [(latency(key, statistic), key) for key, statistic in (("ttft_s", "p99"), ("tpot_s", "p50"))]
    moved = [f"{each.label} {units.words(each, each.value(figures))}" for each, _ in latencies]
    share = figures["goodput_fraction"]
    goodput = "" if share is None else f", {percent(share)} of the requests within the SLO"
    return (
        f"With the {end} KV memory ({count(figures['capacity_tokens'])} tokens): {', '.join(moved)}, "
        f"{number(figures['requests_per_s'])} requests/s, {count_of(figures['preemptions'], 'preemption')}{goodput}."
    )


def sources_line(summary: Mapping[str, Any]) -> str:
    """The share of the simulated seconds by where they come from, largest first; "" where there are none."""
    shares = summary["cost_sources"]
    present = sorted((name for name in SOURCES if shares.get(name)), key=lambda name: -shares[name])
    return ", ".join(f"{percent(shares[name])} {name}" for name in present)


def warnings_of(summary: Mapping[str, Any]) -> list[str]:
    shares, texts = summary["cost_sources"], []
    if shares.get("roofline", 0) >= 1:
        texts.append(ROOFLINE_WARNING)
    elif shares.get("roofline", 0) > 0:
        texts.append(resting(shares))
    if shares.get("extrapolated", 0) > 0:
        texts.append(f"{percent(shares['extrapolated'])} of the seconds lie outside the calibrated range.")
    texts.extend(_under_load(summary))
    preemptions, total = summary["kv"]["preemptions"], summary["requests"]["total"]
    if preemptions > STORM * total:
        texts.append(
            f"{count(preemptions)} preemptions for {count(total)} requests: the KV memory is too small for this load, "
            "and what was dropped was computed again."
        )
    if summary["requests"].get("unfinished"):
        texts.append("Some requests did not finish: the latencies below leave out what they never reached.")
    return texts


def resting(shares: Mapping[str, float]) -> str:
    """How much of the seconds rests on measurements, and how much on the data sheet alone."""
    roofline = shares["roofline"]
    return (
        f"{percent(1.0 - roofline)} of the seconds rest on measurements; {percent(roofline)} are estimates by "
        "data-sheet rates, since no table has them."
    )


def _under_load(summary: Mapping[str, Any]) -> Iterator[str]:
    """Where most of the seconds are arithmetic, on a card that lowers its clocks under it."""
    share = summary["inputs"].get("sustained_compute", 1.0)
    arithmetic = ((summary.get("binding") or {}).get("step") or {}).get("compute", 0.0)
    if share < SUSTAINED_FROM and arithmetic > ARITHMETIC_FROM:
        yield (
            f"{percent(arithmetic)} of the step seconds are arithmetic, under which the GPU's clocks fall: long "
            f"products are priced at {percent(share)} of the peak's rate (cost.efficiency.sustained_compute)."
        )


def drafts_by_position(speculation: Mapping[str, Any], most: int = 8) -> str:
    """How often the first, second, .. draft of a step was right, and all before it; the first `most` of them."""
    shares = speculation["acceptance_by_position"]
    more = f" .. {percent(shares[-1])}" if len(shares) > most else ""
    return ", ".join(map(percent, shares[:most])) + more or "nothing was drafted"


def money_line(bill: Mapping[str, Any]) -> str:
    """What a million tokens cost, and at which price; or that none is known."""
    if bill["usd"] is None:
        return str(bill["price_source"])
    whose = f"{mean_count_of(bill['gpus'], 'GPU')} at {dollars(bill['usd_per_gpu_hour'])} an hour"
    if bill["usd_per_million_tokens"] is None:
        return f"{dollars(bill['usd'])} for {whose}, and no request completed"
    every, output = (dollars(bill[f"usd_per_million_{kind}"]) for kind in ("tokens", "output_tokens"))
    return f"{every} per million tokens ({output} of output); {whose}"


def energy_line(bill: Mapping[str, Any]) -> str:
    """What energy a million tokens take, and at which power; or that it is not known."""
    if bill["joules"] is None:
        return str(bill["power_source"])
    whose = f"{number(bill['watts_per_gpu'])} W a GPU"
    bound = "at most " if bill["joules_upper_bound"] else ""
    if bill["joules_per_million_tokens"] is None:
        return f"{bound}{energy(bill['joules'])} at {whose}, and no request completed"
    every, output = (energy(bill[f"joules_per_million_{kind}"]) for kind in ("tokens", "output_tokens"))
    return f"{bound}{every} per million tokens ({output} of output); {whose}"


def bill_rows(bill: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The whole bill as (name, value), with where its numbers are from."""
    bound = ", at most" if bill["joules_upper_bound"] else ""
    money = [
        ("Price of a GPU-hour", dollars(bill["usd_per_gpu_hour"])),
        ("Cost of the run", dollars(bill["usd"])),
        ("Of a million tokens", dollars(bill["usd_per_million_tokens"])),
        ("Of a million output tokens", dollars(bill["usd_per_million_output_tokens"])),
    ]
    power = [
        ("Power of a GPU", f"{number(bill['watts_per_gpu'])} W"),
        (f"Energy of the run{bound}", energy(bill["joules"])),
        (f"Of a million tokens{bound}", energy(bill["joules_per_million_tokens"])),
        (f"Of a million output tokens{bound}", energy(bill["joules_per_million_output_tokens"])),
    ]
    return [
        ("GPUs", mean_count_of(bill["gpus"], "GPU").split()[0]),
        *(money if bill["usd"] is not None else []),
        ("Price", bill["price_source"]),
        *(power if bill["joules"] is not None else []),
        ("Power", bill["power_source"]),
    ]
