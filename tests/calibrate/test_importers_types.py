"""Types that stand in file names alone, and the check of an import's rows."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest
from click.testing import CliRunner
from importer_kit import Cell, gemm_us, write_csv

from calibrate.check import suspects
from calibrate.importers.build import import_profile
from calibrate.importers.cli import import_command
from traces.schema import InputError

SIZES = ((1024, 1024), (1024, 4096), (4096, 1024), (4096, 4096), (8192, 4096))


def gemms(path: Path, spoilt: dict[tuple[int, int, int], float] | None = None, times: float = 2.0) -> Path:
    """m, n, k and milliseconds alone; some rows times what is told."""
    rows: list[dict[str, Cell]] = [
        {"m": m, "n": n, "k": k, "latency_ms": gemm_us(m, k, n, times) / 1e3 * (spoilt or {}).get((m, k, n), 1.0)}
        for k, n in SIZES
        for m in (1, 2, 4, 8, 16, 32, 64, 128)
    ]
    return write_csv(path, rows)


def types_of(*paths: Path, dtype: str | None = None) -> list[tuple[str, str, int]]:
    table = import_profile(list(paths), "h100", dtype=dtype).profile.tables["gemm"]
    both = list(zip(table.texts("dtype"), table.texts("weight_dtype"), strict=True))
    return sorted((*pair, both.count(pair)) for pair in set(both))


def test_files_of_two_types_are_two_tables(tmp_path: Path) -> None:
    gemms(tmp_path / "gemm_bf16.csv")
    gemms(tmp_path / "gemm_fp8.csv", times=1.5)
    assert types_of(tmp_path) == [("bf16", "bf16", 40), ("bf16", "fp8", 40)]


def test_a_type_that_contradicts_a_name_is_refused(tmp_path: Path) -> None:
    """Until now all rows of the folder became bf16 ones, those of fp8 as their repeats."""
    gemms(tmp_path / "gemm_bf16.csv")
    gemms(tmp_path / "gemm_fp8.csv")
    with pytest.raises(InputError, match=r"gemm_fp8.csv: its name says fp8, and --dtype bf16; leave --dtype out"):
        types_of(tmp_path, dtype="bf16")
    assert types_of(tmp_path / "gemm_bf16.csv", dtype="bfloat16") == [("bf16", "bf16", 40)]


@pytest.mark.parametrize("name", ["gemm_bfloat16.csv.xz", "gemm_vllm0.24.0_bfloat16.csv.xz", "gemm_0.24_bf16.csv"])
def test_the_type_is_the_end_of_the_name_before_its_kind(name: str, tmp_path: Path) -> None:
    plain = gemms(tmp_path / "plain_bf16.csv")
    path = tmp_path / name
    path.write_bytes(lzma.compress(plain.read_bytes()) if name.endswith(".xz") else plain.read_bytes())
    assert types_of(path) == [("bf16", "bf16", 40)]


@pytest.mark.parametrize("place", [(1, 4096, 1024), (16, 4096, 1024), (128, 4096, 1024)])
def test_a_row_eight_times_too_slow_is_named_with_its_matrix(place: tuple[int, int, int], tmp_path: Path) -> None:
    """At an edge as well, where it has a neighbour on one side alone."""
    found = import_profile([gemms(tmp_path / "gemm_bf16.csv", {place: 8.0})], "h100")
    assert [str(one).partition(", tokens")[0] for one in suspects(found.profile)] == [
        "gemm: dtype bf16, weight_dtype bf16, k 4096, n 1024"
    ]
    assert suspects(found.profile)[0].where.endswith(f"tokens {place[0]}")
    assert suspects(found.profile)[0].error == pytest.approx(-7 / 8, abs=0.08)


def test_a_whole_matrix_too_slow_is_found_beside_the_others(tmp_path: Path) -> None:
    spoilt = {(m, 4096, 1024): 8.0 for m in (1, 2, 4, 8, 16, 32, 64, 128)}
    found = import_profile([gemms(tmp_path / "gemm_bf16.csv", spoilt)], "h100")
    assert len(suspects(found.profile)) == 8
    assert all("k 4096, n 1024" in one.where for one in suspects(found.profile))
    assert suspects(import_profile([gemms(tmp_path / "all_bf16.csv")], "h100").profile) == []


def test_an_import_says_which_rows_are_suspect(tmp_path: Path) -> None:
    gemms(tmp_path / "gemm_bf16.csv", {(128, 4096, 1024): 8.0})
    args = [str(tmp_path / "gemm_bf16.csv"), "--gpu", "h100", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(import_command, args, catch_exceptions=False)
    assert done.exit_code == 0
    assert "suspect gemm: dtype bf16, weight_dtype bf16, k 4096, n 1024, tokens 128" in done.output
