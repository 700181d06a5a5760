"""What drafting gave, counted. It schedules nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sim.engine.request import Request


@dataclass(slots=True)
class Tally:
    """What drafting gave, over a run. The step that ends a prompt, whose one token is nobody's draft, is left out."""

    verifies: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Times that a request got tokens from a step of the target model, its first token aside, by (drafts verified, of a
    tree its levels; of these, drafts that were right and so were all before them)."""
    proposals: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Times that drafts were asked for, by (how many; how many the drafter had: a look-up may find nothing)."""
    requests: dict[int, list[int]] = field(default_factory=dict)
    """By request: drafts verified, right ones, and those looked at, which are the right ones and the first wrong."""
    drafting_s: float = 0.0
    """What a real drafter took."""

    def verified(self, req: Request, drafts: int, accepted: int) -> None:
        self.verifies[drafts, accepted] += 1
        self._count(req, drafts, accepted, min(accepted + 1, drafts))

    def proposed(self, wanted: int, drafts: int) -> None:
        self.proposals[wanted, drafts] += 1

    def followed(self, req: Request, drafts: int, right: Sequence[int]) -> int:
        """Count steps of a request that verified so many drafts each, by how many were right, and proposed as many.

        Returns how many were right in all of them.
        """
        steps, accepted, times = len(right), 0, 0
        for some in range(drafts + 1):
            times = right.count(some)
            if times:
                self.verifies[drafts, some] += times
                accepted += some * times
        self._count(req, drafts * steps, accepted, accepted + steps - times)
        self.proposals[drafts, drafts] += steps
        return accepted

    def _count(self, req: Request, drafts: int, accepted: int, looked_at: int) -> None:
        own = self.requests.setdefault(req.id, [0, 0, 0])
        own[0] += drafts
        own[1] += accepted
        own[2] += looked_at

    @property
    def rows(self) -> int:
        return self.verifies.total()

    @property
    def tokens(self) -> int:
        """What these steps gave: right drafts and the target's own token, beyond the answer's end too.

        So vLLM V1 counts its mean acceptance length (`SpecDecodingLogging`).
        """
        return sum(times * (right + 1) for (_, right), times in self.verifies.items())

    @property
    def drafted(self) -> list[int]:
        """Drafts verified, by position in the draft; of a tree, its levels."""
        return _by_position((drafts, drafts, times) for (drafts, _), times in self.verifies.items())

    @property
    def accepted(self) -> list[int]:
        """Of these, drafts that were right and so were all before them; levels where one was."""
        return _by_position((drafts, right, times) for (drafts, right), times in self.verifies.items())

    @property
    def looked_at(self) -> list[int]:
        """Drafts verified, by position, but for those behind a wrong one."""
        return _by_position((drafts, right + 1, times) for (drafts, right), times in self.verifies.items())

    @property
    def asked(self) -> list[int]:
        """Times that a draft was asked for, by position."""
        return _by_position((wanted, wanted, times) for (wanted, _), times in self.proposals.items())

    @property
    def found(self) -> list[int]:
        """Of these, times that the drafter had one."""
        return _by_position((wanted, had, times) for (wanted, had), times in self.proposals.items())


def _by_position(counts: Iterable[tuple[int, int, int]]) -> list[int]:
    """By position, as far as any goes, how often the first so many were: (positions, so many, how often)."""
    told = list(counts)
    longest = max((positions for positions, _, _ in told), default=0)
    return [sum(times for positions, first, times in told if at < min(positions, first)) for at in range(longest)]
