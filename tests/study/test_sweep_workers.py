"""Workers: every item answered once, whatever dies; nothing outlives the one who asked; cores and Ray give the same."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from patience import PATIENCE_S, wait_for
from sweep_kit import raise_at_two, square, square_or_die, who

from sim import api
from sim.study.workers.pool import WorkerLostError, each
from traces.schema import InputError

ROOT = Path(__file__).parents[2]
KITS = ROOT / "tests" / "kits"
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray has no wheel for this Python")


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_is_answered_once(workers: int) -> None:
    assert sorted(each(square, range(9), workers=workers)) == [(item, item * item) for item in range(9)]


def test_no_item_and_fewer_items_than_workers() -> None:
    assert list(each(square, [], workers=2)) == []
    assert list(each(square, [5], workers=64)) == [(0, 25)]


def test_one_worker_is_this_process_and_more_are_others() -> None:
    assert {pid for _, pid in each(who, range(2), workers=1)} == {os.getpid()}
    assert os.getpid() not in {pid for _, pid in each(who, range(2), workers=2)}


def test_a_lost_worker_costs_its_item_alone() -> None:
    found = dict(each(square_or_die, range(8), workers=2, lost=lambda reason: reason))
    assert {item: found[item] for item in (0, 1, 2, 5, 6, 7)} == {item: item * item for item in (0, 1, 2, 5, 6, 7)}
    assert "was killed (SIGKILL" in str(found[3])
    assert "exit code 7" in str(found[4])


def test_a_lost_worker_is_an_error_where_nobody_wants_to_know() -> None:
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        list(each(square_or_die, [3], workers=2))


@pytest.mark.parametrize("workers", [1, 2])
def test_what_the_function_raises_is_raised(workers: int) -> None:
    with pytest.raises(ValueError, match="two is too much"):
        list(each(raise_at_two, range(5), workers=workers))


def test_unknown_executors_are_refused() -> None:
    for executor in ("threads", "ray:", "predicted"):
        with pytest.raises(InputError, match=r"known: processes, ray, ray://host:port"):
            each(square, [1], executor=executor)


# Whoever runs these tests in the background may have them ignore Ctrl-C, and what they start too.
SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {kits!r})
from sim.study.workers.pool import each
import sweep_kit
for index, result in each(sweep_kit.leave_pid_and_sleep, [{folder!r}] * 2, workers=2):
    print(result)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    """The script has no `if __name__ == "__main__"`: workers do not run it again."""
    script = tmp_path / "script.py"
    pids = tmp_path / "pids"
    pids.mkdir()
    script.write_text(SCRIPT.format(kits=str(KITS), folder=str(pids)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, script], env=environment, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list(pids.iterdir())) == 2)
    os.kill(parent.pid, how)
    assert parent.wait(PATIENCE_S) != 0
    wait_for(lambda: not any(alive(int(path.name)) for path in pids.iterdir()))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


@needs_ray
def test_ray_gives_the_same_rows_and_tells_lost_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own: Ray leaves sockets open that a strict test would count as mistakes."""
    monkeypatch.chdir(tmp_path)
    Path("small.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0.0,100,5\n0.5,200,7\n1.0,50,1\n")
    Path("killer.py").write_text("import os\n\ndef killer(step):\n    os.kill(os.getpid(), 9)\n")
    others = {"trace": "small.csv", "rate": [1, 2], "seeds": 2}
    policies = ["chunked", "nope", "static"]
    asked = {**others, "policy": [*policies, "killer:killer"]}
    code = f"from sim import api\napi.sweep(out='ray', workers=2, executor='ray', **{asked!r})\n"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    api.sweep(out="here", workers=1, **{**others, "policy": policies})  # type: ignore[arg-type]
    table, kept = (pd.read_parquet(f"{folder}/sweep.parquet") for folder in ("ray", "here"))
    on_ray = table[table["policy.name"] != "killer:killer"].sort_values(["policy.name", "point"], ignore_index=True)
    kept = kept.sort_values(["policy.name", "point"], ignore_index=True)
    pd.testing.assert_frame_equal(on_ray.drop(columns="point"), kept.drop(columns="point"), check_exact=True)
    lost = table[table["policy.name"] == "killer:killer"]
    assert lost["status"].tolist() == ["failed"] * 4
    assert lost["reason"].str.startswith("its Ray worker was lost before it had an answer (WorkerCrashedError").all()
