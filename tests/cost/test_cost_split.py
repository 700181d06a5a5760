"""A model split over GPUs: each computes its share of every matrix, and only what is gathered is whole."""

from __future__ import annotations

import pytest

from sim.catalog import load_gpu, load_model
from sim.cost.efficiency import Efficiency
from sim.cost.kernels import Kernels
from sim.cost.roofline import Roofline
from sim.engine.batch import Shape
from sim.specs.parallel import Parallel

GPU, MODEL = load_gpu("h100"), load_model("llama-3.1-70b")
KERNELS = Kernels(GPU, Efficiency.of(GPU), MODEL.dtype, MODEL.kv_dtype)


@pytest.mark.parametrize("tp", [2, 4, 8])
@pytest.mark.parametrize("rows", [1, 64, 512])
def test_each_gpu_computes_its_share(rows: int, tp: int) -> None:
    cost = Roofline(MODEL, GPU, parallel=Parallel(tp), cuda_graphs=False)
    terms = {name: term.seconds for name, term in cost.explain(Shape(decodes=rows, decode_context=rows * 9)).items()}
    linear, layers = KERNELS.linear_s, MODEL.layers
    heads, kv_heads = MODEL.heads // tp, MODEL.kv_heads // tp
    qkv, out = MODEL.attention_gemms(Parallel(tp))
    assert (qkv.k, qkv.n) == (MODEL.hidden, (heads + 2 * kv_heads) * MODEL.head_dim)
    assert (out.k, out.n) == (heads * MODEL.head_dim, MODEL.hidden)
    assert terms[qkv.name] == pytest.approx(layers * linear(rows, qkv.k, qkv.n))
    up, down = MODEL.mlp_gemms(Parallel(tp))
    assert (up.n, down.k) == (2 * MODEL.ffn // tp, MODEL.ffn // tp)
    assert terms[up.name] == pytest.approx(layers * linear(rows, MODEL.hidden, up.n))
    assert terms["LM head"] == pytest.approx(KERNELS.gemm_s(rows, MODEL.hidden, MODEL.vocab // tp))
    assert terms["sampling"] == pytest.approx(KERNELS.sampling_s(rows, MODEL.vocab))
    assert terms["all-reduce"] == pytest.approx(2 * layers * KERNELS.all_reduce_s(rows * MODEL.hidden * 2, tp))
    assert terms["logits gather"] == pytest.approx(KERNELS.gather_s(rows * MODEL.vocab * 2, tp))
