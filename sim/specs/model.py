"""What a model is, as numbers, and the arithmetic on them; GPUs as well. It knows no seconds and no files."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from sim.specs.blocks import KvKind, kv_kinds
from sim.specs.dtypes import DTYPE_BYTES, KV_TYPES, weight_type
from sim.specs.gpu import GpuSpec
from sim.specs.parallel import MAX_TP, SINGLE, Parallel
from sim.specs.shape import AttentionWindow, Gemm, ModelShape
from traces.schema import InputError

__all__ = ["DTYPE_BYTES", "MAX_TP", "AttentionWindow", "Gemm", "GpuSpec", "ModelSpec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec(ModelShape):
    """A decoder-only transformer. MHA, GQA and MQA follow from `heads` and `kv_heads`.

    Experts: zero means a dense MLP of width `ffn` in every layer; otherwise all layers but the first
    `leading_dense_layers` have `experts` of width `expert_ffn` and one of width `shared_expert_ffn` that every token
    visits. Window: `sliding_layers` layers attend `sliding_window_tokens` (0: full attention); left out, all layers do.
    Latent attention (MLA, arXiv 2405.04434): with `kv_lora_rank` the cache holds one latent and one rotary key of
    `qk_rope_head_dim` per token and layer, and `head_dim` is `qk_nope_head_dim + qk_rope_head_dim`; `q_lora_rank` 0
    projects queries at once.
    `norm` is "rms" (weights) or "layer" (weights and biases), two a layer, four with `post_norms`; `head_sinks` is one
    more logit per head (gpt-oss); `learned_positions` counts the rows of a position table (OPT), 0 with rotary
    embeddings. `dtype` is that of the activations; `weights` that of the matrices, "auto" the same.
    `blocks`: layers of several kinds (`sim.specs.blocks`), which then say all of the layers' arithmetic; the fields
    above describe the largest kind. `beside` counts parameters outside the layers that are neither embedding nor last
    norm (an image encoder, a bias of the LM head): in `dtype`, on every GPU. `checkpoint_bytes` is what the files of
    the weights hold, 0 where nobody looked. `counted` says in words what the numbers leave out or include, `unpriced`
    why no step of the model can be priced.
    Raises InputError, in one sentence, when the numbers cannot be a model.
    """

    def with_dtypes(
        self, dtype: str | None = None, kv_dtype: str | None = None, weights: str | None = None
    ) -> ModelSpec:
        """The same model in other types: the cache follows `dtype` unless told, and so do weights that are "auto".

        With `weights`, all matrices that the model's own checkpoint quantises take that type.
        """
        blocks, files_bytes = self.blocks, self.checkpoint_bytes
        if (weights and weights != self.weights) or (dtype and dtype != self.dtype):
            files_bytes = 0
        if weights and weights != self.weights:
            blocks = tuple(block.unified() for block in blocks)
        return replace(
            self,
            dtype=dtype or self.dtype,
            kv_dtype=kv_dtype or dtype or self.kv_dtype,
            weights=weights or self.weights,
            blocks=blocks,
            checkpoint_bytes=files_bytes,
        )

    @property
    def has_embedding(self) -> bool:
        """Whether it makes hidden states out of tokens, as all but later stages of a pipeline do."""
        return True

    @property
    def has_head(self) -> bool:
        """Whether it makes logits out of hidden states, as all but earlier stages of a pipeline do."""
        return True

    def stages(self, parallel: Parallel) -> tuple[ModelSpec, ...]:
        """The stages of a pipeline, each a model of some of the layers.

        Layers that do not divide go one each to the stages before the last (vLLM, `get_pp_indices`), which has the LM
        head; the first has the embedding.
        """
        if parallel.pp == 1:
            return (self,)
        least, more = divmod(self.layers, parallel.pp)
        longer = range(parallel.pp - 1 - more, parallel.pp - 1)
        made: list[ModelSpec] = []
        start = 0
        for number in range(parallel.pp):
            layers = least + (number in longer)
            dense = max(0, min(layers, self.leading_dense_layers - start))
            made.append(self._stage(layers, dense, number == 0, number == parallel.pp - 1))
            start += layers
        return tuple(made)

    def _stage(self, layers: int, dense: int, first: bool, last: bool) -> ModelSpec:
        changed = {"layers": layers, "leading_dense_layers": dense, "sliding_layers": min(layers, self.sliding_layers)}
        own = {entry.name: getattr(self, entry.name) for entry in fields(self)} | changed
        files_bytes = self.checkpoint_bytes
        stage = PipelineStage(**{**own, "checkpoint_bytes": 0, "ends": (first, last)})
        if not files_bytes:
            return stage
        share = stage._computed_bytes(SINGLE) / self._computed_bytes(SINGLE)
        return replace(stage, checkpoint_bytes=int(files_bytes * share))

    @property
    def full_layers(self) -> int:
        """Layers that keep the whole context."""
        if self.blocks:
            return sum(block.layers for block in self.blocks if block.token_bytes("fp8") and not block.window_tokens)
        return self.layers - self.sliding_layers

    @property
    def state_bytes(self) -> int:
        """Bytes of the constant state of one sequence in all layers (linear attention, Mamba)."""
        return self.gpu_state_bytes(SINGLE)

    @property
    def parameters(self) -> int:
        """Exact number of parameters, a tied LM head counted once."""
        return self.gpu_parameters(SINGLE)

    @property
    def active_parameters(self) -> int:
        """Parameters without the experts that a token does not visit."""
        if self.blocks:
            routed = ((block.layers, matrix) for block in self.blocks for matrix in block.matrices if matrix.is_routed)
            idle = (
                layers * matrix.parameters(SINGLE) // matrix.count * (matrix.count - matrix.visited)
                for layers, matrix in routed
            )
            return self.parameters - sum(idle)
        expert = _count(self.expert_gemms(SINGLE)) + self._biases(self.expert_gemms(SINGLE))
        return self.parameters - self.expert_layers * (self.experts - self.experts_per_token) * expert

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return self.gpu_weight_bytes(SINGLE)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one token in all layers, scales included."""
        return self.gpu_kv_bytes_per_token(SINGLE)

    @property
    def flops_per_token(self) -> int:
        """FLOPs of the layers' matrix products for one token: no attention scores, no LM head (2 per weight)."""
        if self.blocks:
            return 2 * sum(block.layers * block.visited_parameters for block in self.blocks)
        attention, mlp = _count(self.attention_gemms(SINGLE)), _count(self.mlp_gemms(SINGLE))
        everywhere = self.layers * attention + self.dense_layers * mlp
        experts = self.experts_per_token * _count(self.expert_gemms(SINGLE)) + _count(self.shared_gemms(SINGLE))
        return 2 * (everywhere + self.expert_layers * (experts + self.hidden * self.experts))

    def check_parallel(self, parallel: Parallel) -> None:
        """Raise InputError unless the GPUs can share every layer evenly (KV heads may be repeated, as vLLM does)."""
        if not self._shares(parallel.tp):
            choices = ", ".join(str(tp) for tp in range(1, MAX_TP + 1) if self.divides(Parallel(tp)))
            raise InputError(
                f"model {self.name!r} ({self.heads} heads, {self.kv_heads} KV heads) cannot be split over "
                f"tp = {parallel.tp} GPUs; possible are {choices}"
            )
        if reason := self._objection(parallel):
            raise InputError(reason)

    def together(self, parallel: Parallel) -> Parallel:
        """The GPUs that step together: ranks of a model without experts need no other."""
        return parallel if self.experts else parallel.alone

    def divides(self, parallel: Parallel) -> bool:
        """Whether the GPUs can share every layer evenly."""
        return self._shares(parallel.tp) and not self._objection(parallel)

    def _objection(self, parallel: Parallel) -> str:
        """Why the model's experts or layers cannot be shared so; "" if they can."""
        whose, ep, pp, copies = f"model {self.name!r}", parallel.ep, parallel.pp, parallel.redundant
        gpus, experts = parallel.expert_gpus, self.experts
        unknown = bool(self.blocks) or 0 < self.sliding_layers < self.layers
        why = {
            f"ep is {ep}, and {whose} has no experts to place": ep > 1 and not experts,
            f"the experts of {whose} (of width {self.expert_ffn}) cannot be cut over tp x dp = {gpus} GPUs; ep = {gpus}"
            " places whole ones": not self._cuts(parallel.expert_cut),
            f"redundant_experts is {copies}, and {whose} has {experts} experts in a layer": copies > experts,
            f"ep is {ep}, and {whose} has {experts} experts{f' and {copies} copies' if copies else ''} in a layer: "
            "some GPU has none": ep > max(1, experts + copies),
            f"pp is {pp}, and {whose} has {self.layers} layers": pp > self.layers,
            f"pp is {pp}, and which layer of {whose} is of which kind is not known, so that they cannot be shared out "
            "over stages": pp > 1 and unknown,
        }
        return next((reason for reason, holds in why.items() if holds), "")

    def _shares(self, tp: int) -> bool:
        """Can `tp` GPUs share everything but routed experts?"""
        if self.blocks:
            return tp <= MAX_TP and all(block.divides(tp) for block in self.blocks)
        kv_fits = self.is_latent or self.kv_heads % tp == 0 or tp % self.kv_heads == 0
        widths = (self.heads, self.ffn, self.shared_expert_ffn)
        return tp <= MAX_TP and kv_fits and all(width % tp == 0 for width in widths)

    def _cuts(self, gpus: int) -> bool:
        """Can each routed expert be cut over so many GPUs?"""
        if self.blocks:
            return all(block.cuts(gpus) for block in self.blocks)
        return self.expert_ffn % gpus == 0

    def gpu_kv_heads(self, parallel: Parallel) -> int:
        """KV heads on one of `tp` GPUs; at least one, so beyond `kv_heads` GPUs they are repeated."""
        return max(1, self.kv_heads // parallel.tp)

    def layer_kv_bytes_per_token(self, parallel: Parallel) -> int:
        """Bytes that one token's KV takes in one layer on one of `tp` GPUs; a latent is on every GPU in full.

        With `blocks`, the mean of the layers that keep any, rounded up.
        """
        if self.blocks:
            return -(-self.gpu_kv_bytes_per_token(parallel) // max(1, self.full_layers + self.sliding_layers))
        kind = KV_TYPES[self.kv_dtype]
        if self.is_latent:
            return kind.vector_bytes(self.latent_width)
        return 2 * self.gpu_kv_heads(parallel) * kind.vector_bytes(self.head_dim)

    def gpu_kv_bytes_per_token(self, parallel: Parallel) -> int:
        """Bytes that one token's KV takes on one of `tp` GPUs, of the stage with most layers."""
        if self.blocks:
            return sum(block.layers * block.token_bytes(self.kv_dtype, parallel) for block in self.blocks)
        return -(-self.layers // parallel.pp) * self.layer_kv_bytes_per_token(parallel)

    def gpu_state_bytes(self, parallel: Parallel) -> int:
        """Bytes that one sequence's constant state takes on one of `tp` GPUs."""
        return sum(kind.layers * kind.sequence_bytes for kind in self.kv_kinds(parallel))

    def kv_kinds(self, parallel: Parallel = SINGLE) -> tuple[KvKind, ...]:
        """What the layers keep on one of `tp` GPUs, layers that keep alike together."""
        if self.blocks:
            return kv_kinds(self.blocks, self.kv_dtype, self.dtype, parallel)
        token = self.layer_kv_bytes_per_token(parallel)
        kinds = (
            KvKind(self.full_layers, token, 0, 0),
            KvKind(self.sliding_layers, token, self.sliding_window_tokens, 0),
        )
        return tuple(kind for kind in kinds if kind.layers)

    def attention_gemms(self, parallel: Parallel) -> tuple[Gemm, ...]:
        """The projections around attention, on one of `tp` GPUs; the last is the output's.

        Of latent attention, those down to a rank are repeated on every GPU (vLLM, models/deepseek_v2.py).
        """
        queries, heads = self.query_width // parallel.tp, self.heads // parallel.tp
        output = Gemm("attention output", heads * self.value_dim, self.hidden)
        if not self.is_latent:
            return Gemm("qkv", self.hidden, queries + 2 * self.gpu_kv_heads(parallel) * self.head_dim), output
        expand = Gemm("latent up", self.kv_lora_rank, heads * (self.qk_nope_head_dim + self.v_head_dim))
        if not self.q_lora_rank:
            return (
                Gemm("query", self.hidden, queries),
                Gemm("latent down", self.hidden, self.latent_width),
                expand,
                output,
            )
        down = Gemm("query and latent down", self.hidden, self.q_lora_rank + self.latent_width)
        return down, Gemm("query up", self.q_lora_rank, queries), expand, output

    def mlp_gemms(self, parallel: Parallel) -> tuple[Gemm, ...]:
        """The MLP of a layer without experts, on one of `tp` GPUs; empty where every layer has experts."""
        return self._pair("mlp", self.ffn // parallel.tp if self.dense_layers else 0)

    def shared_gemms(self, parallel: Parallel) -> tuple[Gemm, ...]:
        """The expert that every token visits, on one of `tp` GPUs; may be none."""
        return self._pair("shared expert", self.shared_expert_ffn // parallel.tp if self.experts else 0)

    def expert_gemms(self, parallel: Parallel) -> tuple[Gemm, ...]:
        """What a GPU has of a routed expert: all of it where whole ones are placed; empty for a dense model."""
        return self._pair("expert", self.expert_ffn // parallel.expert_cut if self.experts else 0)

    def _pair(self, name: str, width: int) -> tuple[Gemm, ...]:
        if width == 0:
            return ()
        up = 2 * width if self.gated_mlp else width
        return Gemm(f"{name} up", self.hidden, up), Gemm(f"{name} down", width, self.hidden)

    def gpu_parameters(self, parallel: Parallel) -> int:
        """Exact number of parameters on one of `tp` GPUs: matrices are split, norms, positions and routers repeated.

        Of a pipeline, on the stage with most.
        """
        if parallel.pp > 1:
            return max(stage.gpu_parameters(replace(parallel, pp=1)) for stage in self.stages(parallel))
        if self.blocks:
            return sum(block.layers * block.parameters(parallel) for block in self.blocks) + self._outside(parallel)
        dense, expert = (
            sum(count * gemm.k * gemm.n for gemm, count in self._matrices(parallel, kind))
            + self._vectors(parallel, kind)
            for kind in (True, False)
        )
        return self.dense_layers * dense + self.expert_layers * expert + self._outside(parallel)

    def gpu_weight_bytes(self, parallel: Parallel) -> int:
        """Bytes of the weights on one of `tp` GPUs, scales included.

        Where the checkpoint's files were read, what they hold more or less than the arithmetic is shared evenly.
        """
        if parallel.pp > 1:
            return max(stage.gpu_weight_bytes(replace(parallel, pp=1)) for stage in self.stages(parallel))
        computed = self._computed_bytes(parallel)
        if not self.checkpoint_bytes:
            return computed
        return max(0, computed + -(-(self.checkpoint_bytes - self._computed_bytes(SINGLE)) // parallel.tp))

    def _computed_bytes(self, parallel: Parallel) -> int:
        """The same by the arithmetic alone."""
        if self.blocks:
            layers = (block.layers * block.weight_bytes(self.weights, self.dtype, parallel) for block in self.blocks)
            return sum(layers) + self._outside(parallel) * self._plain_bytes()
        dense, expert = (self._layer_bytes(parallel, kind) for kind in (True, False))
        layers_bytes = self.dense_layers * dense + self.expert_layers * expert
        return layers_bytes + self._outside(parallel) * self._plain_bytes()

    def last_layers_weight_bytes(self, layers: int, parallel: Parallel) -> int:
        """Bytes of the weights of the last `layers` layers on one of `tp` GPUs; of mean layers with `blocks`."""
        if self.blocks:
            return -(
                -layers
                * (self._computed_bytes(parallel) - self._outside(parallel) * self._plain_bytes())
                // self.layers
            )
        dense = max(0, layers - self.expert_layers)
        return dense * self._layer_bytes(parallel, True) + (layers - dense) * self._layer_bytes(parallel, False)

    def _layer_bytes(self, parallel: Parallel, dense: bool) -> int:
        kind = weight_type(self.weight_dtype)
        matrices = self._matrices(parallel, dense)
        matrices_bytes = sum(count * kind.matrix_bytes(gemm.k, gemm.n) for gemm, count in matrices)
        return matrices_bytes + self._vectors(parallel, dense) * self._plain_bytes()

    def _plain_bytes(self) -> int:
        """Bytes of a parameter that is never quantised."""
        return DTYPE_BYTES.get(self.weight_dtype, self.element_bytes)

    def _matrices(self, parallel: Parallel, dense: bool) -> list[tuple[Gemm, int]]:
        """The matrices of one layer on one of `tp` GPUs, and how many there are of each."""
        mlp = self.mlp_gemms(parallel) if dense else self.shared_gemms(parallel)
        held = parallel.held(self.experts)
        routed = [] if dense else [(gemm, held) for gemm in self.expert_gemms(parallel)]
        return [(gemm, 1) for gemm in (*self.attention_gemms(parallel), *mlp)] + routed

    def _vectors(self, parallel: Parallel, dense: bool) -> int:
        """Parameters of one layer that are in no quantised matrix: norms, biases and the router."""
        norms = (4 if self.post_norms else 2) * self._norm() + (2 * self.head_dim if self.qk_norm else 0)
        latents = self.q_lora_rank + self.kv_lora_rank
        first, *_, output = self.attention_gemms(parallel)
        biases = (first.n if self.qkv_bias else 0) + (output.n if self.attention_output_bias else 0)
        sinks = self.heads // parallel.tp if self.head_sinks else 0
        if dense:
            return norms + latents + biases + sinks + self._biases(self.mlp_gemms(parallel))
        expert_biases = parallel.held(self.experts) * self._biases(self.expert_gemms(parallel))
        mlp_biases = self._biases(self.shared_gemms(parallel)) + expert_biases
        router = self.experts * (self.hidden + (1 if self.router_bias else 0))
        return norms + latents + biases + sinks + mlp_biases + router

    def _biases(self, gemms: tuple[Gemm, ...]) -> int:
        return sum(gemm.n for gemm in gemms) if self.mlp_bias else 0

    def _norm(self) -> int:
        return self.hidden * (2 if self.norm == "layer" else 1)

    def _outside(self, parallel: Parallel) -> int:
        """Parameters outside the layers: embeddings, LM head, positions and the last norm."""
        table = -(-self.vocab // parallel.tp) * self.hidden
        first = table + self.learned_positions * self.hidden + self.beside if self.has_embedding else 0
        head = 0 if self.tied_embeddings and self.has_embedding else table
        return first + (self._norm() + head if self.has_head else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineStage(ModelSpec):
    """Some layers of a model, on GPUs of their own; `ends`: whether it has the embedding, and the LM head.

    Where the two are tied, and not in one stage, both have the table.
    """

    ends: tuple[bool, bool] = (True, True)

    @property
    def has_embedding(self) -> bool:
        return self.ends[0]

    @property
    def has_head(self) -> bool:
        return self.ends[1]


def _count(gemms: tuple[Gemm, ...]) -> int:
    return sum(gemm.k * gemm.n for gemm in gemms)
