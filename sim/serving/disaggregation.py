"""Prompts are computed in some pools and answers decoded in others, which the KV comes to over links.

DistServe (OSDI 24), Splitwise (ISCA 24): a request gives its first token where its prompt is computed. Its KV stays
there until it is sent, and it is sent when the replica that will decode has room for it.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sim.engine.engine import Engine
from sim.engine.flight import Flight, ObservedReplica, Observer
from sim.engine.lost import anew, part
from sim.engine.request import Handover, Request
from sim.serving.cluster import Cluster
from sim.serving.links import Links, Transfer
from sim.serving.ranks import Rank, SharedDoor
from sim.serving.replica import Replica
from sim.serving.snapshot import Server
from traces.late import pd

TRANSFER_COLUMNS = {
    "request": "q", "source": "q", "target": "q", "tokens": "q", "bytes": "d",
    "asked_s": "d", "placed_s": "d", "landed_s": "d",
}  # fmt: skip


@dataclass(slots=True)
class Journey:
    """A request whose prompt is computed in one replica and whose answer is decoded in another."""

    asked: Request
    """As it was sent."""
    prompt: Request
    """What the source computes: what is known, and one token."""
    source: Replica | Rank | None = None
    target: Replica | Rank | None = None
    tokens: int = 0
    size: float = 0.0
    asked_s: float = math.nan
    placed_s: float = math.nan
    transfer: Transfer | None = None


class Disaggregated:
    """Sends requests to where prompts are computed, and from there with their KV to where they are decoded.

    Args:
        decoders: the servers of `decoding`, by place.
        kv_bytes: of so many tokens, on all GPUs of a replica together.
        bytes_per_s: of the links of a replica, by its number.
        layers: of the model, where each layer's KV is sent as soon as it is computed (as if there had been room from
            the start, and nothing else on the links); 0 where KV is sent when the prompt is computed.
        min_prompt_tokens: shorter prompts are computed where they are decoded.
        emptied: told of the number of a replica whose KV of a request has left it.
        touched: told of the number of a replica whose memory changes between its steps.
        left: told of a request that a replica that does not die will not answer, and of its number.
    """

    def __init__(
        self,
        prefilling: Cluster,
        decoding: Cluster,
        decoders: Sequence[Server],
        links: Links,
        *,
        kv_bytes: Callable[[int], float],
        bytes_per_s: Sequence[float],
        layers: int = 0,
        min_prompt_tokens: int = 0,
        emptied: Callable[[int], None] | None = None,
        touched: Callable[[int], None] = lambda index: None,
        left: Callable[[Request, int], None] = lambda req, index: None,
    ) -> None:
        self._prefilling = prefilling
        self._decoding = decoding
        self._decoders = decoders
        self._links = links
        self._kv_bytes = kv_bytes
        self._bytes_per_s = bytes_per_s
        self._layers = layers
        self._min_prompt_tokens = min_prompt_tokens
        self._emptied = emptied
        self._touched = touched
        self._left = left
        self._journeys: dict[int, Journey] = {}
        self._log: dict[str, array[Any]] = {name: array(kind) for name, kind in TRANSFER_COLUMNS.items()}

    def submit(self, req: Request) -> None:
        """Take a request as its source sends it."""
        if req.prompt_tokens < self._min_prompt_tokens:
            self._decoding.submit(req)
            return
        prompt = part(req, req.generated + 1)
        self._journeys[req.id] = Journey(req, prompt)
        self._prefilling.submit(prompt)

    def prefilled(self, prompt: Request, source: Replica | Rank) -> bool:
        """A replica has given the token behind what was known; returns whether that was the last of the answer."""
        journey = self._journeys[prompt.id]
        req = journey.asked
        _tell(req, prompt)
        if req.output_tokens == prompt.output_tokens:
            del self._journeys[prompt.id]
            for name in ("preemptions", "prefix_hit_tokens", "first_scheduled_s", "first_token_s"):
                setattr(prompt, name, getattr(req, name))
            _ours(source).sent(prompt)
            self._touched(source.index)
            return True
        journey.tokens = prompt.known - 1
        req.known, req.confirmed = prompt.known, prompt.generated
        journey.source, journey.asked_s = source, source.clock.now
        source.moving += 1
        self._decoding.when_in(partial(self._choose, journey))
        return False

    def _choose(self, journey: Journey) -> None:
        """Name the replica that decodes, unless the KV was lost since it was computed."""
        req, source = journey.asked, journey.source
        if self._journeys.get(req.id) is not journey:
            return
        assert source is not None
        target = _rank_of(self._decoders[self._decoding.choose(req)])
        req.handover = Handover(journey.tokens, 0, str(source.index), str(target.index))
        journey.target = target
        target.moving += 1
        _ours(target).expect(req)
        self.place(target)

    def place(self, target: Replica | Rank) -> None:
        """Begin to send the KV of those that a replica has room for now."""
        engine = _ours(target)
        if not engine.roster.expected:
            return
        target.settle()
        self._touched(target.index)
        for req in engine.place():
            journey = self._journeys[req.id]
            assert journey.source is not None
            assert req.handover is not None
            journey.placed_s = target.clock.now
            journey.tokens -= req.handover.found_tokens
            journey.size = self._kv_bytes(journey.tokens)
            left = journey.size - self._sent_before(journey)
            arrived = partial(self._landed, req)
            journey.transfer = self._links.send(journey.source.index, target.index, left, arrived)

    def _sent_before(self, journey: Journey) -> float:
        """Bytes that were sent while later layers were computed: never those of the last layer."""
        if not self._layers or journey.source is None or journey.target is None:
            return 0.0
        most = journey.size * (1.0 - 1.0 / self._layers)
        rate = min(self._bytes_per_s[journey.source.index], self._bytes_per_s[journey.target.index])
        computing_s = journey.prompt.finish_s - journey.prompt.first_scheduled_s
        return min(most, rate * computing_s) if computing_s > 0.0 else 0.0

    def _landed(self, req: Request) -> None:
        journey = self._journeys.pop(req.id)
        source, target = journey.source, journey.target
        assert source is not None
        assert target is not None
        row = (req.id, source.index, target.index, journey.tokens, journey.size, journey.asked_s, journey.placed_s)
        for column, value in zip(self._log.values(), (*row, target.clock.now), strict=True):
            column.append(value)
        _ours(source).sent(journey.prompt)
        _ours(target).land(req)
        for replica in (source, target):
            self._freed(replica)
        if self._emptied is not None:
            self._emptied(source.index)

    def died(self, replica: Replica | Rank, unfinished: Sequence[Request]) -> list[Request]:
        """Take note that a replica has died with these; returns all who are to be sent again, as they were asked.

        Whose KV was there, or on its way from there or to there, begins anew with the tokens that its client has.
        """
        again = []
        for req in unfinished:
            journey = self._journeys.pop(req.id, None)
            if journey is None:
                again.append(req)
                continue
            if journey.source is None:
                _tell(journey.asked, req)
            else:
                self._call_off(journey)
                _ours(journey.source).sent(journey.prompt)
                self._freed(journey.source)
                if self._emptied is not None:
                    self._emptied(journey.source.index)
            again.append(anew(journey.asked))
        for journey in [each for each in self._journeys.values() if each.source is replica]:
            asked, target = journey.asked, journey.target
            del self._journeys[asked.id]
            self._call_off(journey)
            if target is not None:
                target.settle()
                _ours(target).abort(asked)
                self._freed(target)
                self.place(target)
                self._left(asked, target.index)
            again.append(anew(asked))
        return again

    def _call_off(self, journey: Journey) -> None:
        if journey.transfer is not None:
            self._links.call_off(journey.transfer)

    def _freed(self, replica: Replica | Rank) -> None:
        """Memory of a request that is on no journey any more is free."""
        self._touched(replica.index)
        replica.moving -= 1
        replica.wake()

    def transfers(self, sent: np.ndarray) -> pd.DataFrame:
        """One row per transfer, in order of landing; `sent`: which requests of the trace were sent."""
        table = pd.DataFrame({name: np.array(column) for name, column in self._log.items()})
        table["request"] = np.flatnonzero(sent)[table["request"].to_numpy(np.int64)]
        return table


class Places(Observer):
    """Asks for room in a replica after each of its steps."""

    disaggregated: Disaggregated | None = None
    """Set once there is one: it is made of the replicas that this observes."""

    def committed(self, replica: ObservedReplica, flight: Flight) -> None:
        assert isinstance(replica, Replica | Rank)
        assert self.disaggregated is not None
        self.disaggregated.place(replica)


def _tell(req: Request, other: Request) -> None:
    """Count with a request what another that computes for it has gone through."""
    req.preemptions += other.preemptions
    if math.isnan(req.first_scheduled_s):
        req.first_scheduled_s, req.prefix_hit_tokens = other.first_scheduled_s, other.prefix_hit_tokens
    if math.isnan(req.first_token_s):
        req.first_token_s = other.first_token_s


def _rank_of(server: Server) -> Replica | Rank:
    """Who decodes there: one rank of several, or the replica."""
    chosen = server.rank() if isinstance(server, SharedDoor) else server
    assert isinstance(chosen, Replica | Rank)
    return chosen


def _ours(replica: Replica | Rank) -> Engine:
    assert isinstance(replica.engine, Engine)
    return replica.engine
