"""What a point is made of: whatever its numbers depend on is known, and a sweep runs again what has changed."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from profile_kit import llama_profile

from sim import api, catalog
from sim.cost import profile
from sim.load import load
from sim.serving import run as serving
from sim.study import identity as made_of
from sim.study import user_code as code
from sim.study.plan import replication as plan_replicate
from sim.study.plan.choose import answered
from sim.study.plan.plan import Ask
from traces.schema import InputError


def write_trace(rows: int = 20) -> None:
    lines = (f"{0.1 * at:.1f},{100 + 37 * at % 300},{5 + 11 * at % 50}" for at in range(rows))
    Path("small.csv").write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *lines]) + "\n")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [one for one in sys.modules if one.partition(".")[0] in ("mypol", "helpers", "late", "a", "b", "c")]:
        monkeypatch.delitem(sys.modules, name)
    write_trace()
    Path("helpers/deep").mkdir(parents=True)
    Path("helpers/__init__.py").write_text("")
    Path("helpers/deep/__init__.py").write_text("")
    Path("helpers/order.py").write_text("from .deep import limits\n\ndef wide():\n    import late\n")
    Path("helpers/deep/limits.py").write_text("SEATS = 1\n")
    Path("helpers/unused.py").write_text("")
    Path("late.py").write_text("import numpy, json, sim.engine.engine\n")
    Path("mypol.py").write_text(
        "import helpers.order\nfrom sim.policies.chunked import Chunked\n\nclass Mine(Chunked):\n    pass\n"
    )
    return tmp_path


def test_the_files_of_code_are_those_that_it_imports(here: Path) -> None:
    """Directly, relatively, within functions; the packages around them; nothing of Python, of others, or unused."""
    found = [path.relative_to(here).as_posix() for path in code.files_of("mypol")]
    assert found == [
        "helpers/__init__.py",
        "helpers/deep/__init__.py",
        "helpers/deep/limits.py",
        "helpers/order.py",
        "late.py",
        "mypol.py",
    ]
    assert "mypol" not in sys.modules
    assert code.files_of("absent") == code.files_of("helpers.absent") == []


def test_further_ways_to_import(here: Path) -> None:
    Path("a.py").write_text(
        "import importlib\nimportlib.import_module('b')\nfrom helpers.deep import *\n__import__('c')\n"
    )
    Path("b.py").write_text("import c\n")
    Path("c.py").write_text("import a, mistake\n")  # in a circle
    Path("mistake.py").write_text("def broken(:\n")
    found = [path.relative_to(here).as_posix() for path in code.files_of("a")]
    assert found == ["a.py", "b.py", "c.py", "helpers/__init__.py", "helpers/deep/__init__.py",
                     "helpers/deep/limits.py", "mistake.py"]  # fmt: skip


EDITS = [
    ("policy.name", "mypol:Mine", "mypol.py"),
    ("policy.name", "mypol:Mine", "helpers/order.py"),
    ("allocator.name", "mypol:Mine", "helpers/deep/limits.py"),
    ("router.name", "mypol:Mine", "late.py"),
    ("workload.format", "mypol:Mine", "mypol.py"),
    ("workload.trace", "small.csv", "small.csv"),
    ("workload.trace", "sessions", "sessions/one.json.gz"),
    ("workload.tokenizer", "tokenizer.json", "tokenizer.json"),
    ("model", "model", "model/config.json"),
    ("model", "model/config.json", "model/config.json"),
    ("model", "model.toml", "model.toml"),
    ("speculation.draft_model", "model.toml", "model.toml"),
    ("speculation.acceptance", "rates.json", "rates.json"),
    ("gpu", "gpu.toml", "gpu.toml"),
    ("cost.profile", "profile", "profile/profile.toml"),
    ("cost.profile", "profile", "profile/table.csv"),
    ("cost.profile", "profile/profile.toml", "profile/table.csv"),
    ("cost.profile", "profile", "profile/device.toml"),
]


@pytest.mark.parametrize(("key", "value", "file"), EDITS)
def test_each_file_that_is_read_belongs_to_it(here: Path, key: str, value: str, file: str) -> None:
    """Another content of the same length counts, and nothing else that lies beside it does."""
    for name in {name for _, _, name in EDITS if not Path(name).exists()}:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("1\n")
    Path("model/weights.safetensors").write_text("large")
    ingredient = f"{key}={value}"
    before = made_of.made_of([ingredient])
    assert file in before[ingredient]
    assert made_of.made_of([ingredient]) == before
    for other in ("beside.txt", "model/weights.safetensors", "helpers/unused.py"):
        Path(other).write_text("changed")
    assert made_of.made_of([ingredient]) == before
    content = Path(file).read_text()
    Path(file).write_text(content[:-1] + "#")
    assert made_of.differing(before, made_of.made_of([ingredient])) == {ingredient: [file]}
    Path(file).unlink()
    assert file in made_of.differing(before, made_of.made_of([ingredient]))[ingredient]


def test_names_of_the_product_have_no_files_of_their_own(here: Path) -> None:
    Path("h100").mkdir()  # such as the --out of a sweep
    named = {"policy.name": "sjf", "allocator.name": "paged", "model": "llama-3.1-8b", "gpu": "h100",
             "cost.profile": "roofline", "workload.trace": "chatbot_arena.jsonl",
             "speculation.acceptance": "0.8"}  # fmt: skip
    assert list(made_of.made_of(made_of.ingredients(named))) == ["foretoken"]


def test_the_product_is_its_sources_and_its_catalog(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a copy of it: a changed line of code and a changed number of the catalog are another product."""
    for name in ("sim", "traces"):
        source = Path(catalog.__file__).parents[2] / name
        shutil.copytree(source, here / "copy" / name, ignore=shutil.ignore_patterns("__pycache__", "*.gz"))
    monkeypatch.setattr(made_of.traces_package, "__file__", str(here / "copy/traces/__init__.py"))
    found = set()
    for name in ("sim/engine/engine.py", "sim/catalog/gpus/h100.toml", "traces/edit.py"):
        path = Path("copy", name)
        path.write_text(path.read_text() + "\n# changed\n")
        found.add(made_of.product_digest.__wrapped__())
    (here / "copy/sim/notes.md").write_text("no source")
    assert made_of.product_digest.__wrapped__() in found
    assert len(found) == 3


def swept(**asked: Any) -> tuple[list[Any], list[str]]:
    """(mean TTFT of each point, what was told)."""
    told: list[str] = []
    table = api.sweep(**{"trace": "small.csv", "workers": 1, "out": "out", "told": told.append, **asked})
    assert table["status"].eq("ok").all(), table["reason"].tolist()
    return table["ttft_s.mean"].tolist(), told


def test_an_edited_policy_runs_again_and_nothing_else(here: Path) -> None:
    """Its own file, and one that it imports; in a process that ran it before and would not import it again."""
    asked: dict[str, Any] = {"policy": ["chunked", "sjf", "mypol:Mine"], "rate": 40}
    before, told = swept(**asked)
    assert told == []
    assert before[0] == before[2]
    assert swept(**asked) == (before, [])
    Path("helpers/deep/limits.py").write_text("SEATS = 2\n")
    assert swept(**asked) == (before, ["2 of 3 points reused, 1 run again since helpers/deep/limits.py changed"])
    Path("mypol.py").write_text("from sim.policies.static import Static as Mine\n")
    after, told = swept(**asked)
    assert told == ["2 of 3 points reused, 1 run again since helpers/__init__.py, helpers/deep/__init__.py, "
                    "helpers/deep/limits.py and 3 more changed"]  # fmt: skip
    assert after[:2] == before[:2]
    assert after[2] > 2 * before[2]


def test_edited_files_run_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace in place, a table of a profile, the product."""
    profile.write(llama_profile(1.3), Path("profile"))
    asked: dict[str, Any] = {"profile": ["roofline", "profile"], "gpu": "h100"}
    before, _ = swept(**asked)
    profile.write(llama_profile(2.6), Path("slower"))
    shutil.copy("slower/gemm.csv", "profile/gemm.csv")
    slower, told = swept(**asked)
    assert told == ["1 of 2 points reused, 1 run again since profile/gemm.csv changed"]
    assert slower[0] == before[0]
    assert slower[1] > 1.3 * before[1]
    write_trace(30)
    after, told = swept(**asked)
    assert told == ["0 of 2 points reused, 2 run again since small.csv changed"]
    assert after != before
    monkeypatch.setattr(made_of, "product_digest", lambda *_: "another")
    assert swept(**asked) == (after, ["0 of 2 points reused, 2 run again since foretoken changed"])
    assert tomllib.loads(Path("out/sweep.toml").read_text())["made_of"]["foretoken"] == {"foretoken": "another"}
    assert swept(**asked) == (after, [])


def test_a_sweep_that_is_cut_after_a_change_has_nothing_of_before(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its page nor its table, and of its points those that still stand."""
    asked: dict[str, Any] = {"gpu": ["h100", "gpu.toml"]}
    sheet = (Path(catalog.__file__).parent / "gpus/h100.toml").read_text()
    Path("gpu.toml").write_text(sheet)
    swept(**asked)
    Path("gpu.toml").write_text(sheet + "\n# another\n")

    def cut(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(serving, "simulate", cut)
    with pytest.raises(KeyboardInterrupt):
        swept(**asked)
    assert sorted(path.name for path in Path("out").iterdir()) == ["points.jsonl", "sweep.toml"]
    assert [json.loads(line)["point"] for line in Path("out/points.jsonl").read_text().splitlines()] == [0]


def test_code_in_no_file_is_refused_where_it_would_be_kept(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = type(sys)("made")
    exec("from sim.policies.chunked import Chunked as Mine", made.__dict__)
    monkeypatch.setitem(sys.modules, "made", made)
    with pytest.raises(InputError, match=r"policy\.name 'made:Mine' is in no file"):
        swept(policy=["made:Mine"])
    assert len(swept(policy=["made:Mine"], out=None)[0]) == 1


def test_old_code_is_not_run_for_new(here: Path) -> None:
    """A process that has imported a module does not see it change: it says so, until the module is reloaded."""
    import importlib

    load("sim.policies", "mypol:Mine")
    load("sim.policies", "mypol:Mine")
    Path("mypol.py").write_text("from sim.policies.static import Static as Mine  # edited\n")
    with pytest.raises(InputError, match=r"mypol\.py has changed since it was imported"):
        load("sim.policies", "mypol:Mine")
    importlib.reload(sys.modules["mypol"])
    assert load("sim.policies", "mypol:Mine").__name__ == "Static"


def test_a_plan_reads_an_edited_trace(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sim.specs.workload import WorkloadSettings

    reading = WorkloadSettings(trace="small.csv")
    first = plan_replicate.source(reading)
    assert plan_replicate.source(reading) is first
    write_trace(21)
    assert len(plan_replicate.source(reading)) == 21
    from sim.study.plan import choose as plan_choose

    settings = {"workload.trace": "small.csv", "slo": "ttft=1"}
    monkeypatch.setattr(plan_choose, "capacity_of", lambda *_: {"best": None})
    made = answered({}, settings, Ask())["made_of"]
    assert set(made) == {"foretoken", "workload.trace=small.csv"}
    monkeypatch.setattr(plan_choose, "capacity_of", lambda *_: write_trace(22))
    with pytest.raises(InputError, match=r"small\.csv changed while the plan was made"):
        answered({}, settings, Ask())


def test_packed_traces_are_files_too(here: Path) -> None:
    Path("t.csv.gz").write_bytes(gzip.compress(Path("small.csv").read_bytes()))
    assert list(made_of.digests("workload.trace=t.csv.gz")) == ["t.csv.gz"]


def test_a_change_while_a_point_runs_is_met(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it was read before or after is not known, so that the point is no result, and runs again."""
    simulate = api.simulate

    def edited(*words: Any, **named: Any) -> Any:
        write_trace(21)
        return simulate(*words, **named)

    with monkeypatch.context() as patch:
        patch.setattr(serving, "simulate", edited)
        table = api.sweep(trace="small.csv", rate=[5], workers=1, out="out")
    assert table["reason"][0].startswith("small.csv is not the same for the worker on")
    assert Path("out/points.jsonl").read_text() == ""
    assert api.sweep(trace="small.csv", rate=[5], workers=1, out="out")["requests.total"].tolist() == [21]
