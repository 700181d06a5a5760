"""Other people's files become tables of the right shapes and units: one format after the other."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from importer_kit import (
    Cell,
    aic_gemms,
    attention_us,
    gemm_us,
    left_out,
    op_profile,
    rows_of,
    splitwise_rows,
    vidur_folder,
    write_csv,
)

from calibrate.importers import formats
from calibrate.importers.build import import_profile
from calibrate.importers.sheet import open_sheets, scalars
from sim.cost import profile
from traces.schema import InputError


def test_an_op_profile_becomes_tables_of_the_models_own_shapes(tmp_path: Path) -> None:
    found = import_profile([op_profile(tmp_path / "op")], "h100")
    gemms = rows_of(found, "gemm")
    assert {(row["k"], row["n"]) for row in gemms} == {
        (4096, 6144),
        (4096, 4096),
        (4096, 28672),
        (14336, 4096),
        (4096, 128256),
    }
    assert {"tokens": 16, "us": pytest.approx(gemm_us(16, 4096, 6144))}.items() <= next(
        row for row in gemms if row["n"] == 6144 and row["tokens"] == 16
    ).items()
    widths = {(row["op"], row["width"]) for row in rows_of(found, "elementwise")}
    assert widths == {("norm", 4096), ("rope", 5120), ("activation", 14336), ("embedding", 4096)}
    assert [row["past_tokens"] for row in rows_of(found, "prefill_attention")] == [0, 512]
    sizes = ("decodes", "new_tokens", "mean_context_tokens", "max_context_tokens")
    assert [tuple(row[name] for name in sizes) for row in rows_of(found, "mixed_attention")] == [
        (8, 64, 1024, 1024),
        (8, 64, 352, 1024),  # of the skew profile
    ]
    assert found.profile.meta.included == {"KV write": "mixed_attention"}
    assert found.profile.meta.software["vllm_version"] == "0.19.0"
    assert found.profile.meta.date == "2026-04-24"
    assert found.profile.meta.kind == "imported"


def test_sums_of_shots_are_told_by_the_batches_that_both_files_have(tmp_path: Path) -> None:
    found = import_profile([op_profile(tmp_path / "op")], "h100")
    uneven = [
        row for row in rows_of(found, "decode_attention") if row["max_context_tokens"] != row["mean_context_tokens"]
    ]
    (row,) = uneven
    assert (row["sequences"], row["mean_context_tokens"], row["max_context_tokens"]) == (8, 352, 1024)
    assert row["us"] == pytest.approx(1.1 * attention_us(8, 128, 8 * 352), rel=1e-5)
    assert any("divided by 3" in note for note in found.profile.meta.notes)


@pytest.mark.parametrize(("shots", "scale", "kept"), [(3, 1.0, 1), (1, 1.0, 1), (3, 2.0, 0), (1, 3.0, 0)])
def test_a_scale_that_shots_do_not_explain_is_left_out(tmp_path: Path, shots: int, scale: float, kept: int) -> None:
    found = import_profile([op_profile(tmp_path / "op", shots, scale)], "h100")
    uneven = [
        row for row in rows_of(found, "decode_attention") if row["max_context_tokens"] != row["mean_context_tokens"]
    ]
    assert len(uneven) == kept


def test_the_folder_says_how_many_gpus_shared_the_layers(tmp_path: Path) -> None:
    folder = op_profile(tmp_path / "tp2")
    found = import_profile([folder], "h100")
    assert {row["k"] for row in rows_of(found, "gemm")} == {4096, 2048, 7168}
    assert {row["kv_heads"] for row in rows_of(found, "decode_attention")} == {4}
    again = import_profile([folder], "h100", tp=1)
    assert {row["kv_heads"] for row in rows_of(again, "decode_attention")} == {8}


def test_kernel_tables_are_the_same_from_csv_and_parquet(tmp_path: Path) -> None:
    text = write_csv(tmp_path / "text" / "gemm_perf.txt", aic_gemms())
    packed = tmp_path / "packed" / "gemm_perf.parquet"
    packed.parent.mkdir()
    pd.DataFrame(aic_gemms()).to_parquet(packed)
    one, two = import_profile([text.parent], "h100"), import_profile([packed], "h100")
    assert one.profile.tables["gemm"].csv() == two.profile.tables["gemm"].csv()
    assert one.profile.meta.software == {"VLLM": "0.22.0"}
    assert one.profile.meta.device == "NVIDIA H100 80GB HBM3"
    row = rows_of(one, "gemm")[0]
    assert (row["dtype"], row["weight_dtype"], row["k"], row["n"], row["tokens"]) == ("bf16", "bf16", 8192, 4096, 1)
    assert row["us"] == pytest.approx(gemm_us(1, 8192, 4096))


def test_context_and_generation_rows_are_told_by_what_they_compute(tmp_path: Path) -> None:
    heads = {"num_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    sizes = [(2, 512, 0), (2, 1, 0), (4, 1, 1023)]
    rows: list[dict[str, Cell]] = [
        {"batch_size": batch, "isl": new, "step": past, **heads, "latency_ms": 0.05} for batch, new, past in sizes
    ]
    found = import_profile([write_csv(tmp_path / "attention_bf16.csv", rows)], "h100")
    assert [(row["sequences"], row["new_tokens"]) for row in rows_of(found, "prefill_attention")] == [(2, 512), (2, 1)]
    (decode,) = rows_of(found, "decode_attention")
    assert (decode["sequences"], decode["mean_context_tokens"], decode["us"]) == (4, 1024, 50.0)


def test_messages_count_elements_and_the_fastest_kernel_stands(tmp_path: Path) -> None:
    nccl: list[dict[str, Cell]] = [
        {
            "op_name": op,
            "kernel_source": "NCCL",
            "nccl_dtype": dtype,
            "num_gpus": 8,
            "message_size": size,
            "latency_ms": ms,
        }
        for op, dtype, size, ms in (
            ("all_reduce", "half", 4096, 0.016),
            ("all_reduce", "int8", 8192, 0.016),
            ("all_gather", "half", 4096, 0.015),
            ("alltoall", "half", 4096, 0.015),
        )
    ]
    custom: dict[str, Cell] = {"op_name": "all_reduce", "kernel_source": "custom", "allreduce_dtype": "bfloat16"}
    own: list[dict[str, Cell]] = [
        {**custom, "num_gpus": 8, "message_size": 4096, "latency_ms": ms, "backend": backend}
        for backend, ms in (("vllm_graph", 0.005), ("vllm_eager", 0.004))
    ]
    files = [write_csv(tmp_path / "nccl.csv", nccl), write_csv(tmp_path / "custom.csv", own)]
    found = import_profile(files, "h100")
    assert {(row["op"], row["bytes"], row["us"]) for row in rows_of(found, "all_reduce")} == {
        ("all_reduce", 8192, 5.0),
        ("all_gather", 8192, 15.0),
    }
    assert sum(one.rows for one in found.left_out) == 4


def test_vidur_rows_say_their_split_and_their_layers(tmp_path: Path) -> None:
    found = import_profile([vidur_folder(tmp_path / "vidur")], "h100")
    gemms = rows_of(found, "gemm")
    shapes = {(row["k"], row["n"]) for row in gemms}
    assert shapes == {
        (4096, 12288),
        (4096, 4096),
        (4096, 22016),
        (11008, 4096),
        (4096, 6144),
        (2048, 4096),
        (4096, 11008),
        (5504, 4096),
    }
    assert all(row["us"] == pytest.approx(gemm_us(*(int(row[key]) for key in ("tokens", "k", "n")))) for row in gemms)
    assert {row["dtype"] for row in gemms} == {"fp16"}
    assert [(row["past_tokens"], row["new_tokens"]) for row in rows_of(found, "prefill_attention")] == [
        (0, 128),
        (256, 128),
    ]
    (decode,) = rows_of(found, "decode_attention")
    assert (decode["sequences"], decode["mean_context_tokens"]) == (4, 256)
    assert [(row["gpus"], row["bytes"], row["us"]) for row in rows_of(found, "all_reduce")] == [(2, 8192, 20.0)]
    assert left_out(found)["all_reduce", "over several machines"] == 1


def test_splitwise_steps_are_medians_without_the_impossible(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "perf_model.csv", splitwise_rows())
    found = import_profile([path], "a100-80")
    prompt, token = rows_of(found, "steps")
    assert (prompt["prefills"], prompt["decodes"], prompt["device_us"]) == ("512+0", 0, 197_000.0)
    assert (token["prefills"], token["decodes"], token["decode_context_tokens"]) == ("-", 1, 576)
    assert token["device_us"] == pytest.approx(54_100.0)
    assert sum(one.rows for one in found.left_out) == 6


def test_splitwise_asks_which_of_several_gpu_counts(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "perf_model.csv", [*splitwise_rows(2), *splitwise_rows(4)])
    with pytest.raises(InputError, match="measured on 2, 4 GPUs; say which with --tp"):
        import_profile([path], "a100-80")
    with pytest.raises(InputError, match=r"--tp 8: .* has 2, 4"):
        import_profile([path], "a100-80", tp=8)
    assert import_profile([path], "a100-80", tp=4).profile.meta.software["tp"] == "4"


@pytest.mark.parametrize(("unit", "per_us"), [("us", 1.0), ("ms", 1e-3), ("s", 1e-6)])
def test_a_plain_table_may_be_in_any_unit_that_its_header_says(tmp_path: Path, unit: str, per_us: float) -> None:
    rows: list[dict[str, Cell]] = [
        {"tokens": m, "k": 4096, "n": 4096, unit: gemm_us(m, 4096, 4096) * per_us} for m in (1, 8, 64, 512, 4096)
    ]
    found = import_profile([write_csv(tmp_path / "mine.csv", rows)], "h100", dtype="bf16")
    assert [row["us"] for row in rows_of(found, "gemm")] == [
        pytest.approx(gemm_us(m, 4096, 4096)) for m in (1, 8, 64, 512, 4096)
    ]


def test_a_profiles_own_tables_are_plain_files(tmp_path: Path) -> None:
    first = import_profile([op_profile(tmp_path / "op")], "h100").profile
    profile.write(first, tmp_path / "profile")
    again = import_profile([tmp_path / "profile"], "h100", format_name="plain").profile
    assert {name: table.csv() for name, table in again.tables.items()} == {
        name: table.csv() for name, table in first.tables.items()
    }


def test_every_format_is_recognised_by_its_own_files_only(tmp_path: Path) -> None:
    made = {
        "llmservingsim": op_profile(tmp_path / "op"),
        "vidur": vidur_folder(tmp_path / "vidur"),
        "aiconfigurator": write_csv(tmp_path / "gemm_perf.csv", aic_gemms()),
        "splitwise": write_csv(tmp_path / "perf_model.csv", splitwise_rows()),
        "plain": write_csv(tmp_path / "mine.csv", [{"vocab": 10, "rows": 1, "us": 9.0}]),
    }
    assert sorted(made) == formats.names()
    for name, path in made.items():
        for sheet in open_sheets([path]):
            assert [one for one in formats.names() if formats.load(one).table_of(sheet)] == [name], sheet.path


def test_only_top_level_scalars_are_read_of_yaml(tmp_path: Path) -> None:
    path = tmp_path / "meta.yaml"
    path.write_text("a: 1\n# c: 2\nlist: [1, 2]\nblock:\n  inner: 3\nquoted: 'x y'\n")
    assert scalars(path) == {"a": "1", "quoted": "x y"}
