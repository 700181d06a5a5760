"""A name is a file, an entry point, or package.module:object; what is unknown or mistyped is told what there is."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from pathlib import Path
from typing import Any

import pytest
from engine_kit import Setup, run, workload

from sim import load
from sim.allocators.contiguous_max import ContiguousMax
from sim.allocators.paged import Paged
from sim.engine.batch import Limits
from sim.engine.memory import KvPool
from sim.engine.step import Step
from sim.policies.chunked import Chunked
from sim.policies.sjf import Sjf
from sim.routers.round_robin import RoundRobin
from sim.specs.traits import TRAITS
from traces.schema import InputError

PACKAGES = {
    "sim.policies": ["chunked", "continuous", "priority", "sjf", "static"],
    "sim.allocators": ["contiguous", "contiguous-max", "contiguous-oracle", "contiguous-pow2", "paged", "prefix"],
    "sim.routers": ["least-outstanding", "round-robin"],
}


def first_come(step: Step, *, most: int = 0) -> None:
    """A policy that is a plain function."""
    step.advance_running(most)
    for req in step.waiting:
        if not step.grant(req, most):
            break


@pytest.mark.parametrize("package", PACKAGES)
def test_names_are_the_files(package: str) -> None:
    known = load.names(package)
    assert known == sorted(known)
    assert set(PACKAGES[package]) <= set(known)
    for name in known:
        assert callable(load.load(package, name))


def test_a_name_may_be_written_with_dashes_or_underscores() -> None:
    assert load.load("sim.allocators", "contiguous-max") is ContiguousMax
    assert load.load("sim.allocators", "contiguous_max") is ContiguousMax
    assert load.load("sim.routers", "round-robin") is RoundRobin


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("name", ["", "nonsense", "Sjf", "os", "../sjf", "sjf.py", "__init__", "sim.policies.sjf"])
def test_an_unknown_name_lists_the_known_ones(package: str, name: str) -> None:
    with pytest.raises(InputError) as caught:
        load.load(package, name)
    text = str(caught.value)
    assert repr(name) in text
    assert ", ".join(PACKAGES[package]) in text or all(known in text for known in PACKAGES[package])
    assert "package.module:object" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "name",
    [
        "nonsense:Thing",
        "sim.policies.sjf:Nothing",
        "sim.nothing.at.all:Thing",
        "sim.policies.sjf:",
        ":Thing",
        ":",
        ".relative:Thing",
    ],
)
def test_a_path_that_leads_nowhere_is_one_sentence(name: str) -> None:
    with pytest.raises(InputError, match="policies") as caught:
        load.load("sim.policies", name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["math:pi", "sim.load:__doc__"])
def test_a_path_to_something_that_cannot_be_called_is_one_sentence(name: str) -> None:
    with pytest.raises(InputError) as caught:
        load.build("sim.policies", name, {})
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("text", ["def broken(:\n", "1 / 0\n", "import nothing_of_the_kind\n"])
def test_a_module_that_does_not_import_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "broken_policy_module.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match="broken_policy_module:thing"):
        load.load("sim.policies", "broken_policy_module:thing")


def test_an_object_by_its_path() -> None:
    assert load.load("sim.policies", "sim.policies.sjf:Sjf") is Sjf
    made = load.build("sim.policies", "sim.policies.sjf:Sjf", {"by": "total"})
    assert isinstance(made, Sjf)


def test_a_module_where_the_user_stands_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "policy_of_the_user.py").write_text("def mine(step):\n    step.advance_running()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    assert load.load("sim.policies", "policy_of_the_user:mine").__name__ == "mine"


def test_a_plain_function_is_a_policy_with_parameters_bound() -> None:
    setup = Setup("test_load:first_come", policy_parameters={"most": 2}, limits=Limits(2, 8))
    done = run(setup, workload([(0.0, 5, 2)]))
    assert done.steps == [[(0, 2, 0)], [(0, 2, 2)], [(0, 1, 4)], [(0, 1, 5)]]


def test_parameters_reach_the_object() -> None:
    policy = load.build("sim.policies", "chunked", {"long_prefill_token_threshold": 512})
    assert isinstance(policy, Chunked)
    assert policy.most == 512
    pool = KvPool(100)
    # An int is a float where a float is asked for.
    assert load.build("sim.allocators", "paged", {"watermark": 0}, pool).pool is pool


@pytest.mark.parametrize(
    ("package", "name", "given", "text"),
    [
        ("sim.policies", "chunked", {"threshold": 1}, "policy 'chunked' has no parameter 'threshold'"),
        ("sim.policies", "sjf", {"fit": 1}, "it has: by, long_prefill_token_threshold"),
        ("sim.policies", "test_load:first_come", {"step": 1}, "has no parameter 'step'; it has: most"),
        ("sim.allocators", "paged", {"pool": 1}, "has no parameter 'pool'; it has: watermark, reserve_full_prompt"),
        ("sim.routers", "round-robin", {"x": 1}, "router 'round-robin' has no parameter 'x'; it has: none"),
        ("sim.policies", "chunked", {"long_prefill_token_threshold": "5"}, "long_prefill_token_threshold is '5'"),
        ("sim.policies", "chunked", {"long_prefill_token_threshold": 5.0}, "must be of type int"),
        ("sim.policies", "chunked", {"long_prefill_token_threshold": True}, "must be of type int"),
        ("sim.policies", "sjf", {"by": 3}, "must be of type str"),
        ("sim.policies", "sjf", {"by": "mood"}, "sjf knows prompt, output and total"),
        ("sim.policies", "static", {"timeout_s": "1"}, "must be of type float"),
        ("sim.policies", "static", {"timeout_s": False}, "must be of type float"),
        ("sim.policies", "static", {"timeout_s": float("nan")}, "policy.timeout_s is nan"),
        ("sim.policies", "static", {"batch_size": 0}, "policy.batch_size is 0"),
        ("sim.policies", "continuous", {"order": "random"}, "prefill-first and decode-first"),
        ("sim.policies", "chunked", {"long_prefill_token_threshold": -1}, "long_prefill_token_threshold is -1"),
        ("sim.allocators", "paged", {"reserve_full_prompt": 1}, "must be of type bool"),
        ("sim.allocators", "paged", {"watermark": float("nan")}, "watermark is nan"),
    ],
)
def test_unknown_and_mistyped_parameters_are_told(package: str, name: str, given: dict[str, Any], text: str) -> None:
    first = [KvPool(10)] if package == "sim.allocators" else []
    with pytest.raises(InputError) as caught:
        load.build(package, name, given, *first)
    assert text in str(caught.value)


class FakePoint:
    """An entry point of a distribution that is not installed."""

    name = "from-elsewhere"

    def load(self) -> Any:
        return first_come


def test_an_installed_entry_point_is_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def entry_points(group: str) -> list[FakePoint]:
        asked.append(group)
        return [FakePoint()]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    assert load.load("sim.policies", "from-elsewhere") is first_come
    assert "from-elsewhere" in load.names("sim.policies")
    assert set(asked) == {"foretoken.policies"}


@pytest.mark.parametrize(
    ("line", "new"),
    [("from sim.step import Step", "sim.engine.step"), ("from sim.engine import Limits", "sim.engine.engine")],
)
def test_a_policy_of_before_the_folders_is_told_where_things_are_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, new: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"old_{new.replace('.', '_')}"
    (tmp_path / f"{name}.py").write_text(f"{line}\n\n\ndef mine(step):\n    step.advance_running()\n")
    with pytest.raises(InputError, match=rf"is {re.escape(new)} now$"):
        load.build("sim.policies", f"{name}:mine", {})


class Misspelt:
    """Would run first come first served without a word."""

    def __call__(self, step: Step) -> None:
        step.advance_running()

    def queue_keys(self, request: object) -> int:
        return 0


class NoSwitch:
    every_step = "yes"

    def __call__(self, step: Step) -> None:
        step.advance_running()


class SetLater:
    def __init__(self) -> None:
        self.hold_finished = True

    def __call__(self, step: Step) -> None:
        step.advance_running()


class NoKey:
    queue_key = 3

    def __call__(self, step: Step) -> None:
        step.advance_running()


class Own:
    """What begins with an underscore, or is far from every trait, is the part's own."""

    _queue_keys = 1
    calls = 0

    def __call__(self, step: Step) -> None:
        step.advance_running()


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("Misspelt", "has 'queue_keys', which is no trait of such a part; the nearest is 'queue_key'"),
        ("NoSwitch", "every_step is 'yes'; it must be True or False"),
        ("SetLater", "has 'hold_finished', which is no trait of such a part; the nearest is 'holds_finished'"),
        ("NoKey", "queue_key is 3; it must be a method"),
    ],
)
def test_a_trait_that_is_misspelt_or_of_another_kind_is_refused(part: str, text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        load.build("sim.policies", f"test_load:{part}", {})


def test_traits_that_exclude_one_another_are_refused_before_anything_is_built() -> None:
    class Both(Own):
        drafts = holds_finished = True

        def __init__(self) -> None:
            raise AssertionError("it is built")

    globals()["Both"] = Both
    with pytest.raises(InputError, match="'test_load:Both' has both drafts and holds_finished: drafts have no place"):
        load.find("sim.policies", "test_load:Both", {})


class Halfway(Paged):
    """As an allocator of version 0.1, before a single step had a method of its own."""

    step = None  # type: ignore[assignment]


def test_an_allocator_with_half_of_what_lockstep_needs_is_refused() -> None:
    with pytest.raises(InputError, match="has some of the methods join, leave, headroom, step, advance and not step"):
        load.load("sim.allocators", "test_load:Halfway")


def test_what_a_class_declares_is_asked_without_building_it() -> None:
    for name in load.names("sim.allocators"):
        _, traits = load.find("sim.allocators", name, {})
        assert set(traits) == set(TRAITS["allocator"])
    assert load.find("sim.allocators", "windowed", {})[1]["no_swap"]
    assert load.find("sim.allocators", "no-cache", {})[1]["keeps_nothing"]
    assert load.find("sim.policies", "speculative", {"base": "sjf", "by": "total"})[1]["drafts"]


def test_names_of_a_part_s_own_are_no_traits() -> None:
    assert isinstance(load.build("sim.policies", "test_load:Own", {}), Own)


def test_every_trait_that_is_read_is_declared() -> None:
    """`getattr(policy, "x", ...)` and `allocator.x = ...` where the product asks a part what it is."""
    reads = re.compile(r"""(?:getattr|hasattr)\((?:self\.)?_?(policy|allocator|base), "(\w+)\"""")
    found = set()
    for path in (Path(load.__file__).parent).rglob("*.py"):
        text = path.read_text()
        found |= {(noun.replace("base", "policy"), name) for noun, name in reads.findall(text)}
        for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
            if getattr(call.func, "id", "") == "_tell":
                found |= {("allocator", keyword.arg) for keyword in call.keywords if keyword.arg}
    assert len(found) >= 14
    assert {one for one in found if one[1] not in TRAITS[one[0]]} == set()
