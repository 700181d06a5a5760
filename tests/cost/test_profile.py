"""A profile on disk: read as written, every fault refused with its place, nothing half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profile_kit import GPU, HEADS, llama_profile, meta

from sim.cli.list import rows_of
from sim.cost import description, profile
from sim.cost.profile import Accuracy, Profile, find, read, write
from sim.cost.schema import TABLES
from sim.cost.speed import too_fast
from sim.cost.tables import Table, read_table
from sim.scenario import build
from sim.serving.assemble import assemble
from traces.schema import InputError

GEMM = {"dtype": "bf16", "weight_dtype": "bf16", "k": 4096, "n": 4096}


def small(**changed: object) -> Profile:
    rows = [{**GEMM, "tokens": tokens, "us": 20.0 + tokens / 10} for tokens in (1, 2, 4)]
    return Profile(meta(**changed), {"gemm": Table.of("gemm", rows)})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    error = Accuracy(points=9, mean=0.05, p90=0.1, max=0.2, bias=-0.01, form="linear", how="so", repeat_mean=0.02)
    made = llama_profile(
        notes=("one", "two"),
        software={"driver": "580"},
        clocks={"sm_mhz": 1980, "state": "P0"},
        included={"KV write": "decode_attention"},
        captured_tokens=(1, 2, 4),
        accuracy={"gemm": error},
        step_accuracy={"decode": error},
    )
    write(made, tmp_path / "h100")
    found = read(tmp_path / "h100")
    assert found.meta == made.meta
    assert list(found.tables) == [name for name in TABLES if name in made.tables]
    for name, table in made.tables.items():
        for before, after in zip(table.rows(), found.tables[name].rows(), strict=True):
            assert after.pop("us") == pytest.approx(before.pop("us"), rel=1e-5)
            assert after == before
    assert find(str(tmp_path / "h100")).meta.name == "made-up"


@given(st.lists(st.tuples(st.integers(1, 10**9), st.floats(1e-3, 1e9)), min_size=1, unique_by=lambda row: row[0]))
def test_a_table_survives_its_csv(rows: list[tuple[int, float]]) -> None:
    made = Table.of("sampling", [{"vocab": vocab, "rows": 1, "us": us} for vocab, us in rows])
    header, *lines = made.csv().splitlines()
    again = Table.of("sampling", [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines])
    assert again.numbers("vocab").tolist() == made.numbers("vocab").tolist()
    assert again.numbers("us") == pytest.approx(made.numbers("us"), rel=1e-5)


ODD_NUMBERS = (" 2", "2.0", "1e0", "1_0", "\u0663", "0x1", "", "-1", "nan", "inf", "1e-400", "1 2", "#", "x,1")
ODD = [
    *(("direction", "in"), ("direction", " out"), ("direction", "up"), ("end", "\n\n"), ("end", ""), ("bytes", "30")),
    *((column, cell) for column in ("bytes", "us") for cell in ODD_NUMBERS),
]


def read_plainly(path: Path, lines: str, us: str = "us") -> dict[str, list[str]] | str:
    """The columns of a file with these lines, or what is wrong with it; a header in quotes is read line by line."""
    path.write_text(f"direction,bytes,{us}\n{lines}", encoding="utf-8")
    try:
        return {name: list(map(repr, values)) for name, values in read_table(path).columns.items()}
    except InputError as error:
        return str(error)


@pytest.mark.parametrize(("column", "cell"), ODD)
def test_a_plain_file_says_what_its_lines_say(column: str, cell: str, tmp_path: Path) -> None:
    rows = [{"direction": "out", "bytes": str(size), "us": "0.1", "end": "\n"} for size in (10, 20, 30)]
    rows[1][column] = cell
    lines = "".join(f"{row['direction']},{row['bytes']},{row['us']}{row['end']}" for row in rows)
    path = tmp_path / "swap.csv"
    assert read_plainly(path, lines) == read_plainly(path, lines, '"us"')


@given(st.lists(st.floats(1e-9, 1e12), min_size=1))
def test_numbers_of_a_plain_file_are_those_that_stand_there(times: list[float]) -> None:
    with TemporaryDirectory() as folder:
        lines = "".join(f"out,{size},{us!r}\n" for size, us in enumerate(times, 1))
        found = read_plainly(Path(folder) / "swap.csv", lines)
    assert isinstance(found, dict)
    assert found["us"] == [repr(np.float64(us)) for us in times]


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return change


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a hole": (edit("gemm.csv", ",20.2", ","), r"gemm\.csv:3: us '' is not a number"),
    "a value too few": (edit("gemm.csv", ",2,20.2", ",20.2"), r"gemm\.csv:3: 5 values where the header has 6"),
    "no number": (edit("gemm.csv", ",20.2", ",fast"), r"gemm\.csv:3: us 'fast' is not a number"),
    "negative": (edit("gemm.csv", ",20.2", ",-1"), r"gemm\.csv:3: us '-1' must be positive and finite"),
    "endless": (edit("gemm.csv", ",20.2", ",inf"), r"gemm\.csv:3: us 'inf' must be positive and finite"),
    "half a token": (edit("gemm.csv", ",2,20.2", ",2.5,20.2"), r"tokens '2.5' must be a whole number, at least 1"),
    "an unknown type": (edit("gemm.csv", "bf16", "bf8"), r"gemm\.csv:2: dtype 'bf8' is none of fp32, fp16, bf16"),
    "twice": (edit("gemm.csv", ",2,20.2", ",1,20.2"), r"gemm\.csv:3: measures the same as line 2"),
    "a column too much": (edit("gemm.csv", "tokens,us", "tokens,ms"), r"unknown column 'ms'; known are dtype"),
    "a column too few": (lambda at: (at / "gemm.csv").write_text("dtype,us\n"), r"column 'weight_dtype' is missing"),
    "a column twice": (edit("gemm.csv", "weight_dtype", "dtype"), r"column 'dtype' is there twice"),
    "no rows": (
        lambda at: (at / "gemm.csv").write_text("dtype,weight_dtype,k,n,tokens,us\n"),
        r"gemm\.csv: has no rows",
    ),
    "not text": (lambda at: (at / "gemm.csv").write_bytes(b"\xff\xfe"), r"gemm\.csv is not UTF-8 text"),
    "an unknown table": (
        lambda at: (at / "gems.csv").write_text("us\n1\n"),
        r"no table of a profile; known are gemm\.csv",
    ),
    "too fast": (edit("gemm.csv", ",20.2", ",0.02"), r"gemm\.csv:3: us 0.02 is faster than h100 can be"),
    "a newer schema": (edit("profile.toml", "schema = 1", "schema = 2"), r"schema 2 is newer than 1"),
    "no schema": (edit("profile.toml", "schema = 1", ""), r"schema must be the format's version"),
    "a wrong schema": (edit("profile.toml", "schema = 1", 'schema = "1"'), r"schema must be the format's version"),
    "an unknown key": (
        edit("profile.toml", "device", "devise"),
        r"profile\.toml: unknown key 'devise'; known are name",
    ),
    "a missing key": (edit("profile.toml", 'device = "a law"', ""), r"profile\.toml: key 'device' is missing"),
    "an empty key": (edit("profile.toml", '"a law"', '""'), r"profile\.toml: device is empty"),
    "a wrong type": (edit("profile.toml", '"a law"', "3"), r"profile\.toml: device is 3; it must be of type str"),
    "a wrong kind": (edit("profile.toml", '"measured"', '"guessed"'), r"kind 'guessed' is none of measured, imported"),
    "not TOML": (edit("profile.toml", "=", ":"), r"profile\.toml is not TOML"),
    "no description": (lambda at: (at / "profile.toml").unlink(), r"profile\.toml does not exist"),
    "no tables": (lambda at: (at / "gemm.csv").unlink(), r"has no tables"),
    "an unknown GPU": (edit("profile.toml", '"h100"', '"h101"'), r"unknown GPU 'h101'"),
    "accuracy of nothing": (
        edit("profile.toml", "[accuracy.gemm]", "[accuracy.gems]"),
        r"\[accuracy\.gems\] is no table; known are gemm",
    ),
    "accuracy of text": (edit("profile.toml", "mean = 0.05", 'mean = "5"'), r"mean is '5'; it must be of type"),
    "accuracy of less": (edit("profile.toml", "mean = 0.05", ""), r"\[accuracy\.gemm\] key 'mean' is missing"),
}


@pytest.mark.parametrize("middle", ["out,2,3", "in,2,3", "2,3", "out,1,3", "out,2,"])
def test_cells_with_which_all_rows_begin_are_those_of_each(middle: str, tmp_path: Path) -> None:
    path, lines = tmp_path / "swap.csv", f"out,1,2\n{middle}\nout,3,4\n"
    assert read_plainly(path, lines) == read_plainly(path, lines, '"us"')


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_faults_are_refused_in_one_sentence(fault: str, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    error = Accuracy(points=1, mean=0.05, p90=0.1, max=0.2, bias=0.0)
    write(small(accuracy={"gemm": error}), tmp_path / "x")
    change(tmp_path / "x")
    with pytest.raises(InputError, match=message) as raised:
        read(tmp_path / "x")
    assert "\n" not in str(raised.value)


def test_steps_of_several_gpus_are_told_apart() -> None:
    row = {"model": "llama-2-70b", "dtype": "fp16", "weight_dtype": "fp16", "kv_dtype": "fp16", "graph": 0}
    row |= {"prefills": "512+0", "decodes": 0, "decode_context_tokens": 0, "max_context_tokens": 0}
    row |= {"device_us": 90_000.0, "host_us": 0.0}
    assert len(Table.of("steps", [{**row, "tp": tp} for tp in (2, 4, 8)])) == 3
    with pytest.raises(InputError, match="row 2: measures the same as row 1"):
        Table.of("steps", [row, row])


def test_older_schemas_are_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(small(), tmp_path / "x")
    monkeypatch.setattr(description, "SCHEMA", 2)
    monkeypatch.setitem(description.MIGRATIONS, 1, lambda table: {**table, "schema": 2, "notes": ["migrated"]})
    assert read(tmp_path / "x").meta.notes == ("migrated",)


def test_a_profile_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    fast = Table.of("gemm", [{**GEMM, "tokens": 1, "us": 0.01}])
    with pytest.raises(InputError, match="faster than h100 can be"):
        write(Profile(meta(), {"gemm": fast}), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    write(small(), tmp_path / "x")
    with pytest.raises(InputError, match="is there already"):
        write(small(), tmp_path / "x")
    write(small(notes=("anew",)), tmp_path / "x", replace=True)
    assert read(tmp_path / "x").meta.notes == ("anew",)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        write(small(), tmp_path / "other", replace=True)


def test_a_run_reads_each_table_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(llama_profile(), tmp_path / "p")
    seen: list[str] = []
    monkeypatch.setattr(profile, "read_table", lambda path: (seen.append(path.name), read_table(path))[1])
    assemble(build({"gpu": "h100", "cost.profile": str(tmp_path / "p")}))
    assert sorted(seen) == sorted(path.name for path in (tmp_path / "p").glob("*.csv"))


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown profile 'nope'; known are roofline"):
        find("nope")
    with pytest.raises(InputError, match="unknown table 'gems'; known are gemm"):
        Table.of("gems", [])


def test_every_profile_of_the_catalog_is_sound() -> None:
    for name in profile.names():
        assert find(name).meta.name == name


def test_profiles_are_listed_with_what_they_are_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "_FOLDER", tmp_path)
    write(small(name="h100-mine", date="2026-03-04"), tmp_path / "h100-mine")
    roofline, mine = rows_of("profiles")
    assert roofline["name"] == "roofline"
    assert (mine["name"], mine["kind"], mine["gpu"], mine["date"]) == ("h100-mine", "measured", "h100", "2026-03-04")


FAST = {
    "gemm": {**GEMM, "k": 16384, "n": 16384, "tokens": 1, "us": 100.0},
    "prefill_attention": {**HEADS, "sequences": 1, "past_tokens": 0, "new_tokens": 8192, "us": 500.0},
    "decode_attention": {
        **HEADS,
        "width": 1,
        "sequences": 256,
        "mean_context_tokens": 4096,
        "max_context_tokens": 4096,
        "us": 1000.0,
    },
    "mixed_attention": {
        **HEADS,
        "decodes": 256,
        "mean_context_tokens": 4096,
        "past_tokens": 0,
        "new_tokens": 16,
        "us": 1000.0,
    },
    "swap": {"direction": "in", "bytes": 2**30, "us": 10_000.0},
    "all_reduce": {"op": "all_reduce", "gpus": 8, "bytes": 2**30, "us": 1000.0},
    "sampling": {"vocab": 128_256, "rows": 1, "us": 0.1},
}
"""Faster than an H100: by bytes of weights, FLOPs, bytes of KV, the link, the fabric, and any launch."""


@pytest.mark.parametrize("name", sorted(FAST))
def test_no_row_is_faster_than_the_chip(name: str) -> None:
    assert len(list(too_fast(Table.of(name, [FAST[name]]), GPU))) == 1
    slower = {**FAST[name], "us": 1e3 * float(FAST[name]["us"])}  # type: ignore[arg-type]
    assert list(too_fast(Table.of(name, [slower]), GPU)) == []


def test_milliseconds_taken_for_microseconds_are_noticed() -> None:
    """A unit off by a thousand makes the large rows impossible."""
    table = llama_profile().tables["gemm"]
    wrong = Table.of("gemm", [{**row, "us": float(row["us"]) / 1000} for row in table.rows()])
    assert len(list(too_fast(wrong, GPU))) > 0.9 * len(wrong)
    assert list(too_fast(table, GPU)) == []
