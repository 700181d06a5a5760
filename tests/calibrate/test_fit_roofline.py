"""`calibrate fit-roofline`: constants from tables, what it leaves out, what it refuses; tables of experts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from calibrate import forms
from calibrate.cli import cli
from calibrate.importers.build import import_profile
from calibrate.roofline import fit_roofline
from sim.catalog import load_gpu, load_model
from sim.cost import fits
from sim.cost.efficiency import Efficiency
from sim.cost.experts import Routing
from sim.cost.kernels import Kernels, guide_of
from sim.cost.profiled import Profiled
from sim.cost.roofline import Roofline
from sim.cost.schema import TABLES
from sim.cost.tables import Table, Value
from sim.engine.batch import Shape
from traces.schema import InputError

H100 = load_gpu("h100")
TRUTH = Efficiency.of(H100, {"decode_attention_memory": 0.7, "decode_program_s": 5e-6})
MOE = "moe_dtype,num_tokens,hidden_size,inter_size,topk,num_experts,moe_tp_size,moe_ep_size,distribution,latency_ms\n"


def decode_table(path: Path, scale: float = 1.0, slow: float = 1.0) -> Path:
    """A table that follows the form; one row of it is `slow` times too slow."""
    rows = ["batch_size,isl,step,num_heads,num_key_value_heads,head_dim,latency_ms"]
    launch = Kernels(H100, TRUTH, "bf16", "bf16").decode_attention(32, 8, 128)
    for batch in (1, 4, 16, 64, 256):
        for step in (127, 511, 2047, 8191, 32767):
            ms = (
                1e3 * scale * launch.seconds(batch, batch * (step + 1)) * (slow if (batch, step) == (16, 2047) else 1.0)
            )
            rows.append(f"{batch},1,{step},32,8,128,{ms:.8f}")
    path.write_text("\n".join(rows) + "\n")
    return path


def test_constants_come_back_and_the_file_prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "STEPS", 250)
    made = fit_roofline([decode_table(tmp_path / "generation_bf16.csv", slow=5.0)], "h100", "2026-11-30")
    assert np.abs(made.errors["decode_attention"]).mean() < 0.03
    assert len(made.errors["decode_attention"]) == 24
    assert any("a row left out, " in line and "times slower than its neighbours" in line for line in made.left_out)
    path = tmp_path / "mine.toml"
    path.write_text(made.text)
    efficiency = Efficiency.of(H100, fit=str(path))
    assert efficiency.decode_attention_memory == pytest.approx(0.7, rel=0.1)
    assert efficiency.is_fitted("decode_attention")
    assert not efficiency.is_fitted("gemm")
    cost = Roofline(load_model("llama-3.1-8b"), H100, efficiency=efficiency)
    assert cost.explain(Shape(decodes=2, decode_context=900))["decode attention"].source == "fitted"


TYPES: dict[str, Value] = {"dtype": "bf16", "kv_dtype": "bf16", "window": 0, "width": 1}
HEADS: dict[str, Value] = {**TYPES, "heads": 32, "kv_heads": 8}
SPARSE: dict[str, Value] = {"hidden": 2048, "ffn": 768, "experts": 128, "experts_per_token": 8, "routing": "told"}
ROWS: dict[str, list[dict[str, Value]]] = {
    "gemm": [{"k": 4096, "n": n, "tokens": tokens} for n in (6144, 512) for tokens in (1, 48, 300, 4096)],
    "prefill_attention": [
        {**HEADS, "sequences": some, "past_tokens": past, "new_tokens": new}
        for some, past, new in ((1, 0, 16), (4, 0, 700), (1, 3000, 128), (2, 64, 2048))
    ],
    "decode_attention": [
        {**HEADS, "sequences": some, "mean_context_tokens": context, "max_context_tokens": context}
        for some, context in ((1, 100), (1, 9000), (33, 700), (256, 4000))
    ],
    "experts": [
        {**SPARSE, "tokens": tokens, "touched": touched} for tokens, touched in ((1, 8), (60, 120), (4096, 128))
    ],
}


@pytest.mark.parametrize("operation", forms.TABLE_OF)
def test_what_is_fitted_is_what_the_simulator_prices(operation: str) -> None:
    """Every form over all rows at once, with nothing in L2, beside the price of one row at a time."""
    kind, _, suffix = operation.partition("_fp8" if operation.endswith("_fp8") else "_64")
    weight = "fp8" if operation.endswith("_fp8") else "bf16"
    dim = {"head_dim": 64 if operation.endswith("_64") else 128} if "attention" in kind else {"weight_dtype": weight}
    table = forms.TABLE_OF[operation]
    rows = [{"dtype": "bf16", **row, **dim, "us": 7.0} for row in ROWS[kind]]
    seconds, measured = forms._PRICES[operation](rows, H100)
    assert (measured, suffix) == (pytest.approx([7e-6] * len(rows)), "")
    axes = TABLES[table].axes
    for efficiency in (TRUTH, TRUTH.changed({"gemm_exposed": 0.9, "expert_exposed": 0.9, "decode_exposed": 0.9}, "x")):
        one = [guide_of(table, row, H100, efficiency)(tuple(float(row[axis.name]) for axis in axes)) for row in rows]
        # A fit counts no scales of 8-bit matrices.
        assert seconds(efficiency, 0.0, 1.0) == pytest.approx(one, rel=2e-4 if operation == "gemm_fp8" else 1e-9)
    # What stays in L2 is read faster, and nothing takes longer for it.
    kept = seconds(TRUTH, 30e6, 4.0)
    assert (kept <= seconds(TRUTH, 0.0, 1.0) * (1 + 1e-9)).all()


def test_tables_in_another_unit_or_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"faster than the chip can be.*times were read as ms: is that their unit"):
        fit_roofline([decode_table(tmp_path / "generation_bf16.csv", scale=1e-3)], "h100", "2026-11-30")
    only = tmp_path / "one_bf16.csv"
    only.write_text("op_name,nccl_dtype,num_gpus,message_size,latency_ms\nall_gather,half,2,4096,0.01\n")
    with pytest.raises(InputError, match="no table of GEMMs, attention, experts or collectives"):
        fit_roofline([only], "h100", "2026-11-30")


def test_the_shipped_files_are_true_of_themselves() -> None:
    for name in fits.names():
        fit = fits.load(fits.FOLDER / f"{name}.toml")
        assert fit.gpu == name
        assert {"gemm", "prefill_attention", "decode_attention", "experts", "all_reduce"} <= fit.names
        assert set(fit.curves) == {2, 4, 8}
        assert all(operation.mean_error < 0.25 for operation in fit.operations)


class TestExpertTables:
    def test_aiconfigurator(self, tmp_path: Path) -> None:
        path = tmp_path / "moe.csv"
        path.write_text(
            MOE
            + "bfloat16,16,2048,768,8,128,1,1,balanced,0.42\nbfloat16,16,2048,768,8,128,1,1,power_law_1.2,0.21\n"
            + "bfloat16,16,2048,768,8,128,1,2,balanced,0.23\nnvfp4,16,2048,768,8,128,1,1,balanced,0.2\n"
            + "bfloat16,16,2048,768,8,128,1,1,zipf,0.2\n"
        )
        found = import_profile([path], "h100")
        table = found.profile.tables["expert_layer"]
        assert [(row["routing"], row["touched"], row["us"]) for row in table.rows()] == [
            ("balanced", 128, pytest.approx(420.0)),
            ("power-law:1.2", round(Routing("power-law:1.2").load(16, 128, 8).touched), pytest.approx(210.0)),
        ]
        said = " ".join(map(str, found.left_out))
        for reason in ("moe_ep_size", "moe_dtype nvfp4", "distribution zipf"):
            assert reason in said

    def test_llmservingsim_and_its_price(self, tmp_path: Path) -> None:
        """A profile of experts alone prices them as a whole: nothing is added for what stands between."""
        path = tmp_path / "moe.csv"
        path.write_text("tokens,activated_experts,time_us\n64,128,828\n512,128,900\n64,200,900\n1,4,50\n")
        found = import_profile([path], "h100", model="qwen3-30b-a3b")
        assert len(found.profile.tables["expert_layer"]) == 2
        assert "a token visits 8 of 128 of qwen3-30b-a3b" in " ".join(map(str, found.left_out))
        cost = Profiled(load_model("qwen3-30b-a3b"), H100, found.profile, routing=Routing("balanced"))
        terms = cost.explain(Shape(decodes=64, decode_context=6400))
        assert terms["expert up"].seconds == pytest.approx(48 * 828e-6)
        assert terms["expert up"].source == "measured"
        assert not {"expert down", "expert activation", "expert combine"} & set(terms)
        with pytest.raises(InputError, match=r"a table of experts, and model .llama-3\.1-8b. has no layers"):
            import_profile([path], "h100", model="llama-3.1-8b")


# ---- the command -----------------------------------------------------------------------------------------------------


def command(*words: object) -> Result:
    return CliRunner().invoke(cli, ["fit-roofline", *map(str, words), "--gpu", "h100"])


def refused(*words: object) -> str:
    done = command(*words)
    assert isinstance(done.exception, InputError), done.output
    return str(done.exception)


def test_constants_are_fitted_written_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "STEPS", 40)
    table, out = decode_table(tmp_path / "generation_bf16.csv", slow=5.0), tmp_path / "mine.toml"
    done = command(table, "--out", out)
    assert done.exception is None, done.output
    fitted, left_out = done.stdout.splitlines()
    assert fitted.split()[:3] == ["decode_attention", "24", "rows,"]
    assert "a row left out, " in left_out
    assert done.stderr == f"wrote {out}; use it with sim run --set cost.fit={out}\n"
    assert Efficiency.of(H100, fit=str(out)).is_fitted("decode_attention")
    assert "is there already; give another --out" in refused(table, "--out", out)
    assert "must end in .toml" in refused(table, "--out", tmp_path / "mine")
    again = command(table, "--out", out, "--replace", "--json")
    told = json.loads(again.stdout)
    assert told["errors"]["decode_attention"]["rows"] == 24
    assert told["left_out"] == [left_out]


def test_rows_of_other_types_and_uneven_batches_are_no_part_of_a_fit() -> None:
    heads: dict[str, Value] = {**HEADS, "head_dim": 128, "sequences": 2, "mean_context_tokens": 100, "us": 9.0}
    rows = [heads | {"max_context_tokens": 100}, heads | {"max_context_tokens": 150}]
    rows.append(rows[0] | {"dtype": "fp32", "kv_dtype": "fp32"})
    found = forms._rows({"decode_attention": Table.of("decode_attention", rows)}, "decode_attention")
    assert [(row["dtype"], row["max_context_tokens"]) for row in found] == [("bf16", 100)]


def test_heads_of_64_are_told_by_the_constants_of_128(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No constants are fitted to them: half the bytes in the same time is slower than is foretold."""
    monkeypatch.setattr(forms, "STEPS", 40)
    table, narrow = decode_table(tmp_path / "generation_bf16.csv"), tmp_path / "narrow_bf16.csv"
    lines = table.read_text().splitlines()
    narrow.write_text("\n".join([lines[0], *(line.replace(",128,", ",64,", 1) for line in lines[1:])]) + "\n")
    out = tmp_path / "mine.toml"
    told = json.loads(command(table, narrow, "--out", out, "--json").stdout)["errors"]
    assert told["decode_attention_64"]["rows"] == told["decode_attention"]["rows"] == 25
    assert told["decode_attention_64"]["bias"] < told["decode_attention"]["bias"] - 0.1


def test_mixture_tables_go_into_constants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "STEPS", 10)
    rows = [
        f"bfloat16,{tokens},2048,768,8,128,1,1,balanced,{0.42 + tokens / 8e3:.6f}" for tokens in (16, 64, 256, 4096)
    ]
    (tmp_path / "moe.csv").write_text(MOE + "\n".join(rows) + "\n")
    done = command(tmp_path / "moe.csv", "--out", tmp_path / "mine.toml", "--json")
    assert done.exception is None, done.output
    assert json.loads(done.stdout)["errors"]["experts"]["rows"] == 4
