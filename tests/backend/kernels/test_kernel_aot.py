"""Kernels compiled ahead of time for GPUs that are not here: no spills, memory that suffices, wgmma where it must be.

By default a few forms of each attention kernel; FORETOKEN_ALL_VARIANTS=1 compiles all 613 that ship and tells each on
stderr, in about 20 minutes of one core (2.1 CPU seconds each), once: Triton caches what it compiled (TRITON_CACHE_DIR
says where), so that a run that was cut short goes on where it was. The numbers of the few hold in triton 3.6 as well,
which images of GPU machines carry: `.ci/more` runs this file with it. `python -m tests.benchmarks.machine_code` prints
the numbers.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from dataclasses import asdict, replace
from typing import Any

import pytest

pytest.importorskip("triton")

from backend.kernels import aot, decode_attention, prefill_attention, standard_attention
from backend.kernels._common import KernelVariant
from backend.kernels._form import Form, forms
from backend.kernels.aot import SHARED_LIMIT_BYTES, Built, build, read_code, table

ALL = os.environ.get("FORETOKEN_ALL_VARIANTS") == "1"
CAPABILITIES = (80, 90, 100)
LLAMA = Form(q="bf16", cache="bf16", kv_heads=8, group=4, head_dim=128, block_tokens=16)
"""Of Llama-3.1-8B; with blocks of 128 the copy engine fetches whole tiles."""
LARGE_BLOCKS = replace(LLAMA, block_tokens=128)
FULL = replace(LLAMA, windowed=True, capped=True)
FP8 = replace(LLAMA, cache="fp8e4nv")
INT8 = replace(LLAMA, cache="i8")
FP8_PREFILL = prefill_attention.variant(FP8, 80)
FP8_DECODE = decode_attention.variant(FP8)


PLAN = next(v for v in decode_attention.variants() if v.name == "plan 64")
BROKEN = replace(PLAN, name="broken", constexprs={**PLAN.constexprs, "BLOCK_S": 3})
DEADLY = replace(PLAN, name="deadly", kernel="deadly_kernel:any")


def few(capability: int) -> list[KernelVariant]:
    """What the default suite compiles for a compute capability."""
    prefills = [LARGE_BLOCKS]
    decodes = [(LLAMA, 1)]
    if capability == 90:
        prefills += [LLAMA, FULL, FP8, replace(LARGE_BLOCKS, head_dim=256)]
        decodes += [(FP8, 1), (INT8, 1), (replace(FULL, cache="i8"), 8)]
    return [
        *(prefill_attention.variant(form, capability) for form in prefills),
        *(decode_attention.variant(form, queries) for form, queries in decodes),
    ]


def every(capability: int) -> list[KernelVariant]:
    """All that ships."""
    return [*prefill_attention.variants(capability), *decode_attention.variants(), *standard_attention.variants()]


def jobs() -> list[tuple[KernelVariant, int]]:
    """What is compiled of what ships: the common forms first, then the rest for Hopper, for Blackwell, for Ampere."""
    common = [(variant, sm) for sm in CAPABILITIES for variant in few(sm)]
    rest = [(variant, sm) for sm in (90, 100, 80) for variant in every(sm)] if ALL else []
    return common + [job for job in rest if job not in common]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> list[Built]:
    """All that this file compiles, in one go: starting the subprocess costs more than most variants."""
    folder = tmp_path_factory.mktemp("deadly")
    (folder / "deadly_kernel.py").write_text("import os\nprint('not a result', flush=True)\nos.abort()\n")
    asked = [*jobs(), (FP8_PREFILL, 80), (BROKEN, 90), (DEADLY, 90), (PLAN, 90)]
    capture: Any = pytestconfig.pluginmanager.getplugin("capturemanager")
    made, before_s = 0, time.monotonic()

    def tell(one: Built) -> None:
        nonlocal made, before_s
        now_s, made = time.monotonic(), made + 1
        line = f"{made}/{len(asked)} {now_s - before_s:.1f} s {table([one]).splitlines()[1]}\n"
        before_s = now_s
        with capture.global_and_fixture_disabled():
            sys.stderr.write(line)

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        return build(asked, tell if ALL else lambda _: None)


@pytest.fixture
def built(results: list[Built]) -> dict[int, dict[str, Built]]:
    """What ships, by compute capability and name."""
    return {sm: {one.name: one for one in results[:-4] if one.capability == sm} for sm in CAPABILITIES}


SET_ASIDE = {
    (90, "decode 32x64 q8 d128 bf16/bf16 block 16"): 2,
    (90, "decode 32x64 q8 d128 fp16/fp16 block 16"): 2,
    (90, "decode 16x64 q4 d128 bf16/bf16 block 128 windowed capped"): 2,
    (80, "prefill 64x64 d64 bf16/bf16 block 128"): 6,
    (80, "prefill 64x64 d64 bf16/i8 block 128 windowed capped"): 9,
    (80, "decode 32x128 q8 d64 bf16/bf16 block 128"): 2,
    (80, "prefill 64x64 d128 bf16/bf16 block 16 windowed capped"): 6,
    (80, "prefill 64x32 d64 fp32/fp32 block 16"): 11,
    (80, "standard value d128"): 12,
}
"""Loads and stores of what triton 3.9 sets aside, most at 128 or 168 registers of the 255 there are. None was timed;
fp32 is for checking and not for speed, as the attention that stores its matrix is for comparing."""


def spills_allowed(capability: int, name: str) -> int:
    """None but of the tile that was fastest on an H200, most of whose spills lie in the loop of masked tiles, and of
    `SET_ASIDE`."""
    fastest = name.startswith("prefill 128x64") and any(kind in name for kind in ("d128 bf16/bf16", "d128 fp16/fp16"))
    if fastest and not name.endswith("capped"):
        return 160
    return SET_ASIDE.get((capability, name), 0)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_form_compiles_without_spills_into_the_memory_there_is(results: list[Built], capability: int) -> None:
    """Of all: tiles that differ in warps alone share a name."""
    mine = [one for one in results[:-4] if one.capability == capability]
    found = [one for one in mine if not one.error.startswith("fp8 caches need")]
    wrong = [
        one for one in found if one.error or one.local_loads + one.local_stores > spills_allowed(capability, one.name)
    ]
    assert not wrong, "\n" + table(wrong)
    large = [one for one in found if one.shared_bytes > SHARED_LIMIT_BYTES[capability]]
    assert not large, "\n" + table(large)
    assert all(one.registers > 16 and one.instructions > 50 for one in found)


def test_prefill_on_hopper_uses_wgmma_and_the_copy_engine(built: dict[int, dict[str, Built]]) -> None:
    hopper = built[90]
    for form in (LLAMA, LARGE_BLOCKS, FULL, FP8):
        one = hopper[prefill_attention.variant(form, 90).name]
        assert one.wgmma >= 16
        assert one.mma == 0
    direct = hopper[prefill_attention.variant(LARGE_BLOCKS, 90).name]
    gathered = hopper[prefill_attention.variant(LLAMA, 90).name]
    assert direct.tma_loads >= 4
    assert gathered.tma_loads == 0
    assert gathered.async_copies > direct.async_copies
    assert built[100][prefill_attention.variant(LARGE_BLOCKS, 100).name].tcgen05 > 0


def test_decode_leaves_room_for_the_programs_its_plan_counts_on(built: dict[int, dict[str, Built]]) -> None:
    """`resident` programs share a multiprocessor: 64 Ki registers and 228 KiB of shared memory, 1 KiB lost to each."""
    found = 0
    for form, queries in itertools.product([*forms(), LLAMA, FP8], (1, 4, 8)):
        one = built[90].get(decode_attention.variant(form, queries).name)
        if one is None:
            continue
        found += 1
        tile = decode_attention.decode_tile(form, queries)
        assert one.registers * 32 * tile.warps * tile.resident <= 65536, one
        assert (one.shared_bytes + 1024) * tile.resident <= 228 * 1024, one
        assert one.async_copies > 0
        assert one.mma > 0 or one.wgmma > 0
    assert found >= 2


@pytest.mark.parametrize(("form", "registers", "loop"), [(LLAMA, 128, 510), (FP8, 160, 330), (INT8, 168, 385)])
def test_the_steady_loop_of_decode_is_as_short_as_it_became(
    built: dict[int, dict[str, Built]], form: Form, registers: int, loop: int
) -> None:
    """For 64 tokens: 400 of bf16, 300 of fp8, 360 of int8 in triton 3.9, and 505, 326 and 381 in 3.6.

    fp8 had 696 and int8 982 in 3.9, with 64 byte-wide loads, and 128 conversions of integers.
    """
    one, tile = built[90][decode_attention.variant(form).name], decode_attention.decode_tile(form, 1)
    assert one.registers <= registers
    assert 100 < one.loop * 64 / tile.keys <= loop
    assert one.byte_loads == one.conversions == 0
    # A tile's keys and values, 16 bytes to a thread, at least once in the loop and once before it.
    tile_bytes = 2 * tile.keys * form.head_dim * (1 if form.narrow else 2)
    assert one.wide_copies >= 2 * tile_bytes // (32 * tile.warps * 16)


def test_code_is_read_with_its_loops() -> None:
    code = """
.L_x_1:
        /*0000*/                   LDS.U8 R1, [R2] ;
.L_x_2:
        /*0010*/              @!P0 LDGSTS.E.BYPASS.128 [R3], [R4] ;
        /*0020*/                   HMMA.16816.F32 R4, R8, R10, R4 ;
        /*0030*/               @P0 BRA `(.L_x_2) ;
        /*0040*/                   I2F.S8 R1, R2 ;
        /*0050*/              @!P1 BRA `(.L_x_1) ;
        /*0060*/                   BRA `(.L_x_3) ;
.L_x_3:
        /*0070*/                   EXIT ;
"""
    opcodes, loop = read_code(code)
    assert opcodes == ["LDS.U8", "LDGSTS.E.BYPASS.128", "HMMA.16816.F32", "BRA", "I2F.S8", "BRA", "BRA", "EXIT"]
    assert loop == 6


def test_a_variant_that_cannot_be_built_costs_no_other(results: list[Built]) -> None:
    """fp8 is refused before the compiler sees it; LLVM may abort, then the rest is built by a new process."""
    fp8, broken, dead, good = results[-4:]
    assert fp8.error == "fp8 caches need compute capability 8.9 or newer, this GPU has 8.0"
    assert broken.error.startswith("the compiler refused: ")
    assert dead.error.startswith("the compiler ended with status -6")
    assert (good.name, good.error) == (PLAN.name, "")
    assert fp8.registers == broken.registers == dead.registers == 0 < good.registers
    assert "deadly the compiler ended" in table([dead])


def test_forms_cover_what_the_cache_stores() -> None:
    covered = {(form.cache, form.head_dim) for form in forms()}
    stored = {(cache, dim) for cache in ("fp32", "fp16", "bf16", "fp8e4nv", "i8") for dim in (64, 128, 256)}
    assert stored - covered == {("fp32", 256)}


def test_what_the_compiler_refuses_is_told_variant_by_variant(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The subprocess's own loop, here: an old GPU without fp8, then what no compiler takes."""
    jobs = [{"variant": asdict(variant), "capability": 80} for variant in (FP8_PREFILL, FP8_DECODE, BROKEN)]
    monkeypatch.setattr("sys.stdin", [json.dumps(job) + "\n" for job in jobs])
    aot._work(sys.stdout)
    old, pairs, broken = [Built(**json.loads(line)) for line in capsys.readouterr().out.splitlines()]
    assert "fp8 caches need compute capability 8.9 or newer" in old.error
    assert pairs.error == old.error
    assert broken.error.startswith("the compiler refused: ")
