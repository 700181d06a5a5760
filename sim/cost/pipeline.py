"""The price of a step that passes stages of layers, one after another, each on GPUs of its own. It knows no time.

What a stage hands over is its hidden states and their residual (vLLM, `IntermediateTensors`): each of `tp` GPUs sends
its part to the GPU of its place in the next stage, where the parts are gathered. None of it was compared with a
measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from sim.cost.errors import Error
from sim.cost.layers import Terms
from sim.cost.roofline import SOURCE, Roofline
from sim.cost.step import Constant, Term, shape_tokens
from sim.engine.batch import Shape
from sim.specs.gpu import ASSUMED_NODE_GPUS, GpuSpec
from sim.specs.model import AttentionWindow, ModelSpec
from sim.specs.parallel import Parallel

_HANDED = 2
"""Tensors of a token's width that a stage hands over."""
HAND_OVER = "stage hand-over"


class StageSeconds(NamedTuple):
    """A step in one stage, and on its way from there to the next."""

    device_s: float
    hand_over_s: float


class Pipeline:
    """`StepCost` of a model on `pp` stages: a step's seconds are those of its way through all of them.

    `stages_s` tells each stage's, by which several steps overlap. Arguments as of `Roofline`.
    """

    def __init__(
        self,
        model: ModelSpec,
        gpu: GpuSpec,
        *,
        parallel: Parallel,
        window: AttentionWindow | None,
        **settings: Any,
    ) -> None:
        model.check_parallel(parallel)
        gpu.check_group(parallel)
        self._one = replace(parallel, pp=1)
        self.stages: Sequence[Roofline] = [
            Roofline(
                stage,
                gpu,
                parallel=self._one,
                window=replace(window, layers=stage.layers) if window else None,
                **settings,
            )
            for stage in model.stages(parallel)
        ]
        self._across = [_crosses(gpu, parallel, number) for number in range(parallel.pp - 1)]
        self._token_bytes = _HANDED * model.hidden * model.element_bytes

    def stages_s(self, shape: Shape) -> tuple[list[StageSeconds], float]:
        """(each stage's seconds of one step, host seconds); the last stage hands nothing over."""
        tokens = shape_tokens(shape)
        priced = [stage.span_s(shape, 1) for stage in self.stages]
        sent = [*(self._hand_over_s(tokens, across) for across in self._across), 0.0]
        steps = [StageSeconds(device[0], sent_s) for (device, _), sent_s in zip(priced, sent, strict=True)]
        return steps, priced[-1][1]

    def _hand_over_s(self, tokens: int, across: bool) -> float:
        if not tokens:
            return 0.0
        gpus, collectives = self._one.tp, self.stages[0].kernels.collectives
        sent = tokens * self._token_bytes
        seconds = collectives.send_s(sent / gpus, across=across)
        return seconds + collectives.gather_s(sent, gpus) if gpus > 1 else seconds

    def span_s(self, shape: Shape, repeats: int) -> tuple[list[float], float]:
        """As `StepCost.span_s`."""
        spans = [stage.span_s(shape, repeats) for stage in self.stages]
        sent_s = sum(self._hand_over_s(shape_tokens(shape), across) for across in self._across)
        return [sum(each) + sent_s for each in zip(*(device for device, _ in spans), strict=True)], spans[-1][1]

    def explain(self, shape: Shape) -> dict[str, Term]:
        """As `StepCost.explain`: the terms of all stages together."""
        seconds: Terms = {}
        kinds: dict[str, Term] = {}
        for stage in self.stages:
            for name, term in stage.explain(shape).items():
                kinds[name] = term
                # The host plans a step once for all stages.
                seconds[name] = term.seconds if term.on_host else seconds.get(name, 0.0) + term.seconds
        sent_s = sum(self._hand_over_s(shape_tokens(shape), across) for across in self._across)
        host = {name: term for name, term in kinds.items() if term.on_host}
        device = {name: Term(seconds[name], term.source) for name, term in kinds.items() if not term.on_host}
        return {**device, **({HAND_OVER: Term(sent_s, SOURCE)} if sent_s else {}), **host}

    def error_of(self, term: str, source: str) -> Error | None:
        """As `Roofline.error_of`."""
        return self.stages[0].error_of(term, source)

    def describe(self) -> list[Constant]:
        """As `StepCost.describe`."""
        layers = ", ".join(str(stage.model.layers) for stage in self.stages)
        first, *others = self.stages[0].describe()
        return [first, *others, Constant("stages", len(self.stages), f"of {layers} layers")]


def _crosses(gpu: GpuSpec, parallel: Parallel, number: int) -> bool:
    """Whether a GPU of this stage sends to another node; stages stand one after another, nodes filled up."""
    size, stage = gpu.node_gpus or ASSUMED_NODE_GPUS, parallel.expert_gpus
    return any(at // size != (at + stage) // size for at in range(number * stage, (number + 1) * stage))
