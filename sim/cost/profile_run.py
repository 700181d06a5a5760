"""What an engine's profile run finds on each GPU beside weights and KV, in bytes with a least and a most.

vLLM (v1/worker/gpu_model_runner.py, `profile_run`) computes a step of `max_num_batched_tokens` tokens and then samples
`max_num_seqs` rows of logits; the peak of both counts. How much sampling holds is a fact of the engine's version
(`sim.specs.accounting`), all else follows from the model's shapes. It knows no settings of memory and no blocks.
"""

from __future__ import annotations

from collections.abc import Mapping

from sim.specs.accounting import NONE, Accounting, Amount, GraphMemory, LocalMemory, total
from sim.specs.model import GpuSpec, ModelSpec
from sim.specs.parallel import Parallel


def activations(
    model: ModelSpec, parallel: Parallel, max_num_batched_tokens: int, max_num_seqs: int, accounting: Accounting
) -> Amount:
    """Peak of one GPU's activations: a full step's widest layer, or sampling after it, whichever is more."""
    if not model.has_head:
        return _forward(model, parallel, max_num_batched_tokens)
    rows = min(max_num_seqs, max_num_batched_tokens)
    states = (max_num_batched_tokens + accounting.sampled_states * rows) * model.hidden * model.element_bytes
    sampling = accounting.logit(rows).times(rows * model.vocab).plus(Amount.exact(states))
    return _forward(model, parallel, max_num_batched_tokens).larger(sampling)


def _forward(model: ModelSpec, parallel: Parallel, tokens: int) -> Amount:
    """Peak of a step of so many tokens.

    A layer holds the residual stream and its input, plus the widest of: projected and attended heads; the MLP's
    projection and activation; the same for every expert a token visits. A compiler may reuse the input (least); without
    one a normalised copy stays beside both (most).
    """
    widest = (
        max(block.activation_width(parallel) for block in model.blocks) if model.blocks else _widest(model, parallel)
    )
    widths = (states * model.hidden + widest for states in (2, 1, 3))
    return Amount(*(tokens * width * model.element_bytes for width in widths))


def overheads(
    model: ModelSpec,
    gpu: GpuSpec,
    parallel: Parallel,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    accounting: Accounting,
    *,
    graphs: bool = True,
) -> Mapping[str, Amount]:
    """What one GPU holds outside the step, by name: the context, buffers that sampling keeps, stacks, CUDA graphs."""
    programs = min(gpu.sms, 1 << (min(max_num_seqs, max_num_batched_tokens) - 1).bit_length())
    kept = max_num_seqs * accounting.kept_logit_bytes + programs * accounting.sm_logit_bytes
    counted = accounting.graphs if graphs else None
    parts = {
        "context": accounting.context,
        "collectives": accounting.collectives if parallel.gpus > 1 else NONE,
        "sampling buffers": Amount.exact(kept * model.vocab if model.has_head else 0),
        "kernel stacks": _stacks(gpu, accounting.local),
        "CUDA graphs": _graphs(model, gpu, parallel, (max_num_batched_tokens, max_num_seqs), counted),
    }
    return {name: amount for name, amount in parts.items() if amount.most}


def capture_sizes(max_num_batched_tokens: int, max_num_seqs: int, most_tokens: int) -> list[int]:
    """Tokens of the steps that vLLM captures graphs of (`vllm/config/vllm.py`, `_set_cudagraph_sizes`)."""
    most = min(2 * max_num_seqs, most_tokens, max_num_batched_tokens)
    return [size for size in (1, 2, 4, *range(8, 256, 8), *range(256, most_tokens + 1, 16)) if size <= most]


def _stacks(gpu: GpuSpec, local: tuple[LocalMemory, ...]) -> Amount:
    """Of the kernel with the largest stack; on a GPU that nothing is known of, between nothing and the largest."""
    if not local:
        return NONE
    known = [each for each in local if gpu.name in each.gpus]
    if known:
        return known[0].thread.times(known[0].sm_threads * gpu.sms)
    most = max(each.thread.most * each.sm_threads for each in local) * gpu.sms
    return Amount(most // 2, 0, most)


def _graphs(
    model: ModelSpec, gpu: GpuSpec, parallel: Parallel, step: tuple[int, int], graphs: GraphMemory | None
) -> Amount:
    """Of graphs cut at every attention and of whole decode steps, for every captured size, and the pool they share."""
    if graphs is None:
        return NONE
    tokens, seats = step
    sizes = capture_sizes(tokens, seats, dict(graphs.most_tokens_of).get(gpu.name, graphs.most_tokens))
    whole = sum(size <= seats for size in sizes)
    cut = graphs.layer.times(len(sizes) * model.layers)
    return total((cut, graphs.whole.times(whole), _forward(model, parallel, sizes[-1])))


def _widest(model: ModelSpec, parallel: Parallel) -> int:
    """Values that the widest part of a layer makes of one token."""
    heads = sum(gemm.n for gemm in model.attention_gemms(parallel)[:-1]) + model.attention_gemms(parallel)[-1].k
    dense, shared, expert = (
        sum(gemm.n if gemm.k == model.hidden else gemm.k for gemm in gemms)
        for gemms in (model.mlp_gemms(parallel), model.shared_gemms(parallel), model.expert_gemms(parallel))
    )
    experts = parallel.expert_rows(model.experts_per_token) * (expert + model.hidden) if model.experts else 0
    return max(heads, dense, shared + experts)
