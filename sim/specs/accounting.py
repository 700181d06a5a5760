"""How an engine counts its memory before it sizes the KV cache, as facts of its code. It computes no bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Amount:
    """Bytes that are expected, with the least and the most that they may be."""

    expected: int
    least: int
    most: int

    @classmethod
    def exact(cls, size: float) -> Amount:
        """Bytes that code and shapes settle."""
        return cls(int(size), int(size), int(size))

    @classmethod
    def of(cls, expected: float, least: float, most: float) -> Amount:
        return cls(int(expected), int(least), int(most))

    def times(self, factor: float) -> Amount:
        return Amount(int(self.expected * factor), int(self.least * factor), int(self.most * factor))

    def plus(self, other: Amount) -> Amount:
        return Amount(self.expected + other.expected, self.least + other.least, self.most + other.most)

    def larger(self, other: Amount) -> Amount:
        """The larger of both, end by end."""
        ends = ("expected", "least", "most")
        return Amount(*(max(getattr(self, end), getattr(other, end)) for end in ends))


NONE = Amount(0, 0, 0)


def total(amounts: Iterable[Amount]) -> Amount:
    """All together; ends add up, as if everything erred in one direction."""
    whole = NONE
    for amount in amounts:
        whole = whole.plus(amount)
    return whole


@dataclass(frozen=True, slots=True)
class LocalMemory:
    """Stack that the driver sets aside for every thread that may reside on some GPUs, for the kernel with the most."""

    gpus: tuple[str, ...]
    thread: Amount
    sm_threads: int


@dataclass(frozen=True, slots=True)
class GraphMemory:
    """What CUDA graphs take, where they are counted before the cache is sized.

    Attributes:
        most_tokens: the largest step that is captured, at most; `most_tokens_of` on GPUs where that differs.
        layer: of a graph cut at every attention, for each layer and captured size.
        whole: of a graph of a whole decode step.
    """

    most_tokens: int
    most_tokens_of: tuple[tuple[str, int], ...]
    layer: Amount
    whole: Amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """What an engine holds beside weights and KV; without arguments a plain estimate, of no engine.

    Attributes:
        name: whose it is, engine and version; "" for the plain estimate.
        logits: bytes alive for each logit at the peak of sampling, from so many sequences on; rows rise.
        sampled_states: copies of the sampled rows' hidden states beside the step's.
        kept_logit_bytes: for each seat and logit of the vocabulary, kept while the engine runs.
        sm_logit_bytes: for each logit of the vocabulary and SM (one of its programs), kept while the engine runs.
        local: of the GPUs that are known; none: no kernel of the start needs a stack to speak of.
        context: what lies outside the framework's allocator.
        collectives: the same of more than one GPU.
        graphs: None where they are captured afterwards and do not count.
        null_blocks: KV blocks that padding points at, and no request holds.
    """

    name: str = ""
    logits: tuple[tuple[int, Amount], ...] = ((1, Amount(26, 14, 50)),)
    sampled_states: int = 0
    kept_logit_bytes: float = 0.0
    sm_logit_bytes: int = 0
    local: tuple[LocalMemory, ...] = ()
    context: Amount = Amount(161_061_273, 0, 820 * MIB)
    collectives: Amount = Amount(392 * MIB, 0, 392 * MIB)
    graphs: GraphMemory | None = None
    null_blocks: int = 0

    def logit(self, rows: int) -> Amount:
        """Bytes alive for each logit when so many sequences are sampled."""
        return [amount for least, amount in self.logits if rows >= least or least == self.logits[0][0]][-1]


PLAIN = Accounting()
