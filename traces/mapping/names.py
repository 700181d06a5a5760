"""What a column of a log may mean: the fields of a request, and the names under which logs have them.

The names are those of the files and tools that were met: OpenAI and Anthropic (usage), LiteLLM, Helicone, Langfuse,
OpenTelemetry, Ollama, vLLM, TGI, Vidur, Splitwise, Azure, and plain words. Spelling, case and units at the end of a
name do not matter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LogField:
    """A field of a request: what it means, the names that say so (the best first), and the kinds that it may have.

    `texts` are names of what is to be counted, not of a count.
    """

    meaning: str
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    texts: tuple[str, ...] = ()


TARGETS: Mapping[str, LogField] = {
    "arrival": LogField(
        "when the request came",
        (
            *("arrivals", "arrivaltime", "arrivaltimestamp", "arrival", "arrivedat", "requesttime", "requesttimestamp"),
            *("requestcreatedat", "requeststarttime", "requeststart", "receivedat", "receivedtime", "submittime"),
            *("submittedat", "timestamp", "starttimestamp", "starttime", "startedat", "start", "ts", "tstamp"),
            *("createdat", "createdtime", "creationtime", "created", "time", "datetime", "received", "when", "date"),
        ),
        ("whole", "number", "stamp"),
    ),
    "prompt": LogField(
        "tokens of the prompt, or its text",
        (
            "inputsequencelength",
            *("prompttokens", "inputtokens", "prompttokencount", "inputtokencount", "promptlength", "inputlength"),
            *(
                "promptlen",
                "inputlen",
                "numprompttokens",
                "numinputtokens",
                "inputsequencelength",
                "nprompttokens",
                "ninputtokens",
            ),
            *("numprefilltokens", "prefilltokens", "contexttokens", "contextlength", "requesttokens", "inputtoks"),
            *("prompttoks", "promptsize", "inputsize", "tokensin", "tokensinput", "tokensprompt", "promptevalcount"),
            *("isl", "nativetokensprompt", "promptntokens", "lenprompt", "querytokens"),
        ),
        ("whole", "text", "messages", "ids"),
        ("prompt", "messages", "input", "prompttext", "inputtext", "textinput", "question", "query", "instruction"),
    ),
    "output": LogField(
        "tokens of the answer, or its text",
        (
            "outputsequencelength",
            *("outputtokens", "completiontokens", "outputtokencount", "completiontokencount", "candidatestokencount"),
            *(
                "outputlength",
                "completionlength",
                "outputlen",
                "completionlen",
                "numoutputtokens",
                "outputsequencelength",
            ),
            *("numcompletiontokens", "numdecodetokens", "decodetokens", "numgeneratedtokens", "generatedtokens"),
            *("generationtokens", "responsetokens", "responselength", "outputtoks", "tokensout", "tokensoutput"),
            *("tokenscompletion", "outputsize", "evalcount", "osl", "nativetokenscompletion", "ngeneratedtokens"),
            *("noutputtokens", "answertokens", "lenoutput"),
        ),
        ("whole", "text", "messages", "ids"),
        ("completion", "output", "response", "answer", "generation", "outputtext", "responsetext", "content"),
    ),
    "session": LogField(
        "the conversation that it belongs to",
        ("sessionid", "conversationid", "session", "conversation", "chatid", "threadid", "dialogid"),
        ("whole", "text", "stamp"),
    ),
    "end": LogField(
        "when its answer ended",
        (
            *("endtime", "endtimestamp", "endedat", "finishedat", "finishtime", "completedat", "completiontime"),
            *("responsecreatedat", "end"),
        ),
        ("whole", "number", "stamp"),
    ),
    "duration": LogField(
        "how long its answer took, from arrival to last token",
        ("elapsedtime", "elapsed", "duration", "latency", "e2elatency", "requestduration", "totallatency"),
        ("whole", "number"),
    ),
    "think": LogField(
        "the pause after the answer before it in its session",
        ("think", "thinktime", "thinking"),
        ("whole", "number"),
    ),
    "model": LogField("the model asked", ("model", "modelname", "requestmodel", "modelid", "responsemodel"), ("text",)),
    "adapter": LogField(
        "the adapter (LoRA) asked",
        ("adapter", "adaptername", "adapterid", "lora", "loraname", "loraid", "loraadapter", "loraintid"),
        ("text", "whole"),
    ),
    "samples": LogField("answers to one prompt (n)", ("samples", "numsamples", "n"), ("whole",)),
    "priority": LogField("smaller goes first", ("priority",), ("whole",)),
    "status": LogField(
        "whether it was answered; failed requests are left out",
        ("status", "statuscode", "responsestatus", "responsestatuscode", "httpstatus", "httpstatuscode"),
        ("whole", "text"),
    ),
}
REQUIRED = ("prompt", "output")

_UNITS: Mapping[str, str] = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("ms", "msec", "msecs", "milli", "millis", "millisecond", "milliseconds"), "ms"),
    **dict.fromkeys(("us", "usec", "usecs", "micro", "micros", "microsecond", "microseconds"), "us"),
    **dict.fromkeys(("ns", "nsec", "nsecs", "nano", "nanos", "nanosecond", "nanoseconds"), "ns"),
}
_QUIET = {"unix", "epoch", "utc", "iso", "iso8601", "in", "since"}
"""Words at the end of a time's name that say nothing of what it is the time of."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def words(name: str) -> list[str]:
    """The words of a name, in small letters: `startTimeUnixNano` and `start_time_unix_nano` are alike."""
    return [word.lower() for word in _WORD.findall(name)]


def unit_of(name: str) -> str:
    """The unit of time that the end of a name says (s, ms, us, ns), or nothing."""
    told = words(name)
    return _UNITS.get(told[-1], "") if len(told) > 1 else ""


def rank(path: str, target: str) -> int | None:
    """The place of a column's name among those of a field, less for a better one; None where it is none of them.

    Of a path its last steps count: `response.body.usage.prompt_tokens` is called `prompt_tokens`.
    """
    field = TARGETS[target]
    steps = path.removesuffix(".value").split(".")
    known = (*field.names, *field.texts)
    called = ["".join(_bare(" ".join(steps[-count:]), field)) for count in range(min(3, len(steps)), 0, -1)]
    places = [known.index(name) for name in called if name in known]
    return min(places) if places else None


def counts(path: str, target: str) -> bool:
    """Whether a name among those of a field says a count, not a text to be counted."""
    place = rank(path, target)
    return place is not None and place < len(TARGETS[target].names)


def _bare(name: str, field: LogField) -> list[str]:
    """The words of a name, of a time's without those of its unit."""
    told = words(name)
    if "number" in field.kinds:
        while len(told) > 1 and (told[-1] in _UNITS or told[-1] in _QUIET):
            told.pop()
    return told


_SIZES = {"token", "tokens", "tok", "toks", "length", "len", "size"}
_SIDES: Mapping[str, set[str]] = {
    "prompt": {"prompt", "input", "context", "prefill", "request", "in", "query", "question"},
    "output": {"output", "completion", "generated", "generation", "response", "decode", "answer", "out", "reply"},
}
_OTHER = {"cached", "cache", "total", "cost", "price", "rate", "per", "max", "min", "ms", "time", "audio", "image",
          "reasoning", "details", "creation", "read", "rejected", "accepted", "prediction", "id",
          "error", "errors", "bytes", "chars", "characters"}  # fmt: skip
_MOMENT = {"time", "timestamp", "date", "start", "started", "arrival", "arrived", "created", "received", "at", "ts"}
_LATER = {"end", "ended", "finish", "finished", "first", "last", "completed", "completion", "response", "update",
          "updated", "queue", "ttft", "modified", "deadline"}  # fmt: skip


def resembles(path: str, target: str) -> bool:
    """Whether a name says in part what a field is: a length of one side, or a moment that is not a later one."""
    told = {word for step in path.removesuffix(".value").split(".")[-2:] for word in words(step)}
    if target in _SIDES:
        other = _SIDES["output" if target == "prompt" else "prompt"]
        return bool(told & _SIDES[target]) and bool(told & _SIZES) and not told & (other | _OTHER)
    return target == "arrival" and bool(told & _MOMENT) and not told & _LATER
