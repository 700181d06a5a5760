"""`sim` in this process, as a person or a script calls it."""

from __future__ import annotations

import sys

import pytest

from sim.cli.main import main


def sim(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `sim WORDS`."""
    sys.argv = ["sim", *map(str, words)]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The sentence with which `sim WORDS` refuses."""
    code, out, err = sim(capsys, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    return err
