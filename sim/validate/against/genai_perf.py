"""GenAI-Perf's profile_export.json: requests and the pieces of their answers, stamped in nanoseconds, by load.

Source: genai_perf/profile_data_parser (0.0.16). Read are answers of OpenAI's chat and completions endpoints. The file
counts no tokens: where the server's answer tells its `usage` that is taken, else texts are counted with `--tokenizer`,
prompts as GenAI-Perf does, the contents of all messages with blanks between and no template around them. Its last
token is that of the last piece with text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

from sim.validate.against.rows import ANY_COUNT, NotJson, ResultFile, Row, ToolRun, an_object, each, inner, within
from traces import documents
from traces.fields import BadRow, get, real, shown

ABOUT = "GenAI-Perf's profile_export.json"
MEASURED_AT = "client"
CHAT, COMPLETIONS = "v1/chat/completions", "v1/completions"


def detect(file: ResultFile) -> bool:
    found = file.value
    return isinstance(found, dict) and isinstance(found.get("experiments"), list) and "service_kind" in found


def runs(file: ResultFile) -> list[ToolRun]:
    kind, endpoint = file.value.get("service_kind"), str(file.value.get("endpoint") or "")
    if kind != "openai" or (endpoint and endpoint not in (CHAT, COMPLETIONS)):
        raise BadRow(f"it is of {shown(kind)} {shown(endpoint)}; read are openai with {CHAT} or {COMPLETIONS}")
    experiments = [an_object(one, f"experiment {number}") for number, one in enumerate(file.value["experiments"], 1)]
    return [_run(number, one, file.count) for number, one in enumerate(experiments, 1)]


def _run(number: int, experiment: Mapping[str, Any], count: Callable[[str], int] | None) -> ToolRun:
    requests = experiment.get("requests")
    if not isinstance(requests, list):
        raise BadRow(f"experiment {number} has no list of requests")
    told = within(experiment, "experiment")
    label = f"{told.get('mode') or 'experiment'} {told.get('value', number)}".replace("_", " ")
    records = [(f"request {place}", one) for place, one in enumerate(requests)]
    return ToolRun(label, each(records, partial(_row, count)))


def _row(count: Callable[[str], int] | None, where: str, request: dict[str, Any]) -> Row:
    start_ns = _stamp(request.get("timestamp"), "timestamp")
    pieces = list(_pieces(request))
    texts = [(stamp, text) for stamp, text, _ in pieces if text]
    usage = next((told for _, _, told in reversed(pieces) if told), None)
    payload = _json(str(inner(request, "request_inputs").get("payload") or ""), "request_inputs.payload")
    if usage is not None:
        prompt, output = (get(usage, f"{side}_tokens", ANY_COUNT) for side in ("prompt", "completion"))
    elif count is None:
        raise BadRow("its answer tells no usage, so that its tokens are not known; give --tokenizer to count them")
    else:
        prompt, output = count(_prompt(payload)), count("".join(text for _, text in texts)) if texts else 0
    if not texts:
        return Row(where, start_ns / 1e9, prompt, 0, 0.0, 0.0)
    stamps = [stamp for stamp, _ in texts]
    gaps = [(after - before) / 1e9 for before, after in pairwise(stamps)]
    first, last = ((stamp - start_ns) / 1e9 for stamp in (stamps[0], stamps[-1]))
    return Row(where, start_ns / 1e9, prompt, output, first, last, gaps_s=gaps)


def _stamp(value: object, key: str) -> int:
    found = real(value)
    if found is None or found < 0:
        raise BadRow(f"{key} is {shown(value)}; it must be a number of nanoseconds")
    return int(found)


def _pieces(request: Mapping[str, Any]) -> Iterator[tuple[int, str, dict[str, Any] | None]]:
    """(stamp, text, usage) of each event of the answer; one that came in two parts has the stamp of the second."""
    stamps, outputs = request.get("response_timestamps"), request.get("response_outputs")
    if not isinstance(stamps, list) or not isinstance(outputs, list) or len(stamps) != len(outputs):
        raise BadRow("response_timestamps and response_outputs must be lists of the same length")
    rest = ""
    for value, output in zip(stamps, outputs, strict=True):
        stamp = _stamp(value, "response_timestamps")
        *whole, rest = (rest + str(an_object(output, "response_outputs").get("response") or "")).split("\n\n")
        if rest.strip() in ("", "data: [DONE]") or not isinstance(_event(rest), NotJson):
            whole, rest = [*whole, rest], ""
        for event in (text for text in whole if text.strip() and text.strip() != "data: [DONE]"):
            found = _event(event)
            yield stamp, *_told(an_object(found, "a response"))
    if rest:
        raise BadRow("its last response is cut off")


def _event(text: str) -> Any:
    try:
        return documents.loads(text.strip().removeprefix("data:").strip())
    except ValueError as error:
        return NotJson(documents.reason(error))


def _told(event: Mapping[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """The text of one event, and the usage where it has it."""
    usage = event.get("usage")
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    holder = next((one for key in ("delta", "message") if isinstance(one := choice.get(key), dict)), choice)
    text = holder.get("content") or holder.get("text") or ""
    return text if isinstance(text, str) else "", usage if isinstance(usage, dict) else None


def _json(text: str, key: str) -> dict[str, Any]:
    return an_object(_event(text), key) if text else {}


def _prompt(payload: Mapping[str, Any]) -> str:
    messages = payload.get("messages")
    if isinstance(messages, list):
        contents = [one.get("content") for one in messages if isinstance(one, dict)]
        if all(isinstance(one, str) for one in contents):
            return " ".join(contents)  # type: ignore[arg-type]
    prompt = payload.get("prompt")
    if not isinstance(prompt, str):
        raise BadRow("its prompt is no text, so that its tokens cannot be counted")
    return prompt
