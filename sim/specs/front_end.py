"""The settings of a front end: what stands between clients and an engine, and what its processes cost. It runs none."""

from __future__ import annotations

from dataclasses import dataclass

from sim.specs.bounds import Bound
from sim.specs.settings import Where, check, setting

AUTO, OFF, CUSTOM = "auto", "off", "custom"
ON = Where("front_end.name is not off", lambda scenario: scenario.front_end.name != OFF)
_SIMULATED = Where(
    "executor is predicted", lambda scenario: scenario.executor == "predicted" or not scenario.front_end.on
)


@dataclass(frozen=True, slots=True)
class FrontEndSettings:
    """The server processes before each replica, which clients talk to.

    One process takes in requests and streams their outputs by turns, first come, first served (vLLM's API server is one
    event loop): so many outputs a second keep requests waiting, and requests outputs.

    `sim.scenario.build` puts a name in the place of auto; settings that still have it have no front end.
    """

    name: str = setting(
        AUTO,
        "The front end before each replica: off, custom (all its costs are given), an engine's (sim list engines); "
        "auto is engine.preset's where it is known and executor is predicted.",
        where=_SIMULATED,
    )
    processes: int = setting(1, "Server processes, each with its own queue.", Bound(1, 1000), where=ON)
    request_s: float = setting(
        0.0, "Seconds of a process for each request: HTTP, checks, hand-over to the engine.", Bound(0.0, 60.0), where=ON
    )
    prompt_token_s: float = setting(
        0.0, "Seconds of a process for each token of a prompt: template, tokeniser.", Bound(0.0, 1.0), where=ON
    )
    step_s: float = setting(
        0.0, "Seconds of a process for each step that gave outputs, however many.", Bound(0.0, 60.0), where=ON
    )
    output_s: float = setting(
        0.0, "Seconds of a process for each output of a request in a step: detokenise.", Bound(0.0, 1.0), where=ON
    )
    stream_s: float = setting(
        0.0,
        "Seconds of a process to send an output to its client; what comes while it is behind goes with what it sends.",
        Bound(0.0, 1.0),
        where=ON,
    )
    latency_s: float = setting(
        0.0,
        "Seconds on the way to the engine, and again back to the client, that keep no process busy.",
        Bound(0.0, 60.0),
        where=ON,
    )
    spread: float = setting(
        0.0,
        "Standard deviation of request_s and latency_s as a share of them, drawn by request.",
        Bound(0.0, 10.0),
        where=ON,
    )
    max_num_queued_reqs: int = setting(
        0, "Requests under way at most; others are refused (503).", Bound(0, 10**9, "no limit"), where=ON
    )
    max_num_queued_tokens: int = setting(
        0,
        "While prompts of so many tokens wait for their first output, requests are refused (503).",
        Bound(0, 10**12, "no limit"),
        where=ON,
    )

    def __post_init__(self) -> None:
        check("front_end", self)

    @property
    def on(self) -> bool:
        return self.name not in (AUTO, OFF)
