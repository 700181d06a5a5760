"""How right Foretoken is: every claim with the command that makes it again, written to docs/accuracy.md and README.md.

    python -m tests.accuracy              runs what can run here (about ten minutes on a CPU), writes both tables
    python -m tests.accuracy --only TEXT  runs only claims with these words, and keeps the other rows
    python -m tests.accuracy --write      runs nothing: the pages anew from the rows there are
    python -m tests.accuracy --gate       runs those with errors, writes nothing, and fails where one has worsened by
                                          more than a point against the page: mend it, or write the page as well

What a claim needs may be absent here (recordings in ../shared, a GPU), and a few were measured by hand: their rows
keep the result and the date that they have.
"""

from __future__ import annotations

import argparse
import datetime
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs" / "accuracy.md", ROOT / "README.md"
HEAD = "| claim | result | command |\n|---|---|---|\n"
PAGE_HEAD = "| claim | result | command | needs | last run |\n|---|---|---|---|---|\n"
WORSE = 1.0
"""Points by which an error may grow before the gate fails."""
NEVER, BY_HAND, SHARED, GPU = "not measured", "by hand", "`../shared`", "a GPU"


@dataclass(frozen=True, slots=True)
class Claim:
    """A row: `result` makes its words of what the commands print; None where no command does."""

    claim: str
    commands: tuple[str, ...]
    result: Callable[[str], str] | None
    needs: str = ""
    shown: str = ""
    """The cell of the command, where that is not the commands themselves."""
    in_readme: bool = False

    @property
    def cell(self) -> str:
        """What the row says of its command."""
        return self.shown or ", ".join(f"`{command}`" for command in self.commands)

    def runs_here(self) -> bool:
        """Whether a command makes it, and what that needs is there."""
        if self.result is None or self.needs == GPU:
            return False
        return self.needs != SHARED or (ROOT.parent / "shared").is_dir()


@dataclass(frozen=True, slots=True)
class Result:
    """The words of a row and when they were measured."""

    words: str
    date: str


def passed(words: str) -> Callable[[str], str]:
    """Of tests that assert what the row says."""
    return lambda _output: words


def on_a_card(output: str) -> str:
    """Decisions, and the errors of the validation's table."""
    assert "Identical" in output
    rows = {name: read(output, rf"{name}[^%]* ([+-]?[0-9.]+) %")[0][0] for name in ("TPOT p50", "E2E p50", "TTFT p50")}
    [tokens], [decode], [mixed] = (
        read(output, pattern)[0]
        for pattern in (
            r"Output tokens/s[^%]* ([+-]?[0-9.]+) %",
            r"decode +[0-9,]+ +([+-]?[0-9.]+) %",
            r"mixed +[0-9,]+ +([+-]?[0-9.]+) %",
        )
    )
    told = ", ".join(f"{name} {error:+.1f} %" for name, error in rows.items())
    return (
        f"all decisions identical; output tokens/s {tokens:+.1f} %, {told}; decode steps {decode:+.1f} %, those with "
        f"prompts, which wait for the host, {mixed:+.1f} %"
    )


def errors(words: str) -> list[float]:
    """Sizes of the signed numbers in a row's words, in points: what is off, to either side."""
    return [abs(float(number)) for number in re.findall(r"(?<!\w)[-+]\d+(?:\.\d+)?", words)]


def worse(before: str, now: str) -> list[str]:
    """What of a row has worsened by more than `WORSE` points; a row that says other things than before is no worse."""
    was, found = errors(before), errors(now)
    if len(was) != len(found):
        return []
    return [f"{one:g} % was {old:g} %" for old, one in zip(was, found, strict=True) if one > old + WORSE]


def read(output: str, pattern: str) -> list[list[float]]:
    """The numbers of each place that matches.

    Raises:
        LookupError: there is none, since then the command says something else by now.
    """
    places = [place.groups() for place in re.finditer(pattern, output)]
    if not places:
        raise LookupError(f"its command prints nothing like {pattern!r}")
    return [[float(number.replace(",", "")) for number in place] for place in places]


def between(values: Sequence[float], form: str) -> str:
    """The least and the greatest."""
    return f"{format(min(values), form)} to {format(max(values), form)}"


def schedules(output: str) -> str:
    folders = read(output, r"(\d+) identical, (\d+) different, (\d+) unsupported")
    same, different, unsupported = map(sum, zip(*folders, strict=True))
    others = f"; {different:.0f} different, {unsupported:.0f} unsupported" if different + unsupported else ""
    return f"{same:.0f} identical in every step and key (decisions, times, memory, bookkeeping){others}"


def reuse(output: str) -> str:
    ((hits, blocks, share),) = read(output, r"reusable prefix +([\d,]+) of ([\d,]+) blocks of 512 \(([\d.]+)%\)")
    published = ", as published" if (hits, blocks) == (105_710, 288_500) else " (105,710 of 288,500 published)"
    return f"{hits:,.0f} of {blocks:,.0f} blocks ({share:.2f} %){published}"


def memory(output: str) -> str:
    ours, theirs = {}, {}
    for name in ("paged", "contiguous-max", "contiguous-pow2", "contiguous-oracle"):
        ((ours[name], theirs[name]),) = read(output, name + r" +used +([\d.]+)%  published +([\d.]+)%")
    _, longest, power, oracle = (f"{ours[name]:.0f}" for name in ours)
    _, *reserved = (f"{theirs[name]:.0f}" for name in theirs)
    return (
        f"paged {ours['paged']:.0f} % ({theirs['paged']:.0f} % published); reserved {longest}, {power} and {oracle} % "
        f"({', '.join(reserved[:-1])} and {reserved[-1]} % published)"
    )


def sharing(output: str) -> str:
    def shares(kind: str, lengths: str, of: str = "", published: str = "") -> str:
        (few, there), (many, also) = (
            read(output, rf"{kind} +{lengths} +x {count}: ours +([\d.]+)%, published +([\d.]+)%")[0] for count in (2, 6)
        )
        return f"{few:.1f} and {many:.1f} %{of} ({there:.1f} and {also:.1f} %{published})"

    samples = shares("parallel sampling", "Alpaca", " on Alpaca's lengths", " published")
    return (
        f"parallel samples {samples}, {shares('parallel sampling', 'ShareGPT', ' on those of ShareGPT')}; beams, with "
        f"one parameter, {shares('beam search', 'Alpaca')}, {shares('beam search', 'ShareGPT')}"
    )


def one_request(output: str) -> str:
    ((ours, theirs),) = read(output, r"one request: ([\d.]+) ms a token, published ([\d.]+) ms")
    return f"{ours:.2f} ms a token ({theirs:.2f} ms published)"


def kernels(output: str) -> str:
    def errors(what: str, whose: str) -> str:
        means = [read(output, f"{card} {what}, {whose}.*?mean error ([\\d.]+)%")[0][0] for card in FITTED_CARDS]
        return ", ".join(f"{mean:.1f}" for mean in means)

    own = (f"{what} {errors(what, 'fitted')} %" for what in ("GEMM", "prefill attention", "decode attention"))
    return f"mean error on {', '.join(FITTED_CARDS)}: {'; '.join(own)} (the L40S's tables have operands in L2)"


def served_roofline(output: str) -> str:
    ((error, bias),) = read(output, r"Qwen3-32B on H100, vLLM 0.12, .*?mean error ([\d.]+)%, .*?bias ([-+][\d.]+)%")
    return f"TPOT mean error {error:.0f} %, bias {bias:+.0f} %"


def served_profile(output: str) -> str:
    ((error, bias),) = read(output, r"Qwen3-32B on H100, TPOT, profile: .*?mean error ([\d.]+)%, .*?bias ([-+][\d.]+)%")
    return f"TPOT mean error {error:.1f} %, bias {bias:+.1f} %"


def bands(output: str) -> str:
    runs = {
        source: read(output, rf"{source}: TPOT of (\d+) of (\d+) runs inside, half width ([\d.]+) %")[0]
        for source in ("fitted", "imported")
    }
    whole = {
        (card, source): read(output, rf"{card}, {source}: (\d+) of 3 means and (\d+) of (\d+) means")[0]
        for card in ("rtx-pro-6000", "rtx-4090")
        for source in ("imported", "roofline")
    }
    held, of, width = runs["fitted"]
    tables, _, tables_width = runs["imported"]
    inside, asked = sum(part for _, part, _ in whole.values()), sum(part for _, _, part in whole.values())
    means = sum(part for part, _, _ in whole.values())
    ((prompts, tokens, all_),) = read(output, r"Splitwise on A100: (\d+) prompts and (\d+) tokens of (\d+) inside")
    return (
        f"TPOT of {held:.0f} and {tables:.0f} of the {of:.0f} Qwen3-32B runs by fitted prices and imported tables "
        f"(half widths {width:.1f} and {tables_width:.1f} %); of TTFT, TPOT and E2E of the two RTX runs by op profiles "
        f"and by rooflines {means:.0f} of 12 means, {inside:.0f} of {asked:.0f} means and percentiles; of Splitwise's "
        f"engine of 2023 {prompts:.0f} of {all_:.0f} prompts and {tokens:.0f} of {all_:.0f} tokens"
    )


def splitwise(output: str) -> str:
    prompts, tokens = (
        between([-bias for (bias,) in read(output, rf"A100, {kind}: .*?bias ([-+][\d.]+)%")], ".0f")
        for kind in ("prompt", "token")
    )
    return f"**off**: prompts {prompts} % and tokens {tokens} % too fast; that engine of 2023 waits for kernel launches"


def real_run(output: str, card: str = "RTX PRO 6000") -> str:
    tpot, e2e, ttft_p90, makespan, tpot_p50, e2e_p50, ttft_p50 = read(output, _real("profile", card))[0]
    *_, roof_tpot, roof_e2e, roof_ttft = read(output, _real("roofline", card))[0]
    names = ", ".join(rf"{name} ([-+][\d.]+)%" for name in ("TPOT mean", "E2E mean", "TTFT P90"))
    ((peer_tpot, peer_e2e, peer_ttft_p90),) = read(output, rf"{card}, LLMServingSim by its own profile: {names}")
    return (
        f"mean TPOT {tpot:+.1f} %, mean E2E {e2e:+.1f} %, makespan {makespan:+.1f} %, TTFT P90 {ttft_p90:+.1f} %; at "
        f"the median {tpot_p50:+.1f} % TPOT, {e2e_p50:+.1f} % E2E, {ttft_p50:+.1f} % TTFT (the roofline alone "
        f"{roof_tpot:+.1f}, {roof_e2e:+.1f} and {roof_ttft:+.1f} %); LLMServingSim, whose profile it is: mean TPOT "
        f"{peer_tpot:+.1f} %, mean E2E {peer_e2e:+.1f} %, TTFT P90 {peer_ttft_p90:+.1f} %"
    )


def closed_loops(output: str) -> str:
    name = r"as its tool starts 0.12, front end {}, \d+ runs: TTFT mean error ([\d.]+)%, bias ([-+][\d.]+)%"
    ((bare, bare_bias),) = read(output, name.format("off"))
    ((behind, bias),) = read(output, name.format("vllm-0.33"))
    return (
        f"behind vLLM's front end mean TTFT {behind:.0f} % off, bias {bias:+.0f} %; without {bare:.0f} % off, bias "
        f"{bare_bias:+.0f} %"
    )


def _real(cost: str, card: str) -> str:
    names = ("TPOT mean", "E2E mean", "TTFT P90", "makespan", "TPOT P50", "E2E P50", "TTFT P50")
    return rf"{card}, {cost}: " + ", ".join(rf"{name} ([-+][\d.]+)%" for name in names)


CASE = r"(?m)^\S+ +([\d,]+) ([-+][\d.]+) +([\d.]+)" + r" +([-+][\d.]+)\*?" * 5 + "$"


def twins(output: str) -> str:
    ((steps,),) = read(output, r"([\d,]+) live steps, all taken again")
    cases = len(read(output, CASE))
    return (
        f"every decision, block table and time stamp identical: {steps:,.0f} recorded steps of {cases} cases, all "
        "kinds of policy, three loads"
    )


def fitted(output: str) -> str:
    _, bias, mape, _, _, e2e, _, _ = zip(*read(output, CASE), strict=True)
    inside = len(re.findall(r"[-+][\d.]+\*", output)) / (5 * len(bias))
    return (
        f"step bias {between(bias, '+.1f')} %, MAPE {between(mape, '.0f')} %; median E2E {between(e2e, '+.1f')} %; "
        f"{100 * inside:.0f} % of the requests' errors inside the spread of three runs"
    )


def interval(output: str) -> str:
    ((held, seeds),) = read(output, r"queue_p90=2: the interval holds the capacity (\d+) of (\d+) times")
    return f"holds it {held:.0f} of {seeds:.0f} times at load 0.6"


FITTED_CARDS = ("h100", "a100-80", "b200", "l40s")
PUBLIC = "pytest tests/cost/test_cost_public.py -sq"
IMPORTED = "pytest tests/calibrate/test_importers_public.py -sq"
BANDS = "pytest tests/calibrate/test_band_public.py -sq"
RECORDED = "sim validate --recorded tests/data/validate_cpu"
SCHEDULES = "sim validate --schedules ../shared/measured/"

CLAIMS = (
    Claim(
        "same decisions as the V1 scheduler of vLLM 0.19 and 0.33, on 140 and 98 recorded schedules",
        tuple(
            SCHEDULES + name
            for name in (
                "vllm_v1_schedules",
                "vllm_v1_schedules_more",
                "vllm_0.33_schedules/of_0.19",
                "vllm_0.33_schedules",
            )
        ),
        schedules,
        SHARED,
        f"`{SCHEDULES}vllm_v1_schedules`, `.../vllm_v1_schedules_more`, `.../vllm_0.33_schedules/of_0.19`, "
        "`.../vllm_0.33_schedules`",
        in_readme=True,
    ),
    Claim(
        "queueing theory: M/D/1, M/M/1, D/D/1, closed loops, Little's law",
        ("pytest tests/serving/test_oracles.py",),
        passed("within confidence bounds, Little's law exact"),
        in_readme=True,
    ),
    Claim(
        "prefix reuse of Mooncake's conversation trace, unbounded cache",
        ("sim trace info ../shared/traces/mooncake-fast25/conversation_trace.jsonl.gz",),
        reuse,
        SHARED,
        in_readme=True,
    ),
    Claim(
        "KV memory that holds data, vLLM paper figure 2",
        ("pytest tests/allocators/test_published.py -s",),
        memory,
    ),
    Claim(
        "memory saved by sharing, vLLM paper figure 15, 2 and 6 sequences",
        ("pytest tests/allocators/test_published_sharing.py -s",),
        sharing,
    ),
    Claim("Llama-3.1-8B on H100, one request", ("pytest tests/cost/test_cost_roofline.py -s",), one_request),
    Claim("roofline fitted to kernel tables, against all of their rows", (PUBLIC,), kernels, SHARED),
    Claim("roofline against 86 vLLM runs of Qwen3-32B on H100", (PUBLIC,), served_roofline, SHARED, in_readme=True),
    Claim("roofline against Splitwise's Llama-2-70B on A100", (PUBLIC,), splitwise, SHARED, in_readme=True),
    Claim(
        "an imported op profile against a real vLLM 0.19 run on an RTX PRO 6000, nothing fitted to it",
        (IMPORTED,),
        real_run,
        SHARED,
        in_readme=True,
    ),
    Claim(
        "the same on an RTX 4090, whose cache of 2,588 blocks makes it preempt",
        (IMPORTED,),
        lambda output: real_run(output, "RTX 4090"),
        SHARED,
    ),
    Claim("imported H100 kernel tables against 86 vLLM runs of Qwen3-32B", (IMPORTED,), served_profile, SHARED),
    Claim(
        "18 of these runs, of 8 users each, the server started as the tool that they are from starts it",
        ("python -m tests.front_end.silicon 8",),
        closed_loops,
        SHARED,
    ),
    Claim(
        "the band of 90 % that runs tell, against real servers' runs, by figures that leave out their card",
        (BANDS,),
        bands,
        SHARED,
        in_readme=True,
    ),
    Claim(
        "paging with continuous batching against reserved memory with static batches, the bundled chat on one H100 "
        "(roofline), 99 % of first tokens within 30 s",
        (),
        None,
        shown="[plan](DOCS/plan.md)",
    ),
    Claim("a live run on a CPU and its twin, fed with the recorded seconds", (RECORDED,), twins, in_readme=True),
    Claim(
        "step times and requests of these live runs, by a model fitted to every other step (the errors are of the "
        "others)",
        (RECORDED,),
        fitted,
        in_readme=True,
    ),
    Claim(
        "requests of these live runs, by a profile calibrated minutes later",
        (),
        None,
        shown="[validate](DOCS/validate.md)",
    ),
    Claim(
        "live tokens on a CPU",
        ("pytest tests/backend/live/test_live.py tests/backend/live/test_live_drafting.py",),
        passed(
            "the same under every policy and allocator, with preemption, swapping, chunks, prefix hits and drafts, as "
            "a full recomputation gives"
        ),
    ),
    Claim(
        "live drafting at a temperature",
        ("pytest tests/backend/test_rejection_sampling.py",),
        passed("the target's distribution unchanged (chi-square), and four wrong rules found out"),
    ),
    Claim(
        "the interval that `sim plan` tells, asked with 100 seeds of queues with a capacity in closed form",
        ("pytest tests/study/test_plan_oracles.py -s",),
        interval,
    ),
    Claim("the same at load 0.9, asked with 60 seeds", (), None, shown="[plan](DOCS/plan.md)"),
    Claim(
        "the model against transformers",
        ("pytest tests/backend/test_backend_model.py",),
        passed("Llama, Qwen2, Qwen3, Mistral, Mixtral, Qwen3-MoE: logits within 1e-4, greedy tokens equal"),
    ),
    Claim(
        "a live run of Llama-3.1-8B on an H200 against the simulation by a profile of the same card",
        ("sim validate --recorded docs/measured/h200-2026-11-29/live-run",),
        on_a_card,
        in_readme=True,
    ),
    Claim("kernels on that H200", ("pytest -m gpu",), None, GPU),
    Claim(
        "the operations, speeds and calibrations of that H200",
        (),
        None,
        shown="[raw](DOCS/measured/h200-2026-11-29/README.md)",
    ),
)


def known(page: str) -> dict[str, Result]:
    """By claim the result that a page has."""
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| ")]
    there = {row[0].strip(): Result(row[1].strip(), row[4].strip()) for row in rows[1:]}
    return {one.claim: there.get(one.claim, Result(NEVER, NEVER)) for one in CLAIMS}


def page_of(results: dict[str, Result]) -> str:
    """docs/accuracy.md, with a row for each claim."""
    rows = []
    for one in CLAIMS:
        result = results[one.claim]
        needs = one.needs or (BY_HAND if one.result is None else "")
        rows.append(f"| {one.claim} | {result.words} | {one.cell.replace('DOCS/', '')} | {needs} | {result.date} |\n")
    return (
        "# How right it is\n\n"
        "Written by `python -m tests.accuracy`, which runs the commands that this machine can run and reads the\n"
        "numbers from what they print. Rows that need recordings (`../shared`, no part of the project) or a GPU, and\n"
        "those that were measured by hand, keep the result and the date that they have. Good and bad results stand\n"
        "alike.\n\n" + PAGE_HEAD + "".join(rows)
    )


def readme_rows(results: dict[str, Result]) -> str:
    """The table of README: what a buyer asks for."""
    return HEAD + "".join(
        f"| {one.claim} | {results[one.claim].words} | {one.cell.replace('DOCS/', 'docs/')} |\n"
        for one in CLAIMS
        if one.in_readme
    )


def with_table(readme: str, table: str) -> str:
    """README with another table of claims."""
    begin = readme.index(HEAD)
    return readme[:begin] + table + readme[readme.index("\n\n", begin) + 1 :]


def run(command: str) -> str:
    """What a command prints; a validation may end with 1, which says that an error is out of its bounds.

    Raises:
        LookupError: it fails.
    """
    program, *rest = shlex.split(command)
    before = {"sim": ["-m", "sim.cli.main"], "pytest": ["-m", "pytest", "-n", "0"], "python": []}[program]
    done = subprocess.run([sys.executable, *before, *rest], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1 if command.startswith("sim validate") else 0):
        raise LookupError(f"{command} ends with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def gate(only: str) -> int:
    """Run what has errors and can run here; 1 where one has worsened, or its command fails."""
    results, outputs, failed = known(PAGE.read_text(encoding="utf-8")), dict[str, str](), 0
    for one in CLAIMS:
        before = results[one.claim].words
        if only not in one.claim or one.result is None or not errors(before) or not one.runs_here():
            continue
        try:
            for command in one.commands:
                outputs[command] = outputs.get(command) or run(command)
            found = worse(before, one.result("".join(outputs[command] for command in one.commands)))
        except LookupError as error:
            found = [str(error)]
        failed |= bool(found)
        sys.stdout.write(f"{one.claim}: {'worse: ' + '; '.join(found) if found else 'no worse'}\n")
    return int(failed)


def main() -> int:
    """Run, write, and say what is not as its row says; the exit code is 1 then."""
    parser = argparse.ArgumentParser(prog="python -m tests.accuracy", description=__doc__)
    parser.add_argument("--only", default="", help="run claims with these words alone")
    parser.add_argument("--write", action="store_true", help="run nothing")
    parser.add_argument("--gate", action="store_true", help="write nothing, and fail where a row has worsened")
    options = parser.parse_args()
    if options.gate:
        return gate(options.only)
    results = known(PAGE.read_text(encoding="utf-8"))
    today, outputs, failed = datetime.datetime.now(datetime.UTC).date().isoformat(), dict[str, str](), 0
    for one in CLAIMS:
        if options.write or options.only not in one.claim or one.result is None or not one.runs_here():
            continue
        try:
            for command in one.commands:
                outputs[command] = outputs.get(command) or run(command)
            results[one.claim] = Result(one.result("".join(outputs[command] for command in one.commands)), today)
        except LookupError as error:
            failed = 1
            results[one.claim] = Result("**failed**", today)
            sys.stderr.write(f"{one.claim}: {error}\n")
        sys.stdout.write(f"{one.claim}: {results[one.claim].words}\n")
    PAGE.write_text(page_of(results), encoding="utf-8")
    README.write_text(with_table(README.read_text(encoding="utf-8"), readme_rows(results)), encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main())
