"""What a policy or an allocator may declare of itself beside its methods: names, kinds and meanings. It reads no part.

A part that lacks a trait has its default. Whoever reads a trait reads one of these names (a test holds that).
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from dis import get_instructions
from functools import lru_cache
from inspect import isclass, isfunction, isgetsetdescriptor
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple

from traces.schema import InputError


class Trait(NamedTuple):
    """One fact of a part: `kind` is "switch" (True or False), "tokens" (a whole number), "text" or "method"."""

    kind: str
    meaning: str


TRAITS: Mapping[str, Mapping[str, Trait]] = MappingProxyType(
    {
        "policy": {
            "queue_key": Trait("method", "queue_key(request): the order of the waiting queue"),
            "victim": Trait("method", "victim(running): whom to preempt when the KV cache is full"),
            "holds_finished": Trait("switch", "keeps seat and memory of a finished request until no request runs"),
            "every_step": Trait("switch", "decides by the time or by counters: no step repeats unasked"),
            "advances_all": Trait("switch", "advances all where all decode and nobody waits: it need not be asked"),
            "async_by_default": Trait("switch", "the next step is planned while the current one runs"),
            "scans_by_place": Trait("switch", "scans the running list by place, as vLLM 0.19 does"),
            "drafts": Trait("switch", "schedules drafts beside the last tokens"),
        },
        "allocator": {
            "appends": Trait("switch", "a table changes at its end alone, but for the copies that it asks for"),
            "keeps_nothing": Trait("switch", "every step computes all tokens again"),
            "late_outputs": Trait("switch", "set where the next step is planned before outputs are known"),
            "drafting": Trait("switch", "set where a step's tokens are certain only after it"),
            "drops_last_hit": Trait("switch", "set where a drafter needs the last block computed"),
            "hashes_look_ahead": Trait("switch", "set where instead a block's name tells the token behind it"),
            "names_right_drafts_at_once": Trait("switch", "set where right drafts enter the cache when they are known"),
            "lookahead_at_admission": Trait("switch", "set where lookahead_tokens are taken at admission too"),
            "unhashed_blocks_first": Trait("switch", "set where returned blocks without a name are taken next"),
            "watermark_beside_others": Trait("switch", "set where a watermark binds only beside other requests"),
            "lookahead_tokens": Trait("tokens", "set to the slots that a drafter's own KV takes ahead"),
            "layout": Trait("method", "layout(pool, **parameters): what it makes of the memory, without building it"),
            "takes_ahead": Trait("switch", "says what requests need whose coming tokens are known"),
            "undisturbed": Trait("method", "undisturbed(tick, limit): ticks that leave who waits refused as before"),
            "still_refuses": Trait("method", "still_refuses(request): admit would refuse it as it did before"),
            "finds_prefixes": Trait("switch", "another request may find what a prompt left behind"),
            "has_tiers": Trait("switch", "names what it evicts, and holds room for what is loaded from tiers below"),
            "no_swap": Trait("text", "why what it holds cannot be moved to the host"),
        },
        "router": {
            "reads_cache": Trait("switch", "asks what a replica's cache holds of a prompt"),
            "reads_memory": Trait("switch", "asks for a replica's free KV blocks or running tokens"),
            "reads_adapters": Trait("switch", "asks which adapters a replica has in its slots"),
            "follows_sessions": Trait("switch", "asks which session a request is of"),
        },
        "engine": {"async_by_default": Trait("switch", "the next step is planned while the current one runs")},
    }
)
_EXCLUDE = {"policy": (("drafts", "holds_finished", "drafts have no place among padded rows"),)}
"""Of each kind of part, switches that exclude one another, and why."""
_TYPES = {"switch": bool, "tokens": int, "text": str}
_DEFAULTS = {"switch": False, "tokens": 0, "text": "", "method": None}
_KINDS = {"switch": "True or False", "tokens": "a whole number", "text": "a text"}


def declared(part: Any, noun: str) -> dict[str, Any]:
    """By trait what a part, or its class, says of itself; where it is silent, the trait's default."""
    told = {name: _said(part, name) for name in TRAITS[noun]}
    return {name: _DEFAULTS[TRAITS[noun][name].kind] if value is None else value for name, value in told.items()}


def check_traits(part: Any, noun: str, name: str) -> None:
    """Refuse what `part` (a policy, allocator, router or engine, by `noun`) declares wrongly, as it is or as its class.

    An object's own attributes are never listed: that would cost them their places in the object (CPython 3.11), and
    a run a tenth of its speed. What a class sets in `__init__` is read there.

    Raises:
        InputError: a public attribute that is nearly the name of a trait, a trait of another kind, or two that exclude
            one another. What begins with an underscore is the part's own.
    """
    known = TRAITS[noun]
    if isclass(part) or isfunction(part):
        _check_spelling(part, noun, name)  # type: ignore[arg-type]
    for attribute, trait in known.items():
        value, kind = _said(part, attribute), trait.kind
        if value is None:
            continue
        for base in getattr(part, "__mro__", ()):
            if isgetsetdescriptor(vars(base).get(attribute)):
                raise InputError(
                    f"{noun} {name!r} says {attribute} in its class, where the compiled {base.__name__} does not look; "
                    "set it in __init__"
                )
        if kind == "method" and not callable(value):
            raise InputError(f"{noun} {name!r}: {attribute} is {value!r}; it must be a method, {trait.meaning}")
        if kind in _TYPES and type(value) is not _TYPES[kind]:
            raise InputError(f"{noun} {name!r}: {attribute} is {value!r}; it must be {_KINDS[kind]}")
    for first, second, why in _EXCLUDE.get(noun, ()):
        if _said(part, first) and _said(part, second):
            raise InputError(f"{noun} {name!r} has both {first} and {second}: {why}")


@lru_cache(maxsize=64)
def _check_spelling(part: Any, noun: str, name: str) -> None:
    known = TRAITS[noun]
    for attribute in sorted({*dir(part), *_set_at_start(part)}):
        if attribute in known or attribute.startswith("_"):
            continue
        if near := get_close_matches(attribute, known, 1, 0.85):
            raise InputError(
                f"{noun} {name!r} has {attribute!r}, which is no trait of such a part; the nearest is {near[0]!r} "
                f"(known: {', '.join(known)}; begin a name of your own with _)"
            )


def _said(part: Any, trait: str) -> Any:
    """What a part says of a trait, or None; a compiled class has a place for what its objects alone say."""
    value = getattr(part, trait, None)
    return None if isgetsetdescriptor(value) else value


def _set_at_start(part: Any) -> set[str]:
    """Attributes that a class's own `__init__`, or one that it inherits, sets."""
    starts = [vars(base).get("__init__") for base in getattr(part, "__mro__", ())]
    steps = chain.from_iterable(get_instructions(start) for start in starts if isfunction(start))
    return {step.argval for step in steps if step.opname == "STORE_ATTR"}
