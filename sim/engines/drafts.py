"""vLLM's own scheduler where requests propose drafts: what is right is drawn here, what follows is decided there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sim.engine.batch import Batch, Committed, Limits, Outcome, Sampled
from sim.engine.drafting import kv_tokens_with_drafts
from sim.engine.foreseeing import Proposer
from sim.engine.memory import Layout
from sim.engine.request import Request
from sim.engine.tally import Tally
from sim.engines.pipe import SchedulerProcess
from sim.engines.vllm import VllmEngine


class VllmDraftingEngine(VllmEngine):
    """Counts tokens as `sim.engine.drafting.DraftingEngine` does: all drafts are right until the output is there.

    Args: as of `VllmEngine`; settings has `speculative`.
        proposer: how many drafts a request proposes.
    """

    def __init__(
        self,
        process: SchedulerProcess,
        settings: Mapping[str, Any],
        limits: Limits,
        layout: Layout,
        proposer: Proposer,
        *,
        window_tokens: int = 0,
    ) -> None:
        super().__init__(process, settings, limits, layout, window_tokens=window_tokens)
        self.tally = Tally()
        self._proposer = proposer
        self._early: bool = settings["async_scheduling"]
        self._lookahead = proposer.most if settings["speculative"]["method"] == "eagle" else 0

    def _most_blocks(self, req: Request) -> int:
        most = kv_tokens_with_drafts(req, self._limits, self._proposer.most, self._lookahead, early=self._early)
        return self._layout.most_blocks(self.pool.blocks_for(most), 2)

    def _settle(self, batch: Batch, samples: Sequence[Request], said: Mapping[str, Any]) -> None:
        drafts = dict(said["drafts"])
        admitted = set(said["admitted"])
        sampled: list[Sampled] = []
        batch.sampled = sampled
        context = 0
        for req in samples:
            proposed = self._proposer.propose(req, len(self.running))
            # What an admission is padded with is nobody's draft.
            real = req.id not in admitted or req.id not in drafts
            sampled.append(Sampled(req, drafts.get(req.id, 0), proposed, real))
            req.known = req.computed + 1
            context += req.computed if proposed else 0
        counts = [one.next_drafts for one in sampled if one.next_drafts]
        if counts:
            proposals = (len(counts), sum(counts), max(counts))
            batch.shape = batch.shape._replace(proposals=proposals, proposal_context=context)

    def commit(self, batch: Batch, outcome: Outcome, end_s: float) -> Committed:
        first_tokens: list[Request] = []
        ended: list[Request] = []
        right = outcome.accepted or [0] * len(batch.sampled)
        ready = outcome.proposed or [sampled.next_drafts for sampled in batch.sampled]
        said = self._process.ask("update", {"accepted": right, "proposed": ready})
        for (req, drafts, wanted, real), accepted, proposed in zip(batch.sampled, right, ready, strict=True):
            if req.finished:
                continue  # it was scheduled once more before its end was known
            req.known -= drafts - accepted
            if req.seat.seq >= 0:
                req.computed -= drafts - accepted
            if req.confirmed:
                self.tally.verified(req, drafts if real else 0, accepted)
            else:
                first_tokens.append(req)
            given = min(accepted + 1, req.output_tokens - req.confirmed)
            req.confirmed += given
            self.tokens.give(req, batch.first_step)
            self.tokens.same_step += given - 1
            if drafts and real:
                self._proposer.verified(req, drafts, accepted)
            if req.confirmed == req.output_tokens:
                ended.append(req)
            elif req.seat.seq >= 0:
                self.tally.proposals[wanted, proposed] += 1
        return self._ended(batch, first_tokens, ended, said, end_s)
