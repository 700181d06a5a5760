"""Live runs that draft, under the watch of `live_kit`: the drafter's cache is poisoned where nobody holds it, too."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from drafting_kit import Drafts
from live_kit import LIMITS, POOL, Deployment, facts, poison, tiny

from backend.cache.kvcache import KvCache
from backend.drafting.draft_model import DraftModel
from backend.drafting.drafting import DraftingLive, Ground, Proposing
from backend.drafting.ngram import Ngram
from backend.live.live import Live
from backend.live.prompts import Prompts
from backend.model.model import Model
from sim.allocators.windowed import Windowed
from sim.engine.drafting import DraftingEngine
from sim.engine.engine import Engine


@cache
def truncated(family: str = "llama", window: int = 0, sinks: int = 0) -> Model:
    """The first layer of `tiny`, and its head: right about some tokens."""
    model = tiny(family, window, sinks)
    weights = replace(model.weights, layers=model.weights.layers[:1])
    spec = replace(model.spec, name="first layer", layers=1)
    return Model(spec, model.config, weights, windows=model.windows[:1], sinks=sinks)


@dataclass
class Drafting(Deployment):
    """A deployment that drafts: by prompt lookup, or by `draft`."""

    setup: Drafts = field(default_factory=Drafts)
    draft: Model | None = None
    lookup: tuple[int, int] = (1, 2)
    drafter: DraftModel | None = None

    def executor(self, cache: KvCache, engine: Engine, prompts: Prompts) -> Live:
        assert isinstance(engine, DraftingEngine)

        def make(ground: Ground) -> Proposing:
            if self.draft is None:
                return Ngram(ground, *self.lookup)
            own = KvCache.allocate(self.draft.spec, cache.blocks, cache.block_tokens)
            poison(own, range(cache.blocks + 1))
            self.further[:] = [own]
            self.drafter = DraftModel(
                self.draft,
                own,
                ground,
                engine.allocator,
                self.sampling,
                64,
                host_blocks=self.setup.host_blocks,
                eager=isinstance(engine.allocator, Windowed),
            )
            return self.drafter

        told = facts(engine, self.setup)
        return DraftingLive(
            self.model, cache, prompts, self.sampling, drafter=make, drafts=engine.proposer.most, **told
        )


def drafts(base: str = "chunked", allocator: str = "paged", k: int = 3, **settings: Any) -> Drafts:
    most = {"lookahead": True, "pool": POOL, "limits": LIMITS, **settings}
    return Drafts("speculative", allocator, base=base, k=k, **most)
