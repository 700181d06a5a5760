"""A scheduler in a process of its own, asked over a pipe: one JSON object a line, an answer to each question."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from traces import documents
from traces.schema import InputError

PATIENCE_S = 120.0
"""So long an answer may take; a scheduler takes about a millisecond."""
START_PATIENCE_S = 600.0
"""And so long the first one, before which it is imported: ten to twenty seconds, minutes where others compute."""
LAST_WORDS = 400


class SchedulerLostError(InputError):
    """The other process died, hung, or said what no answer is; the sentence has the question and its last words."""


class SchedulerProcess:
    """Starts `command` and asks it; ends it with `close`, at the latest when this object goes.

    Args:
        who: what the process is to a person.
        patience_s: seconds after which an answer is no longer waited for, the first one (`START_PATIENCE_S`) aside.
    """

    def __init__(self, command: Sequence[str], who: str, *, patience_s: float = PATIENCE_S) -> None:
        self.who = who
        self.questions = 0
        self._patience_s = patience_s
        self._unread = b""
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  (as long as the process)
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words, env=environment
            )
        except OSError as error:
            self._words.close()
            raise SchedulerLostError(f"{who} cannot be started: {error}") from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._asks, self._answers = self._process.stdin, self._process.stdout

    def ask(self, what: str, told: object) -> Mapping[str, Any]:
        """The answer to {what: told}.

        Raises:
            SchedulerLostError: there is none, or it is no object.
            InputError: the other side says why it cannot.
        """
        self.questions += 1
        try:
            self._asks.write(json.dumps({what: told}).encode() + b"\n")
            self._asks.flush()
        except OSError:
            raise self._lost(f"died before it was asked to {what}") from None
        line = self._line(what, self._patience_s if self.questions > 1 else max(START_PATIENCE_S, self._patience_s))
        try:
            answer = documents.json_of(line, self.who)
        except InputError:
            answer = None
        if not isinstance(answer, dict):
            raise self._lost(f"answered {line[:80]!r} when asked to {what}")
        if "error" in answer:
            raise InputError(f"{self.who}: {answer['error']}")
        return answer

    def _line(self, what: str, patience_s: float) -> bytes:
        ends_s = time.monotonic() + patience_s
        while b"\n" not in self._unread:
            left_s = ends_s - time.monotonic()
            if left_s <= 0 or not select.select([self._answers], [], [], left_s)[0]:
                raise self._lost(f"gave no answer in {patience_s:g} s when asked to {what}")
            piece = os.read(self._answers.fileno(), 1 << 16)
            if not piece:
                raise self._lost(f"died when asked to {what}")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _lost(self, how: str) -> SchedulerLostError:
        """The error of question number `questions`; what was compared before stands with whoever compares."""
        self._end()
        self._words.seek(0)
        words = " ".join(self._words.read().decode(errors="replace").split())[-LAST_WORDS:]
        self._words.close()
        said = f"; its last words: {words}" if words else ""
        return SchedulerLostError(f"{self.who} {how} (question {self.questions}){said}")

    def close(self) -> None:
        """End the process, if it has not ended."""
        self._end()
        self._words.close()

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self._asks.close()
        self._process.kill()
        self._process.wait()
        self._answers.close()

    def __del__(self) -> None:
        if hasattr(self, "_asks"):
            self.close()
