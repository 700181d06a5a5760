"""What a command imports before it answers: seconds are in tests/benchmarks, here are the modules that take them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE_S
from sweep_kit import threads_and_settings

import sim.cli
from sim.cli.main import SUMMARIES, cli
from sim.study.workers.cores import cores
from sim.study.workers.pool import each

ROOT = Path(__file__).resolve().parents[2]
KITS = ROOT / "tests" / "kits"
NUMBERS = {"numpy", "pandas", "pyarrow", "scipy"}
SHOWN = {"jinja2", "rich"}
ENDED = """
import sys
from sim.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
LOADED = f"{ENDED}\nprint('\\nLOADED', *sys.modules)"
THREADS = f"{ENDED}\nfrom sweep_kit import threads_and_settings\nprint('\\nTHREADS', threads_and_settings(0))"


def loaded(*words: object) -> set[str]:
    """The modules that a process has after it answered a command line."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("\nLOADED ")[2].split())


def ours(modules: set[str]) -> set[str]:
    return {name for name in modules if name.partition(".")[0] in ("sim", "traces", "backend", "calibrate")}


def test_help_imports_nothing_of_the_commands() -> None:
    modules = loaded("--help")
    assert modules.isdisjoint(NUMBERS | SHOWN | {"simpy", "importlib.metadata"})
    assert ours(modules) == {
        "sim",
        "sim.cli",
        "sim.cli.guard",
        "sim.cli.main",
        "traces",
        "traces.code",
        "traces.framed",
        "traces.schema",
        "traces.version",
    }


@pytest.mark.parametrize("words", [["run", "--help"], ["sweep", "-h"], ["plan", "-h"], ["validate", "-h"]])
def test_the_help_of_a_command_imports_no_tables(words: list[str]) -> None:
    modules = loaded(*words)
    assert modules.isdisjoint(NUMBERS | {"jinja2", "simpy"})
    assert not {name for name in ours(modules) if name.startswith(("sim.serving", "sim.report", "sim.study"))}


def test_a_run_imports_what_it_uses(tmp_path: Path) -> None:
    """Libraries of tables, pages, traces of steps, files of results, fits and drafters' seconds are other commands', or
    asked for; so are checkpoints' families, profiles' look-ups, and what tells runs side by side."""
    trace = tmp_path / "ten.csv"
    rows = "".join(f"{0.1 * at:.1f},{50 + 7 * at},{5 + at}\n" for at in range(10))
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    modules = loaded("run", "--trace", trace, "--quiet")
    assert modules.isdisjoint({"pandas", "pyarrow", "scipy", "numpy.ma", "jinja2", "torch", "rich.progress"})
    assert modules.isdisjoint({"sim.catalog.hf", "sim.cost.profiled", "sim.report.compare.paired", "traces.mapping"})
    of_sim = {name for name in modules if name.startswith(("sim.report", "sim.results.files", "sim.study"))}
    assert not {name for name in of_sim if "perfetto" in name or "page" in name or "files" in name or "sweep" in name}
    assert len(ours(modules)) <= 238, sorted(ours(modules))  # a tenth of them what fleets, ranks and tiers need


def test_a_few_requests_of_a_long_file_need_no_library_of_tables(tmp_path: Path) -> None:
    trace = tmp_path / "azure.csv"
    rows = "".join(
        f"2023-11-16 {at // 3600:02}:{at // 60 % 60:02}:{at % 60:02}.5000000,374,9\r\n" for at in range(20_000)
    )
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    assert loaded("run", "--trace", trace, "--limit", "10", "--quiet").isdisjoint({"pandas", "pyarrow", "scipy"})


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="nothing tells here how many threads a process has")
@pytest.mark.parametrize("asked", [1, 2])
def test_numpy_has_one_thread_unless_it_is_told_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    """In the command and in what works for it; for what either starts the environment is as it was."""
    for name in [name for name in os.environ if name.endswith("NUM_THREADS")]:
        monkeypatch.delenv(name)
    settings = ["OMP_NUM_THREADS=2"] if asked == 2 else []
    if settings:
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
    threads = min(asked, cores())
    trace = tmp_path / "one.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,50,5\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, KITS))))
    done = subprocess.run(
        [sys.executable, "-c", THREADS, "run", "--trace", str(trace), "--quiet"],
        capture_output=True, text=True, check=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.stdout.rpartition("\nTHREADS ")[2].strip() == str((threads, settings))
    [(_, found)] = each(threads_and_settings, [0], workers=2)
    assert found == (threads + 1, settings)  # one more listens


def test_the_list_of_commands_says_what_they_say() -> None:
    """Kept beside the group, so that it can be shown without them."""
    context = cli.make_context("sim", [], resilient_parsing=True)
    files = {path.stem for path in Path(sim.cli.__file__).parent.glob("*.py")}
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert name in files
        assert SUMMARIES[name] == command.get_short_help_str(10_000)
    assert cli.get_command(context, "magic") is None
