"""A synthetic Chatbot Arena file in the real file's schema, with its published statistics and neutral filler text.

No text, vote, time or user in it is real. What it draws from (sources in traces/data/README.md): dataset card of
lmsys/chatbot_arena_conversations, FastChat's pair weights of June 2023, LMSYS blogs and arXiv 2403.04132 for votes,
languages and outcomes, first-turn lengths of LMSYS chats in Mistral tokens, WildChat for the spread of the daily
shape. Chosen here, since nothing is published: the hour of the daily peak, the launch peak's decay, the tail of users.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.lengths import Quantiles
from traces.schema import InputError
from traces.tokens import BYTES_PER_TOKEN

START_UNIX_S = 1_682_351_591.1322  # 2023-04-24 15:53:11 UTC, the first vote of the release
LAUNCH_WEEK_VOTES, LAUNCH_WEEK_DAYS = 4_700, 7.338  # 4.7 K votes, 24 April to 1 May 2023 (LMSYS blog)
RELEASE_VOTES, RELEASE_DAYS = 33_000, 67.0  # the dataset's rows, April to June 2023
SEED = 2  # of the bundled file: its sample means are near the published ones

NEXT_TURN, MOST_TURNS = 1 / 6, 11  # mean 1.2 turns
PROMPT_MU, PROMPT_SIGMA, PROMPT_MOST = 3.1, 1.35, 700
LENGTH_CORRELATION = 0.11
ANSWER_TABLE = {0.0: 1, 0.01: 2, 0.05: 9, 0.1: 15, 0.25: 40, 0.5: 131.5, 0.75: 311, 0.9: 473, 0.95: 513, 0.99: 606}
ANSWERS = Quantiles({**ANSWER_TABLE, 1.0: 1024}, scale=0.97)
VOTES_PER_USER = 33_000 / 13_383
DAY_CV, PEAK_HOUR_UTC = 0.58, 18.0
LAUNCH_DECAY_DAYS = 1.0
OUTCOMES = {"model_a": 32.0, "model_b": 32.2, "tie": 18.7, "tie (bothbad)": 17.0}
LANGUAGES = {"English": 0.80, "Chinese": 0.05, "German": 0.03, "Spanish": 0.03, "French": 0.03, "Russian": 0.03}
OTHER_LANGUAGE = "unknown"
MODELS_OF_WEIGHT = {
    1.5: (
        *("gpt-4", "gpt-3.5-turbo", "claude-v1", "claude-instant-v1", "palm-2"),
        *("vicuna-13b", "wizardlm-13b", "gpt4all-13b-snoozy", "guanaco-33b"),
    ),
    1.2: ("koala-13b", "vicuna-7b", "mpt-7b-chat", "oasst-pythia-12b", "RWKV-4-Raven-14B"),
    0.9: ("fastchat-t5-3b", "alpaca-13b", "chatglm-6b"),
    0.3: ("stablelm-tuned-alpha-7b", "dolly-v2-12b"),
    0.1: ("llama-13b",),
}
MODELS = {name: weight for weight, names in MODELS_OF_WEIGHT.items() for name in names}
MODERATION = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening"),
    *("self-harm", "self-harm/instructions", "self-harm/intent"),
    *("sexual", "sexual/minors", "violence", "violence/graphic"),
)
FILLER = "neutral filler text that stands for a message of this length, "
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Launch:
    votes: int = LAUNCH_WEEK_VOTES
    days: float = LAUNCH_WEEK_DAYS

    def __post_init__(self) -> None:
        if not 1 <= self.votes <= 10_000_000:
            raise InputError(f"votes is {self.votes}; it must lie between 1 and 10,000,000")
        if not 0 < self.days <= 36_500:
            raise InputError(f"days is {self.days}; it must lie above 0 and within 100 years")


def lines(launch: Launch, rng: np.random.Generator) -> Iterator[str]:
    """The file's rows as JSON text, in order of time. Same launch and seed, same text.

    Only `rng.random` is used, and arithmetic of the standard library, so that versions of numpy agree.
    """
    stamps = _vote_times(launch, rng)
    users = _users(launch.votes, rng)
    for stamp, user in zip(stamps, users, strict=True):
        yield json.dumps(_row(float(stamp), int(user), rng), separators=(",", ":"))


def _row(stamp: float, user: int, rng: np.random.Generator) -> dict[str, Any]:
    name = bytes(int(256 * draw) for draw in rng.random(16)).hex()
    first = _pick(MODELS, rng)
    second = _pick({model: weight for model, weight in MODELS.items() if model != first}, rng)
    turns = 1
    while turns < MOST_TURNS and rng.random() < NEXT_TURN:
        turns += 1
    sides: tuple[list[dict[str, str]], list[dict[str, str]]] = ([], [])
    for turn in range(turns):
        asked, *answered = _lengths(rng)
        question = {"content": _text(f"{name[:6]}q{turn}", asked), "role": "user"}
        for side, tokens in zip(sides, answered, strict=True):
            side += [question, {"content": _text(f"{name[:6]}r{turn}", tokens), "role": "assistant"}]
    language = _pick({**LANGUAGES, OTHER_LANGUAGE: 1 - sum(LANGUAGES.values())}, rng)
    return {
        "question_id": name,
        "model_a": first,
        "model_b": second,
        "winner": _pick(OUTCOMES, rng),
        "judge": f"arena_user_{user}",
        "conversation_a": sides[0],
        "conversation_b": sides[1],
        "turn": turns,
        "anony": True,
        "language": language,
        "tstamp": round(stamp, 4),
        "openai_moderation": {
            "categories": dict.fromkeys(MODERATION, False),
            "category_scores": dict.fromkeys(MODERATION, 0.0),
            "flagged": False,
        },
        "toxic_chat_tag": {
            "roberta-large": {"flagged": False, "probability": 0.0},
            "t5-large": {"flagged": False, "score": 0.0},
        },
        "synthetic": True,
    }


def _lengths(rng: np.random.Generator) -> tuple[int, int, int]:
    """Tokens of a question and of both answers; each answer is slightly correlated with the question."""
    normal = NormalDist()
    draws = [normal.inv_cdf(min(max(float(draw), 1e-12), 1 - 1e-12)) for draw in rng.random(3)]
    asked = round(math.exp(PROMPT_MU + PROMPT_SIGMA * draws[0]))
    own = math.sqrt(1 - LENGTH_CORRELATION**2)
    levels = [normal.cdf(LENGTH_CORRELATION * draws[0] + own * draw) for draw in draws[1:]]
    one, other = ANSWERS.at(np.array(levels)).tolist()
    return min(max(asked, 2), PROMPT_MOST), one, other


def _text(tag: str, tokens: int) -> str:
    """Filler of exactly `tokens` times 4 bytes, opened by a tag, so that no two conversations share text."""
    size = tokens * BYTES_PER_TOKEN
    return (f"{tag} " + FILLER * (size // len(FILLER) + 1))[:size]


def _vote_times(launch: Launch, rng: np.random.Generator) -> Floats:
    """Unix seconds of the votes, the first at the launch: a Poisson process given its count, whose rate follows a
    cosine over the day (CV 0.58) and a launch peak that decays within a day.
    """
    edges = np.linspace(0.0, launch.days, math.ceil(launch.days * 96) + 1)  # quarters of an hour
    hour = (START_UNIX_S / 3600 + (edges[:-1] + edges[1:]) * 12) % 24
    shape = 1 + DAY_CV * math.sqrt(2) * np.cos((hour - PEAK_HOUR_UTC) * math.pi / 12)
    shape *= 1 + np.exp(-edges[:-1] / LAUNCH_DECAY_DAYS)
    passed = np.concatenate([[0.0], np.cumsum(shape)])
    days = np.interp(np.sort(rng.random(launch.votes)) * passed[-1], passed, edges)
    times: Floats = START_UNIX_S + (days - days[0]) * 86_400
    return times


def _users(votes: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """The user of each vote: 2.47 votes a user in the mean, every user once at least, the others by Zipf's law."""
    users = max(1, round(votes / VOTES_PER_USER))
    more = np.cumsum(1 / np.arange(1, users + 1))
    again = np.searchsorted(more, rng.random(votes - users) * more[-1])
    all_votes = np.concatenate([np.arange(users), np.minimum(again, users - 1)])
    return all_votes[np.argsort(rng.random(votes), kind="stable")]


def _pick(weights: dict[str, float], rng: np.random.Generator) -> str:
    left = float(rng.random()) * sum(weights.values())
    for name, weight in weights.items():
        left -= weight
        if left < 0:
            return name
    return next(reversed(weights))
