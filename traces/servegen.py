"""ServeGen: the measured parameters of a service's clients, and a seeded trace drawn from them.

Source: Xiang et al., "ServeGen", NSDI 2026, github.com/alibaba/ServeGen, data/<kind>/<model>: for each client
`chunk-N-trace.csv` (windows: start s, requests/s, CV, family, shape, scale) and `chunk-N-dataset.json` (per six hours,
token counts with probabilities, as text). Read from that folder or from a tar of it; nothing is unpacked to disk.
"""

from __future__ import annotations

import bisect
import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from traces import documents, files
from traces.late import pd
from traces.lengths import Empirical
from traces.reader import SYNTHETIC_NOTE
from traces.schema import MAX_REQUESTS, MAX_TOKENS, InputError, Trace

MAX_MEMBER_BYTES = 256 * 2**20
_NAME = re.compile(r"chunk-(\d+)-(trace\.csv|dataset\.json)")
_PAIR = re.compile(r"\s*(\d{1,9})\s*:\s*([0-9.]+(?:[eE][+-]?\d+)?)\s*")
FAMILIES = ("Gamma", "Weibull", "")


@dataclass(frozen=True, slots=True)
class Period:
    """Arrivals of one client from `start_s` on: a renewal process at `rate_per_s`; family "" means silence."""

    start_s: float
    rate_per_s: float
    family: str
    shape: float


@dataclass(frozen=True, slots=True)
class Client:
    """One client: its windows in order of time, and its (input, output) lengths by the second they hold from."""

    number: int
    windows: tuple[Period, ...]
    lengths: Mapping[int, tuple[Empirical, Empirical]]

    def lengths_at(self, time_s: float) -> tuple[Empirical, Empirical]:
        """Those of the last period that begins by then and has any; before the first such, the first."""
        begins = sorted(self.lengths)
        if not begins:
            raise InputError(f"ServeGen client {self.number} sends requests but has no lengths")
        return self.lengths[begins[max(0, bisect.bisect_right(begins, time_s) - 1)]]


def read_clients(path: str | Path) -> list[Client]:
    """The clients of a folder or tar file, by number. Raises InputError naming the file at fault."""
    parts: dict[int, dict[str, bytes]] = {}
    for name, data in _members(Path(path)):
        if match := _NAME.fullmatch(name):
            parts.setdefault(int(match[1]), {})[match[2]] = data
    if not parts:
        raise InputError(f"{path} holds no chunk-N-trace.csv; it is not a folder or tar of ServeGen clients")
    clients = []
    for number in sorted(parts):
        where = f"{path}: chunk-{number}"
        if len(parts[number]) < 2:
            raise InputError(f"{where} lacks its trace.csv or its dataset.json")
        windows = _windows(parts[number]["trace.csv"], f"{where}-trace.csv")
        clients.append(Client(number, windows, _datasets(parts[number]["dataset.json"], f"{where}-dataset.json")))
    return clients


def synthesise(
    clients: Sequence[Client],
    rng: np.random.Generator,
    *,
    start_s: float = 0.0,
    duration_s: float = 600.0,
    rate_scale: float = 1.0,
    name: str = "servegen",
) -> Trace:
    """Requests of all clients from `start_s` for `duration_s`: gaps of each window's family, scaled so that the
    window's rate holds (times `rate_scale`); input and output lengths drawn apart.
    """
    if not (duration_s > 0 and rate_scale > 0 and start_s >= 0):
        raise InputError("ServeGen needs a start of at least 0, and a duration and a rate scale above 0")
    expected = sum(
        window.rate_per_s * rate_scale * max(0.0, min(end_s, start_s + duration_s) - max(window.start_s, start_s))
        for client in clients
        for window, end_s in zip(client.windows, _edges(client)[1:], strict=True)
        if window.family
    )
    if not expected <= MAX_REQUESTS:
        raise InputError(f"that would draw {expected:,.0f} requests; at most {MAX_REQUESTS:,} are drawn")
    times, owners, prompts, outputs = [], [], [], []
    for client in clients:
        for begin, found in _arrivals(client, rng, start_s, start_s + duration_s, rate_scale):
            if len(found):
                given, made = client.lengths_at(begin)
                times.append(found)
                owners.append(np.full(len(found), client.number))
                prompts.append(given.draw(len(found), rng))
                outputs.append(made.draw(len(found), rng))
    if not times:
        raise InputError(f"no ServeGen client sends anything between {start_s:g} s and {start_s + duration_s:g} s")
    arrival = np.concatenate(times)
    order = np.argsort(arrival, kind="stable")
    table = pd.DataFrame(
        {
            "arrival_s": arrival[order] - arrival.min(),
            "prompt_tokens": np.concatenate(prompts)[order],
            "output_tokens": np.concatenate(outputs)[order],
            "source_row": np.arange(1, len(arrival) + 1),
        }
    )
    note = (
        f"Drawn from {len(set(np.concatenate(owners).tolist()))} ServeGen clients, seconds {start_s:g} to "
        f"{start_s + duration_s:g} of their day, rate x {rate_scale:g}; gaps are scaled to each window's rate."
    )
    return Trace(table, name=name, kind="servegen", synthetic=True, notes=(SYNTHETIC_NOTE, note))


def _arrivals(
    client: Client, rng: np.random.Generator, start_s: float, end_s: float, scale: float
) -> Iterator[tuple[float, npt.NDArray[np.float64]]]:
    """(window start, times in it). Gaps run on across windows, so that every window keeps its rate on average."""
    ahead: float | None = None  # mean gaps until the next arrival
    for window, window_end in zip(client.windows, _edges(client)[1:], strict=True):
        begin, end = max(window.start_s, start_s), min(window_end, end_s)
        if end <= begin or window.rate_per_s <= 0 or not window.family:
            continue
        rate = window.rate_per_s * scale
        if ahead is None:
            ahead = _phase(window, rng)
        room = (end - begin) * rate
        found = []
        while ahead < room:
            gaps = _unit_gaps(window, max(16, int(room - ahead) + 16), rng)
            points = ahead + np.concatenate([[0.0], np.cumsum(gaps)])
            inside = int(np.searchsorted(points, room))
            found.append(points[:inside] if inside < len(points) else points[:-1])
            ahead = float(points[min(inside, len(points) - 1)])
        ahead -= room
        yield begin, begin + np.concatenate([*found, np.empty(0)]) / rate


def _edges(client: Client) -> list[float]:
    """Where its windows begin, and where the last one ends."""
    begins = [window.start_s for window in client.windows]
    return [*begins, 2 * begins[-1] - begins[-2]]


def _phase(window: Period, rng: np.random.Generator) -> float:
    """Mean gaps from a random moment to the next arrival of a process that has run for long."""
    passed = np.cumsum(_unit_gaps(window, 1000, rng))
    moment = rng.random() * passed[-1]
    return float(passed[np.searchsorted(passed, moment)] - moment)


def _unit_gaps(window: Period, count: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Gaps of the window's family with mean 1."""
    if window.family == "Gamma":
        return rng.gamma(window.shape, 1 / window.shape, count)
    return rng.weibull(window.shape, count) / math.gamma(1 + 1 / window.shape)


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    if not files.is_dir(path):
        yield from files.members(path, MAX_MEMBER_BYTES)
        return
    for item in sorted(path.rglob("chunk-*")):
        yield item.name, files.content(item, MAX_MEMBER_BYTES)


def _windows(data: bytes, where: str) -> tuple[Period, ...]:
    found: list[Period] = []
    for line, row in enumerate(csv.reader(io.StringIO(data.decode("utf-8", errors="replace"))), start=1):
        try:
            start, rate, _, family, shape, _ = row
            window = Period(float(start), float(rate), family, float(shape))
        except ValueError:
            raise InputError(f"{where} line {line}: expected start, rate, CV, family, shape, scale") from None
        active = window.rate_per_s > 0 and bool(window.family)
        if not (0 <= window.start_s < math.inf and 0 <= window.rate_per_s < 1e6 and family in FAMILIES):
            raise InputError(f"{where} line {line}: start and rate must be 0 or more, the family Gamma or Weibull")
        if active and not 0 < window.shape < math.inf:
            raise InputError(f"{where} line {line}: shape is {shape}; it must be above 0")
        if found and window.start_s <= found[-1].start_s:
            raise InputError(f"{where} line {line}: windows must be in order of time")
        found.append(window)
    if len(found) < 2:
        raise InputError(f"{where} holds fewer than two windows")
    return tuple(found)


def _datasets(data: bytes, where: str) -> dict[int, tuple[Empirical, Empirical]]:
    try:
        raw = documents.loads(data)
        texts = {int(begin): (item["input_tokens"], item["output_tokens"]) for begin, item in raw.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where} is not the lengths of a ServeGen client ({error!r})") from None
    found = {}
    for begin, (given, made) in texts.items():
        pair = _distribution(given, where), _distribution(made, where)
        if pair[0] is not None and pair[1] is not None:
            found[begin] = pair[0], pair[1]
    return found


def _distribution(text: object, where: str) -> Empirical | None:
    """`{45: 0.0096, 46: 0.0117}` as values and weights; None where it is empty. 0 tokens become 1."""
    if not isinstance(text, str) or text[:1] != "{" or text[-1:] != "}":
        raise InputError(f"{where}: lengths must be a text such as '{{45: 0.0096, 46: 0.0117}}'")
    if not text[1:-1].strip():
        return None
    values, weights = [], []
    for part in text[1:-1].split(","):
        match = _PAIR.fullmatch(part)
        if match is None or int(match[1]) > MAX_TOKENS:
            raise InputError(f"{where}: {part.strip()[:40]!r} is not a token count with its probability")
        values.append(max(1, int(match[1])))
        weights.append(float(match[2]))
    return Empirical(tuple(values), tuple(weights)) if sum(weights) > 0 else None
