"""The layers: imports point one way, the simulator needs no torch, and the top of the tree stays the picture of it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("traces", "sim", "backend", "calibrate")
"""Each may import those before it, and itself."""

SIM_ORDER = (
    "specs", "load", "catalog", "engine", "cost", "policies", "allocators", "speculation", "scenario", "engines",
    "results", "serving", "routers", "study", "validate", "report", "api", "cli",
)  # fmt: skip
"""The folders and files of `sim/`, as docs/architecture.md lists them: each may import those before it, and itself."""
DRIVERS = "sim/engines/drivers/"
"""Scripts that run where another engine is installed; no module of the product."""
SIMPY_FILES = {"sim/serving/clock.py"}
TOP = {
    "pyproject.toml",
    "README.md",
    "sim",
    "backend",
    "traces",
    "calibrate",
    "tests",
    "docs",
    "LICENSE",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "constraints.txt",
    "setup.py",
}
LEFT_BY_TOOLS = {"build", "dist", "out", "__pycache__", "foretoken.egg-info"}


def imports(path: Path, package: str) -> Iterator[tuple[str, bool]]:
    """(full name of each module that a file imports, is it at the top of the file)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    at_top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in at_top
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            yield base, id(node) in at_top


def sources(layer: str) -> list[tuple[str, list[tuple[str, bool]]]]:
    """(path from the root, imports) of each Python file of a layer."""
    found = []
    for path in sorted((ROOT / layer).rglob("*.py")):
        name = path.relative_to(ROOT)
        if name.as_posix().startswith(DRIVERS):
            continue
        found.append((name.as_posix(), list(imports(path, ".".join(name.parent.parts)))))
    return found


def test_the_parser_sees_every_kind_of_import(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text(
        "import simpy.core as s, os\nfrom ..step import Step\nfrom . import x\n\ndef f():\n    from torch import nn\n"
    )
    assert list(imports(path, "sim.policies")) == [
        ("simpy.core", True),
        ("os", True),
        ("sim.step", True),
        ("sim.policies", True),
        ("torch", False),
    ]


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_one_way(layer: str) -> None:
    allowed = LAYERS[: LAYERS.index(layer) + 1]
    for path, found in sources(layer):
        for name, _ in found:
            top = name.split(".")[0]
            assert top not in LAYERS or top in allowed, f"{path} imports {name}"
            assert top != "tests", f"{path} imports {name}"


def test_the_folders_of_the_simulator_point_one_way() -> None:
    assert {path.stem for path in (ROOT / "sim").iterdir() if path.name[:2] != "__"} == set(SIM_ORDER)
    for path, found in sources("sim"):
        own = Path(path).parts[1].removesuffix(".py")
        for name, _ in found:
            parts = name.split(".")
            if parts[0] == "sim" and len(parts) > 1 and parts[1] in SIM_ORDER and own in SIM_ORDER:
                assert SIM_ORDER.index(parts[1]) <= SIM_ORDER.index(own), f"{path} imports {name}"


def test_nothing_below_the_door_imports_it() -> None:
    users = {path for path, found in sources("sim") for name, _ in found if (name + ".").startswith("sim.api.")}
    assert {path for path in users if not path.startswith("sim/cli/")} == set()


def modules_of(layer: str) -> dict[str, set[str]]:
    """By module of a layer, the modules of it that it imports, for type hints too."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / layer).rglob("*.py")}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    found: dict[str, set[str]] = {}
    for module, path in names.items():
        found[module] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                found[module] |= {one if one in names else node.module for one in whole} & names.keys() - {module}
    return found


def circles(graph: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """The sets of nodes that reach one another."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for other in graph[waiting.pop()] - seen:
                seen.add(other)
                waiting.append(other)
        return seen

    reach = {node: reached(node) for node in graph}
    return sorted({tuple(sorted(one for one in reach[node] if node in reach[one])) for node in graph} - {()})


def test_the_search_for_circles_sees_them() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [("a", "b", "c")]


@pytest.mark.parametrize("layer", LAYERS)
def test_no_modules_import_one_another(layer: str) -> None:
    assert circles(modules_of(layer)) == []


def test_the_map_lists_the_folders() -> None:
    """What docs/architecture.md draws is what is there; of `sim/` in the order in which they may import."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for layer in ("sim", "backend"):
        start = text.index(f"\n{layer}/ ")
        listed = re.findall(r"^  (\w+)/? +\S", text[start : text.index("\n\n", start)], re.MULTILINE)
        there = {path.stem for path in (ROOT / layer).iterdir() if path.name[:2] != "__"}
        assert set(listed) == there, layer
        if layer == "sim":
            assert tuple(listed) == SIM_ORDER


def twice(classes: list[tuple[str, str]]) -> dict[str, list[str]]:
    """By name the files of the classes that have it, of names that stand more than once."""
    files: dict[str, list[str]] = {}
    for name, path in classes:
        files.setdefault(name, []).append(path)
    return {name: paths for name, paths in files.items() if len(paths) > 1}


def test_the_search_for_names_sees_them() -> None:
    assert twice([("Row", "a.py"), ("Line", "a.py"), ("Row", "b.py")]) == {"Row": ["a.py", "b.py"]}


def test_a_class_name_stands_once_in_the_product() -> None:
    classes = [
        (node.name, path.relative_to(ROOT).as_posix())
        for layer in LAYERS
        for path in sorted((ROOT / layer).rglob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    ]
    assert twice(classes) == {}


def test_one_file_knows_simpy() -> None:
    users = {path for layer in LAYERS for path, found in sources(layer) for name, _ in found if name[:5] == "simpy"}
    assert users == SIMPY_FILES


def test_simulator_and_traces_never_import_the_live_half() -> None:
    for layer in ("traces", "sim"):
        for path, found in sources(layer):
            for name, at_top in found:
                top = name.split(".")[0]
                assert top not in ("torch", "triton", "transformers"), f"{path} imports {name}"
                assert top != "tokenizers" or not at_top, f"{path} imports {name} before it is needed"


def test_every_import_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    declared = {
        re.split(r"[^A-Za-z0-9_.-]", line)[0].lower().replace("-", "_")
        for line in [*project["dependencies"], *extras["tokenizer"], *extras["live"]]
    }
    for layer in LAYERS:
        for path, found in sources(layer):
            for name, _ in found:
                top = name.split(".")[0]
                known = top in sys.stdlib_module_names or top in LAYERS or top in declared
                assert known, f"{path} imports {name}, which pyproject.toml does not declare"


def test_traces_need_neither_the_simulator_nor_its_tools() -> None:
    for path, found in sources("traces"):
        for name, _ in found:
            assert name.split(".")[0] not in ("simpy", "scipy", "click", "rich"), f"{path} imports {name}"


def test_nothing_else_stands_at_the_top() -> None:
    there = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert there - LEFT_BY_TOOLS <= TOP
    assert {"sim", "traces", "tests", "pyproject.toml"} <= there


BLOCKED_RUN = """
import sys
for name in ("torch", "triton", "tokenizers", "transformers", "backend", "calibrate"):
    sys.modules[name] = None
import sim.api
result = sim.api.run(trace=sys.argv[1], seed=7, **{"kv.blocks": 256, "engine.max_num_seqs": 4})
done = result.requests
assert (done["status"] == "completed").all(), done
print(len(done), sorted(name for name in sys.modules if name.split(".")[0] == "torch" and sys.modules[name]))
"""


def test_the_simulator_runs_with_torch_blocked(tmp_path: Path) -> None:
    trace = tmp_path / "small.csv"
    rows = "".join(f"2023-11-16 18:00:{at:02d}.0000000,{50 + 7 * at},{5 + at}\n" for at in range(20))
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCKED_RUN, str(trace)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["20", "[]"]


def test_importing_traces_imports_no_simulator() -> None:
    code = "import sys, traces; print([name for name in sys.modules if name.split('.')[0] in ('sim', 'simpy')])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False, timeout=PATIENCE_S
    )
    assert done.stdout.strip() == "[]", done.stderr


PLUG_INS = {"sim/allocators", "sim/policies", "sim/routers", "sim/catalog/models", "sim/catalog/gpus", "traces/formats"}
"""Where a file's name is what users call the part."""


def test_a_prefix_that_three_files_share_is_a_folder() -> None:
    for layer in LAYERS:
        for folder in [ROOT / layer, *(path for path in (ROOT / layer).rglob("*") if path.is_dir())]:
            if folder.relative_to(ROOT).as_posix() in PLUG_INS:
                continue
            stems = [path.stem for path in folder.glob("*.py")]
            shared = Counter(stem.split("_")[0] for stem in stems if "_" in stem.strip("_") or stem in stems)
            assert not {prefix for prefix, count in shared.items() if prefix and count > 2}, folder
