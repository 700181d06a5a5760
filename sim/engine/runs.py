"""Which blocks have which names, by runs: blocks that follow one another are found, held idle and taken as slices.

Where two paths have one name, all before is alike too (`sim.engine.names`). It knows no request, and counts no memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from sim.engine.memory import NULL_BLOCK, Ids, ids_of
from sim.engine.names import Names

Piece = tuple["BlockRun", int, int]
"""(run, start, stop): the names of a path from `start` to before `stop` are the first of the run's."""


class BlockRun:
    """Names that follow one another, each with the block in which it is found; NULL_BLOCK where it is in none now."""

    __slots__ = (
        "after", "before", "blocks", "crowd", "head", "idle", "live", "names", "parting", "shared", "start", "width",
    )  # fmt: skip

    def __init__(self, names: Names, start: int, blocks: Ids, before: BlockRun | None) -> None:
        self.names = names
        """Those of who made it longer last, which had all before in common with who did so before."""
        self.start = start
        """The place of its first name on a path."""
        self.head = names.of(start)
        self.blocks = blocks
        self.live = len(blocks)
        """Names that are found."""
        self.idle: list[Idle] = []
        """Stretches of the queue that hold blocks of these names."""
        self.before = before
        """The run whose names lead here."""
        self.after = 0
        """Runs that this one leads to: as long as there are any it stays, so that they can be reached."""
        self.parting = 0
        """So many of its first names, at most, do paths to those follow: they stay, found or not."""
        self.shared = False
        """Set once a second holder has taken blocks that the first still had. Nobody makes it longer then: who shares a
        prompt's beginning goes on in a run of its own, and all hold equally much of this one."""
        self.width = 0
        """So many of its first blocks have a second holder at least, whom each of them counts."""
        self.crowd = 0
        """Who holds just these too, and is counted here alone."""

    def alone(self) -> None:
        """Let no stretch of the queue have the run's own array: it is to change, or stands for other blocks too."""
        for idle in self.idle:
            if idle.blocks is self.blocks:
                idle.blocks = self.blocks[:]


class Idle:
    """Blocks that nobody holds, in the order of their tokens, which may have a run's first names; nobody will find them
    without a run.

    They are taken from the end; NULL_BLOCK stands where one of a run's has left, and `left` counts the others. Where
    they are all that a run has, their array is the run's.
    """

    __slots__ = ("blocks", "left", "run")

    def __init__(self, run: BlockRun | None, blocks: Ids, left: int) -> None:
        self.run = run
        self.blocks = blocks
        self.left = left


Place = tuple[Idle, int, Ids]
"""(stretch, number of the first of some of its blocks, these blocks)."""


class Found:
    """Which name is found in which block. Content computed twice stands in two: the one named first, then the next."""

    def __init__(self) -> None:
        self.heads: dict[int, BlockRun] = {}
        """The runs by their first names."""
        self.duplicates: dict[int, list[int]] = {}
        self._apart = False
        """Set once a run begins where nothing leads to."""
        self.walked: tuple[Names, list[Piece]] | None = None
        """The last path that was looked for, and the runs that led along it; nothing has changed since."""

    def blocks(self) -> Iterator[int]:
        """All that have a name."""
        for run in self.heads.values():
            yield from filter(None, run.blocks)
        for blocks in self.duplicates.values():
            yield from blocks

    def pieces(self, names: Names, stop: int, at: int = 0) -> list[Piece]:
        """The runs that lead along a path from a place to before `stop`, as far as there are any."""
        heads, pieces = self.heads, []
        while at < stop and (run := heads.get(names.of(at))) is not None:
            most = names.alike(run.names, at, min(len(run.blocks), stop - at))
            pieces.append((run, at, at + most))
            at += most
        return pieces

    def hits(self, names: Names, stop: int) -> int:
        """How many of the first `stop` names are found, up to the first that is not."""
        hits, pieces = 0, self.pieces(names, stop)
        self.walked = names, pieces
        for run, start, hits in pieces:
            if run.live < len(run.blocks):
                blocks = run.blocks[: hits - start]
                if NULL_BLOCK in blocks:
                    return start + blocks.index(NULL_BLOCK)
        return hits

    def hit(self, names: Names, stop: int) -> list[Piece]:
        """The runs that lead along the first `stop` names, all of which are found."""
        if self.walked is None or self.walked[0] is not names:
            return self.pieces(names, stop)
        pieces = self.walked[1]
        if pieces[-1][2] <= stop:
            return pieces
        return [(run, start, min(end, stop)) for run, start, end in pieces if start < stop]

    def name(self, names: Names, blocks: Ids, first: int, stop: int, led: list[Piece]) -> list[Piece]:
        """Let the names of a path from `first` to before `stop` be found in the blocks of the same places.

        `led` are the runs that lead along the path to `first` at most, as far as that is known; returns all to `stop`.
        """
        at = 0
        if led:
            run, start, at = led[-1]
            if start + len(run.blocks) > at:
                led, at = led[:-1], start  # it may lead further
        if self._apart or not led or led[-1][0].after:  # else nothing follows
            for piece in self.pieces(names, stop, at):
                run, start, at = piece
                if at > first:
                    begin = max(first, start)
                    self._fill(run, begin - start, blocks[begin:at])
                led = [*led, piece]
        begin = max(first, at)
        if begin == stop:
            return led
        self.walked = None
        if self._apart:
            middle = next((place for place in range(begin, stop) if names.of(place) in self.heads), stop)
            if middle < stop:
                # What leads to a run that is there has no name, so that it could not be reached.
                led = self.name(names, blocks, first, middle, led)
                return self.name(names, blocks, middle, stop, led)
        last = led[-1][0] if led and begin == at else None
        ends = last is not None and not last.shared and last.start + len(last.blocks) == begin
        if last is not None and ends and last.names.rule == names.rule:
            last.alone()
            last.names = names
            last.blocks += blocks[begin:stop]
            last.live += stop - begin
            return [*led[:-1], (last, last.start, stop)]
        run = BlockRun(names, begin, blocks[begin:stop], last)
        self.heads[run.head] = run
        if last is not None:
            last.after += 1
            last.parting = max(last.parting, begin - last.start)
        if begin > at:
            self._apart = True
            return led
        return [*led, (run, begin, stop)]

    def forget(self, run: BlockRun, first: int, blocks: Ids) -> None:
        """Let nobody find these blocks any more, which may have the run's names from number `first` on."""
        self.walked = None
        run.alone()
        stop, found = first + len(blocks), run.blocks
        if not self.duplicates and first >= run.parting and stop == len(found) == run.live and found[first:] == blocks:
            del found[first:]
            run.live = first
        elif self.duplicates or any(found[first:stop]):
            for number, block in zip(range(first, len(found)), blocks, strict=False):
                if block != NULL_BLOCK:
                    self._forget(run, number, block)
            while len(found) > run.parting and found[-1] == NULL_BLOCK:
                found.pop()
        self._drop(run)

    def empty(self, run: BlockRun) -> None:
        """Let nobody find any block of a run that leads to no other; they are in no other."""
        self.walked = None
        del run.blocks[:]
        run.live = 0
        self._drop(run)

    def _drop(self, run: BlockRun) -> None:
        """Let go of a run that neither finds a block nor leads anywhere, and of those that led to it alone."""
        while not run.live and not run.after and self.heads.get(run.head) is run:
            del self.heads[run.head]
            if run.before is None:
                return
            run = run.before
            run.after -= 1
            if not run.after:
                run.parting = 0

    def only(self, run: BlockRun, first: int, blocks: Sequence[int]) -> list[int]:
        """Of the run's names from number `first` on those that are found in these blocks alone."""
        found = [
            run.names.of(run.start + number)
            for number, block in zip(range(first, len(run.blocks)), blocks, strict=False)
            if block != NULL_BLOCK and run.blocks[number] == block
        ]
        return [name for name in found if name not in self.duplicates]

    def _fill(self, run: BlockRun, first: int, blocks: Ids) -> None:
        run.alone()
        stop = first + len(blocks)
        before = run.blocks[first:stop]
        if not any(before):
            run.blocks[first:stop] = blocks
            run.live += len(blocks)
            return
        for number, (old, new) in enumerate(zip(before, blocks, strict=True), first):
            if old == NULL_BLOCK:
                run.blocks[number] = new
                run.live += 1
            elif old != new and new not in self.duplicates.get(run.names.of(run.start + number), ()):
                self.duplicates.setdefault(run.names.of(run.start + number), []).append(new)

    def _forget(self, run: BlockRun, number: int, block: int) -> None:
        name = run.names.of(run.start + number)
        others = self.duplicates.get(name)
        if run.blocks[number] == block:
            run.blocks[number] = others.pop(0) if others else NULL_BLOCK
            run.live -= run.blocks[number] == NULL_BLOCK
        elif others and block in others:
            others.remove(block)
        if others is not None and not others:
            del self.duplicates[name]


_NONE = ids_of(())


class IdleQueue:
    """Blocks that nobody holds: first in, first out, but that those that are hit leave at once."""

    def __init__(self, found: Found) -> None:
        self._found = found
        self._queue: deque[Idle] = deque()
        self._empty = 0
        self.tell_lost: Callable[[Sequence[int]], None] | None = None
        """Told of keys that nobody finds any more since their blocks were taken, the last one first."""

    def put(self, run: BlockRun, blocks: Ids, left: int) -> None:
        """Add blocks in the order of their tokens, `left` of them not NULL_BLOCK; the last one will be taken first."""
        found = self._found
        if left == len(blocks) and not found.duplicates and self.tell_lost is None and blocks == run.blocks:
            blocks = run.blocks
        idle = Idle(run, blocks, left)
        self._queue.append(idle)
        run.idle.append(idle)

    def put_unnamed(self, blocks: Ids) -> None:
        """Add blocks that nobody will find, in the order of their tokens; the last one will be taken first.

        They are kept as they come, not in one array, which would move whenever it grows, cold as it is.
        """
        self._queue.append(Idle(None, blocks, len(blocks)))

    def of(self, piece: Piece) -> list[Place]:
        """Where blocks in which the names of a piece are found stand here."""
        run, start, stop = piece
        places = []
        for idle in run.idle:
            count = min(stop - start, len(idle.blocks))
            here, found = idle.blocks[:count], run.blocks[:count]
            if here == found:
                places.append((idle, 0, here))
            else:
                pairs = enumerate(zip(here, found, strict=True))
                places += [(idle, at, ids_of([block])) for at, (block, other) in pairs if block == other != NULL_BLOCK]
        return places

    def leave(self, idle: Idle, at: int, blocks: Ids) -> None:
        """Blocks that somebody holds again."""
        run = idle.run
        assert run is not None
        idle.left -= len(blocks)
        if idle.left:
            if idle.blocks is run.blocks:
                idle.blocks = run.blocks[:]
            idle.blocks[at : at + len(blocks)] = ids_of([NULL_BLOCK]) * len(blocks)
            return
        idle.blocks = _NONE
        run.idle.remove(idle)
        self._empty += 1
        if self._empty > 64 and self._empty * 2 > len(self._queue):
            self._queue = deque(each for each in self._queue if each.left)
            self._empty = 0

    def take(self, count: int) -> Ids:
        """The next blocks, which nobody will find any more; there are to be so many."""
        queue, taken = self._queue, _NONE
        while count:
            idle = queue[0]
            blocks, run = idle.blocks, idle.run
            begin = len(blocks) - count
            if begin > 0 and (run is None or (blocks is run.blocks and begin >= run.parting)):
                part = blocks[: begin - 1 : -1]
                del blocks[begin:]
                if run is not None:  # whose blocks these are
                    idle.left = run.live = begin
                    self._found.walked = None
                return taken + part if taken else part
            if run is None or (blocks is run.blocks and not run.parting):
                part = blocks[::-1]
                idle.left = 0
                if run is not None:
                    run.idle.remove(idle)
                    self._found.empty(run)
            elif idle.left:
                part = self._part(idle, run, count)
            else:
                self._empty -= 1
                queue.popleft()
                continue
            if not idle.left:
                queue.popleft()
            count -= len(part)
            taken = taken + part if taken else part
        return taken

    def _part(self, idle: Idle, run: BlockRun, count: int) -> Ids:
        """Up to so many blocks off the end of a stretch, the last one first."""
        run.alone()
        blocks = idle.blocks
        part = blocks[-count:]
        full = idle.left == len(blocks)
        del blocks[-count:]
        lost = self._found.only(run, len(blocks), part) if self.tell_lost is not None else ()
        self._found.forget(run, len(blocks), part)
        if lost and self.tell_lost is not None:
            self.tell_lost(lost[::-1])
        part.reverse()
        if not full:
            part = ids_of([block for block in part if block != NULL_BLOCK])
        idle.left -= len(part)
        if not idle.left:
            run.idle.remove(idle)
        return part
