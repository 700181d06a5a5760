"""Each reason for which a row of others' tables is left out, a file refused, or a column filled in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from importer_kit import H100, Cell, aic_gemms, left_out, op_profile, rows_of, splitwise_rows, vidur_folder, write_csv

from calibrate.importers.build import import_profile
from calibrate.importers.cli import _MOST_SUSPECTS, import_command
from traces.schema import InputError

GEMM = aic_gemms()[0]
ATTENDED: dict[str, Cell] = {
    "attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16", "batch_size": 1, "isl": 1, "step": 127, "num_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "beam_width": 1, "latency": 0.05,
}  # fmt: skip
EXPERTS: dict[str, Cell] = {
    "moe_dtype": "bfloat16", "num_tokens": 8, "hidden_size": 2048, "inter_size": 768, "topk": 8, "num_experts": 128,
    "moe_tp_size": 1, "moe_ep_size": 1, "distribution": "balanced", "latency": 0.5,
}  # fmt: skip
PLAIN: dict[str, Cell] = {"dtype": "bf16", "weight_dtype": "bf16", "k": 4096, "n": 4096, "tokens": 16, "us": 20.0}
NORM: dict[str, Cell] = {"op": "norm", "dtype": "bf16", "kv_dtype": "none", "width": 4096, "tokens": 1, "us": 3.0}
ROWS: Mapping[str, tuple[dict[str, Cell], str]] = {
    "a size that is a word": (GEMM | {"k": "wide"}, "k is not a number"),
    "a size that is broken": (GEMM | {"k": 0.5}, "k is not a whole number of at least 1"),
    "no time": (GEMM | {"latency": ""}, "latency is empty"),
    "a time that is a word": (GEMM | {"latency": "long"}, "latency is not a number"),
    "beams": (ATTENDED | {"beam_width": 4}, "beam_width is not 1"),
    "an inner size that nobody can share": (EXPERTS | {"moe_tp_size": 5}, "inter_size is no multiple of moe_tp_size"),
    "more experts a token than there are": (EXPERTS | {"topk": 129}, "topk is above num_experts"),
    "an operation of no name": (NORM | {"op": ""}, "op is empty"),
    "an operation that no step has": (NORM | {"op": "dance"}, "op is none of "),
}


@pytest.mark.parametrize("what", ROWS)
def test_a_row_that_cannot_be_used_says_why(tmp_path: Path, what: str) -> None:
    row, reason = ROWS[what]
    with pytest.raises(InputError, match=f"nothing to import: .*{reason}") as refusal:
        import_profile([write_csv(tmp_path / "table.csv", [row])], "h100")
    assert "\n" not in str(refusal.value)


def _with(text: str, cell: str, other: str) -> str:
    """A CSV with one cell of its first row, found by its column, changed; a column "" is taken away."""
    header, first, *rest = text.splitlines()
    cells = dict(zip(header.split(","), first.split(","), strict=True)) | {cell: other}
    return "\n".join([header, ",".join(cells.values()), *rest]) + "\n"


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("all_reduce.csv", lambda text: _with(text, "collective", "broadcast"), "broadcast is no collective"),
        ("mlp.csv", lambda text: _with(text, "use_gated_mlp", "maybe"), "use_gated_mlp is neither True nor False"),
        ("mlp.csv", lambda text: text.replace("mlp_up_proj", "mlp_other"), "no column time_stats.mlp_up_proj.median"),
    ],
)
def test_what_vidur_may_lack(tmp_path: Path, file: str, change: Callable[[str], str], reason: str) -> None:
    folder = vidur_folder(tmp_path / "vidur")
    path = folder / file
    path.write_text(change(path.read_text()))
    assert any(reason in why for _, why in left_out(import_profile([folder], "a100-80gb")))


def test_layers_without_a_table_and_launches_of_nothing_are_left_out(tmp_path: Path) -> None:
    folder = op_profile(tmp_path / "op")
    for file, line in (("dense.csv", "router,16,3.0"), ("attention.csv", "0,0,0,0,2.0")):
        with (folder / file).open("a") as out:
            out.write(line + "\r\n")
    lost = left_out(import_profile([folder], "h100"))
    assert lost["dense.csv", "layer 'router' has no table in a profile"] == 1
    assert lost["mixed_attention", "computes nothing"] == 1


def test_gpus_that_no_number_says_are_left_out(tmp_path: Path) -> None:
    rows = splitwise_rows()
    rows[0]["tensor_parallel"] = "some"
    found = import_profile([write_csv(tmp_path / "splitwise.csv", rows)], "a100-80gb")
    assert left_out(found)["steps", "tensor_parallel is not a number"] == 1


def test_a_plain_table_is_filled_in_and_says_so(tmp_path: Path) -> None:
    """Empty lines are no rows; the longest context is the mean where no column tells it."""
    decode: dict[str, Cell] = {"heads": 32, "kv_heads": 8, "head_dim": 128, "sequences": 4}
    path = write_csv(tmp_path / "mine.csv", [decode | {"mean_context_tokens": n, "us": n / 50} for n in (512, 1024)])
    path.write_text(path.read_text().replace("\n", "\n\n"))
    found = import_profile([path], "h100", dtype="bf16")
    rows = rows_of(found, "decode_attention")
    assert [row["max_context_tokens"] for row in rows] == [row["mean_context_tokens"] for row in rows] == [512, 1024]
    assert {(row["dtype"], row["kv_dtype"], row["window"], row["width"]) for row in rows} == {("bf16", "bf16", 0, 1)}
    assert "mine.csv has no column window; taken as 0." in found.profile.meta.notes


def test_no_launch_is_too_slow(tmp_path: Path) -> None:
    """What a host takes has no bound by the chip's data sheet."""
    row: dict[str, Cell] = {"parts": "decode", "graph": 0, "layers": 32, "rows": 1, "prefill_tokens": 0, "us": 1e6}
    assert len(rows_of(import_profile([write_csv(tmp_path / "launch.csv", [row])], "h100"), "launch")) == 1


WITHOUT_TYPE = {key: value for key, value in PLAIN.items() if key not in ("dtype", "weight_dtype")}
FILES: Mapping[str, tuple[bytes, dict[str, Any], str]] = {
    "no type in a plain table": (b"k,n,tokens,us\n8,8,1,9\n", {}, "no column 'dtype'; add it, or say the type with"),
    "a type that is none": (b"k,n,tokens,us\n8,8,1,9\n", {"dtype": "nf9"}, "--dtype 'nf9' is none of "),
    "a quote in a cell": (b'm,n,k,latency\n"1"2,3,4,5\n', {"dtype": "bf16"}, r"table.csv:2: not valid CSV \("),
    "neither text nor Parquet": (b"m,n\0k,latency\n", {}, "neither text .CSV. nor Parquet"),
    "no UTF-8": (b"m,n,k,latency\n1,\xff,3,4\n", {"dtype": "bf16"}, r"table.csv: not valid UTF-8 \(byte 17\)"),
    "two formats at once": (
        b"m,n,k,latency,layer,tokens,time_us\n", {}, "could be aiconfigurator or llmservingsim by its columns; name it"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path: Path, what: str) -> None:
    content, options, sentence = FILES[what]
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(InputError, match=sentence) as refusal:
        import_profile([tmp_path / "table.csv"], "h100", **options)
    assert "\n" not in str(refusal.value)


def test_a_folder_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    mixed, folder = tmp_path / "mixed", op_profile(tmp_path / "op")
    for name in ("a.csv", "b.csv"):
        write_csv(mixed / name, [GEMM])
    with pytest.raises(InputError, match="none of its 2 tables is one of vidur by its columns"):
        import_profile([mixed], "h100", format_name="vidur")
    with pytest.raises(InputError, match=r"a second dense table; .*op/dense.csv is one: import one GPU count"):
        import_profile([folder, write_csv(tmp_path / "tp2" / "dense.csv", [{"layer": "o", "tokens": 1, "time_us": 1}])],
                       "h100")  # fmt: skip
    with pytest.raises(InputError, match="--dtype 'nf9' is none of "):
        import_profile([vidur_folder(tmp_path / "vidur")], "a100-80gb", dtype="nf9")
    meta = folder / "meta.yaml"
    meta.write_text(meta.read_text().replace("variant: bf16", "variant: nf9"))
    with pytest.raises(InputError, match=r"meta.yaml: variant 'nf9' is none of .*; say --dtype"):
        import_profile([folder], "h100")


def test_the_command_lists_what_it_left_out_and_the_first_suspects(tmp_path: Path) -> None:
    """Twelve shapes of nine sizes, in each of which one row is thrice its neighbours."""
    rows = [row | {"n": 1024 * shape} for shape in range(1, 13) for row in aic_gemms()]
    for number, row in enumerate(rows):
        moved = 2.0 * (int(row["m"]) * (8192 + int(row["n"])) + 8192 * int(row["n"]))
        flops = 2.0 * int(row["m"]) * 8192 * int(row["n"])
        us = 4.0 + 2e6 * max(moved / H100.memory_bytes_per_s, flops / H100.bf16_flops_per_s)
        row["latency"] = us / 1e3 * (3.0 if number % 9 == 4 else 1.0)
    rows[0]["latency"] = "nan"
    path, out = write_csv(tmp_path / "gemm_perf.csv", rows), tmp_path / "made"
    done = CliRunner().invoke(import_command, [str(path), "--gpu", "h100", "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    lines = done.stderr.splitlines()
    assert sum("1 rows left out, latency is not positive and finite" in line for line in lines) == 1
    assert sum(line.startswith("suspect ") for line in lines) == _MOST_SUSPECTS
    (more,) = [line for line in lines if line.endswith(f"more rows are suspect: calibrate check {out}")]
    assert int(more.split()[0]) >= 12 - _MOST_SUSPECTS
