"""How a scenario's KV is accounted where layers are not alike, what a run says of it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_kit import sim

from sim import api
from sim.api import Result
from sim.catalog import load_gpu, load_model
from sim.cost.capacity import DRIVER_BYTES, memory_plan
from sim.load import MIXED
from sim.scenario import build
from sim.serving.assemble import Parts, assemble
from sim.specs.parallel import Parallel
from traces.schema import InputError

ROWS = "arrival_s,prompt_tokens,output_tokens\n" + "0,3000,12\n" * 6


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "long.csv"
    path.write_text(ROWS)
    return str(path)


def parts(**settings: Any) -> Parts:
    return assemble(build({}, settings))


def notes(result: Result) -> str:
    return " ".join(result.summary["inputs"]["notes"])


@pytest.mark.parametrize("allocator", ["paged", "prefix"])
def test_windowed_layers_hold_their_window_under_the_default_allocators(trace: str, allocator: str) -> None:
    """gemma-3-27b, 10 full layers and 52 of a window of 1,024: six requests of 30,060 tokens in a pool of four's.

    Four hold 4 x 1,879 blocks of 62 layers, which are 46,599 of 10. One takes at most 1,879 of the full group and in
    six others those of 1,024 + 8,192 tokens: 5,341.
    """
    Path(trace).write_text(ROWS.replace("3000,12", "30000,60"))
    few = {"model": "gemma-3-27b", "kv_blocks": 4 * 1879, "allocator": allocator}
    alike = api.run(trace=trace, **{**few, "allocator": "contiguous-oracle"})
    by_kind = api.run(trace=trace, **few)
    assert alike.steps["running"].max() == 4
    assert by_kind.steps["running"].max() == 6
    assert "1 of all tokens and 6 of a window of 1,024 tokens" in notes(by_kind)
    assert "counted as if it kept every token" in notes(alike)


def test_a_state_is_taken_for_who_runs_and_not_for_every_seat(trace: str) -> None:
    settings = {"engine.preset": "foretoken", "model": "qwen3-next-80b-a3b", "gpu": "h200", "tp": 2}
    alike, by_kind = (parts(**settings, **{"allocator.name": name}) for name in ("contiguous-oracle", "paged"))
    state_bytes = by_kind.model.gpu_state_bytes(Parallel(2))
    freed = (by_kind.memory.blocks - alike.memory.blocks) * by_kind.memory.block_bytes
    assert freed == pytest.approx(256 * state_bytes, abs=by_kind.memory.block_bytes)
    assert by_kind.layout.state_blocks == -(-state_bytes // by_kind.pool.block_bytes)
    run = api.run(trace=trace, **settings)
    # In the largest step six states beside the KV of what was computed.
    assert run.steps["kv_used_tokens"].max() >= 6 * 16 * by_kind.layout.state_blocks
    assert run.steps["kv_used_tokens"].iloc[-1] <= 6 * (3012 + 16 * by_kind.layout.state_blocks)
    assert "blocks for the state of a running sequence" in notes(run)


@pytest.mark.parametrize(
    ("settings", "by_kind"),
    [
        ({"model": "gemma-2-9b"}, True),
        ({"model": "mistral-7b-v0.1", "allocator.name": "prefix"}, True),
        ({"model": "llama-3.1-8b"}, False),
        ({"model": "deepseek-v3.2", "gpu": "b200", "tp": 8}, False),
        ({"model": "gemma-2-9b", "allocator.name": "windowed"}, False),
        ({"model": "gemma-2-9b", "allocator.name": "contiguous-oracle"}, False),
        ({"model": "gemma-2-9b", "offload.kv_layers": 4}, False),
        ({"model": "gemma-2-9b", "executor": "live"}, False),
    ],
)
def test_which_allocators_keep_layers_by_kind(settings: dict[str, Any], by_kind: bool) -> None:
    found = parts(**settings)
    assert (found.allocators == MIXED) == by_kind == bool(found.memory.layers)


def test_swapping_of_such_layers_is_refused(trace: str) -> None:
    with pytest.raises(InputError, match=r"swap_gib and the paged allocator exclude one another: layers that do not"):
        api.run(trace=trace, model="gemma-2-9b", **{"kv.swap_gib": 1.0})


def test_a_state_that_no_room_is_left_for_is_refused() -> None:
    """Ten blocks would fit, and the state of one sequence fills a hundred."""
    model, gpu = load_model("qwen3-next-80b-a3b"), load_gpu("h200")
    plan = memory_plan(model, gpu, parallel=Parallel(2), pools_states=True)
    bytes_of_ten = plan.needed_bytes + 10 * plan.block_bytes + plan.block_bytes // 2
    assert plan.pooled_state_bytes > 90 * plan.block_bytes
    share = bytes_of_ten / (gpu.memory_bytes - DRIVER_BYTES)
    with pytest.raises(InputError, match=r"weights, activations, a sequence's state and a block need .* GiB"):
        parts(model=model.name, gpu=gpu.name, tp=2, **{"kv.gpu_memory_utilization": share})


def test_prefix_on_a_trace_that_tells_no_prefixes_says_so(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(sim(capsys, "run", "--trace", trace, "--allocator", "prefix")[1].split())
    assert "No request can hit what another has cached: the trace tells no prefixes" in text
    assert "No request can hit" not in notes(api.run(trace=trace, allocator="paged"))


def test_prefix_beside_a_state_says_that_nothing_is_found(trace: str) -> None:
    run = api.run(trace=trace, model="qwen3-next-80b-a3b", gpu="h200", tp=2, allocator="prefix")
    assert "No prefix can be found: layers of qwen3-next-80b-a3b keep a state" in notes(run)


def test_models_that_keep_every_token_say_nothing(trace: str) -> None:
    assert notes(api.run(trace=trace, model="llama-3.1-8b", **{"engine.preset": "foretoken"})) == ""


@pytest.mark.shared
def test_the_case_of_long_prompts_on_gemma_3(shared: Path) -> None:
    """Its windowed layers hold their window: two such requests fit on one H100, where one did."""
    for allocator in ("paged", "prefix"):
        run = api.run(trace=str(shared / "cases/files/gemma_long.csv"), model="gemma-3-27b", allocator=allocator)
        assert run.steps["running"].max() > 1
        assert "6 of a window of 1,024 tokens" in notes(run)


@pytest.mark.shared
def test_the_case_of_a_trace_without_prefixes(shared: Path) -> None:
    run = api.run(trace=str(shared / "cases/files/azure_2024.csv"), allocator="prefix")
    assert run.summary["kv"]["prefix_hit_rate"] == 0
    assert "tells no prefixes" in notes(run)
