"""Only rows that can be true come into a profile, what goes is counted, and mistakes are one sentence."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from importer_kit import H100, Cell, aic_gemms, gemm_us, left_out, rows_of, write_csv

from calibrate.importers.build import import_profile
from calibrate.importers.cli import import_command
from calibrate.importers.draft import Draft
from calibrate.importers.limits import AGREE, clean
from calibrate.importers.sheet import Place
from sim.cost import profile
from traces.schema import InputError


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_a_table_in_another_unit_is_refused(tmp_path: Path, scale: float) -> None:
    path = write_csv(tmp_path / "gemm_perf.csv", aic_gemms(scale=scale))
    word = "absurdly slow" if scale == 1.0 else "faster than the chip can be"
    with pytest.raises(
        InputError, match=f"9 of 9 rows of gemm are {word} .* times were read as ms: is that their unit"
    ):
        import_profile([path], "h100")


def test_planted_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = aic_gemms()
    rows[4]["latency"] = 1e-4
    rows[6]["latency"] = gemm_us(256, 8192, 4096) / 1e3 / 10
    rows[7]["latency"] = gemm_us(1024, 8192, 4096) * 10.0
    rows[8]["latency"] = "nan"
    found = import_profile([write_csv(tmp_path / "gemm_perf.csv", rows)], "h100")
    assert left_out(found) == {
        ("gemm", "faster than the chip can be (h100)"): 2,
        ("gemm", "absurdly slow (h100)"): 1,
        ("gemm", "latency is not positive and finite"): 1,
    }
    assert [row["tokens"] for row in rows_of(found, "gemm")] == [1, 2, 4, 8, 64]
    assert "Left out: gemm: 2 rows left out, faster than the chip can be (h100) (gemm_perf.csv:6)." in (
        found.profile.meta.notes
    )


@pytest.mark.parametrize(
    ("repeats", "kept_us"),
    [
        ((10.0, 11.0), 10.5),
        ((10.0, 14.0), None),
        ((10.0, 10.2, 30.0), 10.1),
        ((10.0, 20.0, 20.2), 20.1),
        ((10.0, 20.0, 30.0), None),
    ],
)
def test_repeats_that_agree_give_their_median(repeats: tuple[float, ...], kept_us: float | None) -> None:
    draft = Draft("the test")
    for line, us in enumerate(repeats, 2):
        draft.add("sampling", Place(Path("s.csv"), line), vocab=1000, rows=1, us=us)
    draft.add("sampling", Place(Path("s.csv"), 9), vocab=1000, rows=2, us=9.0)
    rows = list(clean(draft, H100)["sampling"].rows())
    assert [row["us"] for row in rows if row["rows"] == 1] == ([] if kept_us is None else [pytest.approx(kept_us)])
    lost = sum(one.rows for one in draft.left_out())
    assert lost == (len(repeats) if kept_us is None else len(repeats) - 2)


@settings(max_examples=30)
@given(
    st.dictionaries(
        st.integers(1, 64), st.lists(st.floats(1.0, 100.0), min_size=1, max_size=4), min_size=1, max_size=6
    ),
    st.randoms(use_true_random=False),
)
def test_the_order_of_rows_changes_nothing_and_none_is_lost_unsaid(
    times: dict[int, list[float]], shuffle: random.Random
) -> None:
    measured = [(rows, us) for rows, several in times.items() for us in several]

    def cleaned(order: list[tuple[int, float]]) -> tuple[dict[float, float], int]:
        draft = Draft("the test")
        for line, (rows, us) in enumerate(order, 2):
            draft.add("sampling", Place(Path("s.csv"), line), vocab=1000, rows=rows, us=us)
        try:
            table = clean(draft, H100)["sampling"]
        except InputError:
            return {}, sum(one.rows for one in draft.left_out())
        found = dict(zip(table.numbers("rows").tolist(), table.numbers("us").tolist(), strict=True))
        return found, sum(one.rows for one in draft.left_out())

    shuffled = list(measured)
    shuffle.shuffle(shuffled)
    assert cleaned(measured) == cleaned(shuffled)
    kept, lost = cleaned(measured)
    for rows, several in times.items():
        if rows in kept:
            assert min(several) <= kept[rows] <= max(several)
        else:
            assert max(several) > AGREE * min(several)
    assert sum(len(several) for several in times.values()) - lost >= len(kept)


def test_the_command_writes_a_profile_that_reads_back(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "gemm_perf.csv", aic_gemms())
    out = tmp_path / "made"
    args = [str(path), "--format", "aiconfigurator", "--gpu", "h100", "--out", str(out)]
    done = CliRunner().invoke(import_command, args, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    read = profile.find(str(out))
    assert read.meta.name == "h100-aiconfigurator"
    assert len(read.tables["gemm"]) == 9
    assert read.meta.accuracy["gemm"].points == 7
    assert CliRunner().invoke(import_command, args).exit_code == 2
    assert CliRunner().invoke(import_command, [*args, "--replace"], catch_exceptions=False).exit_code == 0


def test_a_data_sheet_of_the_users_goes_along(tmp_path: Path) -> None:
    gpu = tmp_path / "mine.toml"
    keys = {
        "name": "my-gpu",
        "description": "a GPU",
        "source": "a test",
        "memory_bytes": 2**36,
        "sms": 100,
        "watts": 300,
    }
    rates = {"memory_bytes_per_s": 3e12, "fp16_flops_per_s": 9e14, "bf16_flops_per_s": 9e14, "fp8_flops_per_s": 18e14}
    more = {"fp32_flops_per_s": 6e13, "l2_bytes": 2**25, "pcie_bytes_per_s": 6e10, "link_bytes_per_s": 0}
    lines = (
        f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}"
        for key, value in (keys | rates | more).items()
    )
    gpu.write_text("\n".join(lines))
    rows = [{**row, "device": "some other name"} for row in aic_gemms()]
    found = import_profile([write_csv(tmp_path / "gemm_perf.csv", rows)], str(gpu))
    profile.write(found.profile, tmp_path / "out")
    read = profile.find(str(tmp_path / "out"))
    assert read.gpu().sms == 100
    assert read.meta.gpu == "my-gpu"


BAD: Mapping[str, tuple[dict[str, Cell], dict[str, Any], str]] = {
    "unknown columns": ({"a": 1, "b": 2}, {}, "in no known format by its columns"),
    "no type": ({"m": 1, "n": 8, "k": 8, "latency": 0.01}, {}, "say it with --dtype"),
    "a type that it says itself": (aic_gemms()[0], {"dtype": "bf16"}, "leave --dtype out"),
    "a model where none is asked for": (aic_gemms()[0], {"model": "llama-3.1-8b"}, "leave --model out"),
    "another GPU": (aic_gemms()[0] | {"device": "NVIDIA H200"}, {}, "measured on NVIDIA H200 .*, and --gpu is h100"),
    "an unknown format": (aic_gemms()[0], {"format_name": "guess"}, "unknown format 'guess'; known are aiconfigurator"),
    "another format": (aic_gemms()[0], {"format_name": "vidur"}, "no table of vidur has its columns"),
    "a type without a table": (aic_gemms()[0] | {"gemm_dtype": "nvfp4"}, {}, "nothing to import: .* nvfp4"),
    "no model": ({"layer": "act_fn", "tokens": 1, "time_us": 3.0}, {}, "say it with --model"),
}


@pytest.mark.parametrize("what", BAD)
def test_mistakes_are_one_sentence(tmp_path: Path, what: str) -> None:
    row, options, message = BAD[what]
    path = write_csv(tmp_path / "table.csv", [row])
    with pytest.raises(InputError, match=message) as caught:
        import_profile([path], "h100", **options)
    assert "\n" not in str(caught.value)
    args = [str(path), "--gpu", "h100", "--out", str(tmp_path / "out")]
    for key, value in options.items():
        args += [f"--{key.removesuffix('_name')}", str(value)]
    done = CliRunner().invoke(import_command, args)
    assert done.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_broken_files_are_named(tmp_path: Path) -> None:
    ragged = tmp_path / "ragged_bf16.csv"
    ragged.write_text("m,n,k,latency\n1,2,3\n")
    with pytest.raises(InputError, match=r"ragged_bf16.csv:2: 3 values where the header has 4"):
        import_profile([ragged], "h100")
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(InputError, match="not a valid Parquet file"):
        import_profile([cut], "h100")
    empty = tmp_path / "folder"
    empty.mkdir()
    with pytest.raises(InputError, match="no table in this folder"):
        import_profile([empty], "h100")
    with pytest.raises(InputError, match="does not exist"):
        import_profile([tmp_path / "absent.csv"], "h100")


def test_files_without_a_table_are_named_and_passed_over_in_a_folder(tmp_path: Path) -> None:
    write_csv(tmp_path / "data" / "gemm_perf.txt", aic_gemms())
    moe = write_csv(tmp_path / "data" / "moe_perf.txt", [{"num_tokens": 1, "topk": 2, "latency": 0.1}])
    found = import_profile([tmp_path / "data"], "h100")
    assert found.skipped_files == (str(moe),)
