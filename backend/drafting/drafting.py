"""The live executor where requests draft: what was proposed is verified, and something new is proposed.

It knows neither where drafts come from (`ngram` and `draft_model` beside it) nor how many are wanted: the engine says
that. Rows of equally many tokens share one launch of decode attention, up to the eight that it takes; longer drafts run
as prompts do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from backend.cache.kvcache import KvCache
from backend.cache.memory import no_memory
from backend.drafting.rejection import accepts, distribution, drawn, rest
from backend.live.graphs import DecodeGraphs, Recorder
from backend.live.live import Draw, Live, Pair, Plan, check_drawn
from backend.live.packing import BatchPart, Ints, Ints32, Packed
from backend.live.prompts import Prompts
from backend.live.sampling import Sampling
from backend.live.sequences import ACCEPT, RESIDUAL, Sequences, uniforms
from backend.model.model import Model
from sim.engine.batch import Batch, Entry, Outcome
from sim.engine.request import Request

MOST_TOKENS = 8
"""Of one row of decode attention (`backend.kernels.decode_attention`)."""


class DraftingRow(NamedTuple):
    """A request's share of a step, once the step's output is known."""

    request: Request
    tokens: int
    past: int
    drafts: int
    """Of these tokens, drafts that were verified."""
    right: int
    """Of these, drafts that stayed."""
    wanted: int
    """Drafts wanted for the next step."""

    @property
    def certain(self) -> int:
        """Tokens whose KV is right; one more is known where the step sampled."""
        return self.past + self.tokens - self.drafts + self.right


class Ground(NamedTuple):
    """What the executor lends a drafter: the tokens, their layout by entries of a batch, and a stopwatch."""

    sequences: Sequences
    part: Callable[[list[Entry], list[Pair]], BatchPart | None]
    blocks: Callable[[list[Entry], Ints], Ints32]
    timed: Callable[[Callable[[], Tensor]], tuple[Ints, float]]


class Proposing(Protocol):
    samples: bool
    """Are drafts drawn from a distribution of the drafter's own? Else each is one guess, and compared."""

    def warm_up(self, most_tokens: int, most_sequences: int) -> None:
        """Build all that steps of these sizes take."""
        ...

    def capture(self, recorder: Recorder, most_sequences: int, most_tokens: int, step_tokens: int) -> None:
        """As `Live.capture`, of the drafter's own steps."""
        ...

    def move(self, batch: Batch) -> None:
        """Follow the batch's copies and swaps, before anything is computed."""
        ...

    def propose(self, rows: Sequence[DraftingRow]) -> tuple[list[int], float]:
        """(how many drafts each row gets, device seconds); they go behind the row's known tokens in `Sequences`."""
        ...

    def distributions(self, req: Request, drafts: int) -> Iterable[Tensor]:
        """What the first so many drafts of a request were drawn from, each [vocab]; where `samples` says so."""
        ...


class Doubt(NamedTuple):
    """The drafts of a step that a rule may keep: which rows of logits they stand behind, and the rule's numbers."""

    rows: Tensor
    drafts: Tensor
    q: list[Tensor]
    accept: Tensor
    residual: Tensor


class DraftingLive(Live):
    """Runs the batches of a `DraftingEngine`.

    A draft that is one guess stays where the target draws the same token: then all tokens are those of a run without
    drafts, at any temperature. Drafts that a model drew at a temperature above 0 stay by the rule of `rejection`, which
    keeps more of them and the distribution; tokens then depend on how many drafts there were.

    Args:
        drafter: makes the drafter on what the executor lends it.
    """

    def __init__(
        self,
        model: Model,
        cache: KvCache,
        prompts: Prompts,
        sampling: Sampling,
        *,
        drafter: Callable[[Ground], Proposing],
        drafts: int,
        most_sequences: int,
        appends: bool = False,
        host_blocks: int = 0,
    ) -> None:
        super().__init__(
            model,
            cache,
            prompts,
            sampling,
            most_sequences=most_sequences,
            appends=appends,
            drafts=drafts,
            host_blocks=host_blocks,
        )
        self.drafter = drafter(Ground(self.sequences, self._part, self._blocks, self._timed))
        self._sampling = sampling
        self._most = drafts
        self._rejects = self.drafter.samples and sampling.temperature > 0
        self._doubt: Doubt | None = None

    def execute(self, batch: Batch) -> Outcome:
        """As `Live.execute`; the drafter's own steps are the device's time too."""
        if batch.repeats != 1:
            raise ValueError("a live step cannot be repeated unasked; plan without spans")
        started = time.perf_counter()
        plan = self._plan(batch)
        try:
            answer, device_s = self._compute(plan.packed, batch)
            right = self._verify(batch, plan, answer)
            rows = _rows(batch, right)
            drafts, drafting_s = self.drafter.propose(rows)
        except torch.OutOfMemoryError:
            raise no_memory(
                self.model.device, f"a step of {len(plan.packed.tokens)} tokens", self._cache.blocks
            ) from None
        proposed = [count for row, count in zip(rows, drafts, strict=True) if row.request in right]
        total_s = time.perf_counter() - started
        device_s += drafting_s
        host_s = max(total_s - device_s, 0.0)
        accepted = [right[sample.request] for sample in batch.sampled]
        return Outcome([total_s], [device_s], host_s, accepted, (), proposed, drafting_s)

    def warm_up(self, most_tokens: int, most_sequences: int) -> None:
        """As `Live.warm_up`, with rows that verify drafts, and the drafter."""
        super().warm_up(most_tokens, most_sequences)
        for width in range(2, min(self._most + 1, MOST_TOKENS) + 1):
            self._rehearse([], [(1, 0)], [(width, 0)])
        self.drafter.warm_up(most_tokens, most_sequences)

    def capture(self, recorder: Recorder, most_sequences: int, most_tokens: int, step_tokens: int) -> None:
        """As `Live.capture`; steps in which each request verifies the most drafts that there are, are one graph too."""
        most_tokens += self._most  # drafts may go beyond a sequence's end
        super().capture(recorder, most_sequences, most_tokens, step_tokens)
        width = self._most + 1
        if 1 < width <= MOST_TOKENS:
            self._graphs.append(self._recorded(recorder, most_sequences, most_tokens, width))
        self.drafter.capture(recorder, most_sequences, most_tokens, step_tokens)

    def _graphs_of(self, packed: Packed) -> DecodeGraphs | None:
        """None where drafts are in doubt: the rule wants the logits, which a graph keeps to itself."""
        return None if self._doubt is not None else super()._graphs_of(packed)

    def _plan(self, batch: Batch) -> Plan:
        self._tables.begin(batch)
        drafts = {sample.request: sample.drafts for sample in batch.sampled}
        prefills, decodes, verify = by_width(
            batch.entries, lambda entry: drafts.get(entry.request, 0) > 0, self.model.windows
        )
        draws: list[Draw] = []
        end = 0
        for req, tokens, past in (*prefills, *decodes, *verify):
            end += tokens
            if req in drafts:
                count = drafts[req]
                draws += [Draw(end - 1 - back, req, past + tokens - back) for back in range(count, -1, -1)]
        self._doubt = self._doubted(draws, drafts) if self._rejects and any(drafts.values()) else None
        return self._packed(self._part(prefills, []), self._part(decodes, []), draws, self._part(verify, []))

    def _doubted(self, draws: list[Draw], drafts: dict[Request, int]) -> Doubt:
        """What the rule needs of the step's drafts: of each request, all draws but the last are verified ones."""
        left = dict(drafts)
        rows, seeds, positions, places = [], [], [], []
        q: list[Tensor] = []
        for at, (_, req, place) in enumerate(draws):
            own = self.sequences.of(req)
            if left[req] == drafts[req]:
                q += self.drafter.distributions(req, drafts[req])
            left[req] -= 1
            if left[req] < 0:
                continue
            rows.append(at)
            seeds.append(own.seed)
            positions.append(place)
            places.append(own.start + place)
        seed, position = np.array(seeds, np.int64), np.array(positions, np.int64)
        ids = self.sequences.tokens(np.array(places, np.int64)).astype(np.int64)
        device = self.model.device
        return Doubt(
            torch.tensor(rows, device=device),
            torch.from_numpy(ids).to(device),
            q,
            uniforms(seed, position, ACCEPT).to(device),
            uniforms(seed, position, RESIDUAL).to(device),
        )

    def _launch(self, packed: Packed, batch: Batch | None) -> Tensor:
        if batch is not None:
            self.drafter.move(batch)
        return super()._launch(packed, batch)

    def _draw(self, logits: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
        """The target's own tokens [R]; behind them, where drafts are in doubt, whether each stays [R], and what would
        stand in its place [R]."""
        tokens = super()._draw(logits, seeds, positions)
        doubt, self._doubt = self._doubt, None
        if doubt is None:
            return tokens
        p, q = distribution(logits[doubt.rows], self._sampling), torch.stack(doubt.q)
        answer = torch.zeros((3, len(tokens)), dtype=torch.int64, device=tokens.device)
        answer[0] = tokens
        answer[1, doubt.rows] = accepts(p, q, doubt.drafts, doubt.accept).long()
        answer[2, doubt.rows] = drawn(rest(p, q), doubt.residual)
        return answer.flatten()

    def _verify(self, batch: Batch, plan: Plan, answer: Ints) -> dict[Request, int]:
        """Take in what each request's step gave; returns how many drafts of each stayed."""
        count = len(plan.places)
        doubted = len(answer) > count and plan.picked is None and self._rejects
        tokens = answer[:count] if plan.picked is None else answer[plan.picked]
        check_drawn(plan.requests, tokens)
        first: dict[Request, int] = {}
        for at, req in enumerate(plan.requests):
            first.setdefault(req, at)
        right = {}
        for req, drafts, _, real in batch.sampled:
            rows = slice(first[req], first[req] + drafts + 1)
            own, places = tokens[rows].copy(), plan.places[rows]
            guesses = self.sequences.tokens(places[:drafts])
            stays = own[:drafts] == guesses
            if doubted and drafts:
                stays, instead = answer[count:][rows][:drafts] > 0, answer[2 * count :][rows]
                own[:drafts] = np.where(stays, guesses, instead[:drafts])
            right[req] = 0 if not real else drafts if stays.all() else int(stays.argmin())
            self.sequences.put(places[: right[req] + 1], own[: right[req] + 1])
        return right


def _rows(batch: Batch, right: dict[Request, int]) -> list[DraftingRow]:
    sampled = {sample.request: sample for sample in batch.sampled}
    rows = []
    for req, tokens, past in batch.entries:
        sample = sampled.get(req)
        if sample is None:
            rows.append(DraftingRow(req, tokens, past, 0, 0, 0))
            continue
        row = DraftingRow(req, tokens, past, sample.drafts, right[req], sample.next_drafts)
        ended = row.certain + 1 >= req.prompt_tokens + req.output_tokens
        rows.append(row._replace(wanted=0) if ended else row)
    return rows


Split = tuple[list[Entry], list[Entry], list[Entry]]


def by_width(entries: Iterable[Entry], decodes: Callable[[Entry], Any], windows: Iterable[int]) -> Split:
    """(prompts, rows of one token, rows of several tokens); `decodes` says who of several is no prompt.

    Rows of more tokens than decode attention takes are run as prompts. So are rows of different widths where a layer
    has one of `windows`: a query that fills up a shorter row would attend what is behind the window of its first token.
    """
    prefills: list[Entry] = []
    single: list[Entry] = []
    several: list[Entry] = []
    for entry in entries:
        if entry.tokens == 1 and entry.past > 0:
            single.append(entry)
        elif entry.tokens <= MOST_TOKENS and decodes(entry):
            several.append(entry)
        else:
            prefills.append(entry)
    if any(windows) and len({entry.tokens for entry in several}) > 1:
        return prefills + several, single, []
    return prefills, single, several
