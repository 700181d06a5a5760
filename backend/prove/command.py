"""The command `python -m backend.prove`: reads options, refuses before anything is touched, runs, prints the table."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import click

from backend.prove.folder import ProveFolder
from backend.prove.run import CUT, FAILED, KERNELS, ProveRun
from backend.prove.stages import MAKE_PROFILE, STAGES, ProvePlace, ProveStage, chosen
from backend.prove.table import lines
from sim.cli.guard import guarded
from traces.schema import InputError

NEEDED = ("numpy", "pandas", "scipy", "pyarrow", "rich", "jinja2", "simpy", "tomli_w", "torch")
"""What stages import, by module."""
LEAST_BUDGET_S, LEAST_SMALL_S = 120.0, 10.0


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the results, seven files.")
@click.option("--budget-s", type=float, default=540.0, show_default=True, help="Seconds to be done in.")
@click.option("--device", default="cuda", show_default=True, help="cuda, or cpu (with --small: does everything run?).")
@click.option("--small", is_flag=True, help="Small shapes, a small model.")
@click.option("--stages", default="", metavar="NAME,...", help=f"Of {', '.join(one.name for one in STAGES)}.")
@click.option(
    "--profile", type=click.Path(path_type=Path), help="Validate against this profile; nothing is calibrated."
)
@click.option("--cache", type=click.Path(path_type=Path), help="Compiled kernels, carried here (backend.kernels.warm).")
def cli(
    out: Path, budget_s: float, device: str, small: bool, stages: str, profile: Path | None, cache: Path | None
) -> None:
    """Prove this backend on a device: operations, speed, a profile, its validation, the tests, in one time box.

    Exit code 1 where a stage failed, was cut short or found something wrong; 2 for what you can mend.
    """
    started = time.monotonic()
    wanted = _wanted(stages, profile)
    least_s = LEAST_SMALL_S if small else LEAST_BUDGET_S
    if not budget_s >= least_s:
        raise InputError(f"--budget-s is {budget_s:g}, and the stages need at least {least_s:g}")
    if budget_s > 86400:
        raise InputError(f"--budget-s is {budget_s:g}; it may be at most 86400, a day")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"the stages need {', '.join(missing)}, not installed here: install, or put their wheels on PYTHONPATH"
        )
    _check_device(device, small)
    if cache is not None:
        _check_cache(cache, device)
    folder = ProveFolder(out.resolve())
    work = Path(tempfile.mkdtemp(prefix="foretoken-prove-"))
    try:
        if profile is not None:
            shutil.copytree(profile, work / "profile")
        if cache is not None:
            importlib.import_module("backend.kernels.carried").put(cache, work / KERNELS)
        run = ProveRun(ProvePlace(device, small, work), folder, wanted, budget_s, _say, started)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, run.stop)
        run.run()
        summary = json.loads((folder.path / "summary.json").read_text(encoding="utf-8"))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    click.echo("\n".join(lines(summary)))
    if any(stage["state"] in (FAILED, CUT) or stage["finding"] for stage in summary["stages"]):
        sys.exit(1)


def _wanted(stages: str, profile: Path | None) -> list[ProveStage]:
    """The stages to run: with a profile made before, none that makes one. Raises InputError."""
    wanted = chosen(stages)
    if profile is None:
        return wanted
    if not (profile / "profile.toml").is_file():
        raise InputError(f"--profile: {profile} is no profile, for it has no profile.toml")
    if stages and any(stage.name in MAKE_PROFILE for stage in wanted):
        raise InputError("--profile names a profile to validate against: leave calibrate and fit out of --stages")
    return [stage for stage in wanted if stage.name not in MAKE_PROFILE]


def _check_cache(cache: Path, device: str) -> None:
    """Raises InputError where this device has no use for these compiled kernels."""
    if device == "cpu":
        raise InputError("--cache names compiled kernels, and a CPU runs none; leave it out")
    if importlib.util.find_spec("triton") is None:
        raise InputError("--cache names compiled kernels, which need the package triton, not installed here")
    import torch  # noqa: PLC0415 - it takes seconds

    major, minor = torch.cuda.get_device_capability(device)
    importlib.import_module("backend.kernels.carried").check(cache, 10 * major + minor)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _check_device(device: str, small: bool) -> None:
    if device == "cpu":
        if not small:
            raise InputError("on a CPU there is only --small: the full shapes are a GPU's")
        return
    from backend.cache.memory import check_device  # noqa: PLC0415 - it imports torch, which takes seconds

    place = check_device(device)
    if place.type != "cuda":
        raise InputError(f"device {device!r} is not supported; known are cpu and cuda")


def main() -> None:
    """Entry point: a user's mistake is one sentence on stderr and exit code 2."""
    guarded(lambda: cli(standalone_mode=False))
