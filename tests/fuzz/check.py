"""Runs a case and holds it against the laws. It draws nothing."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from dataclasses import dataclass

from traces.schema import InputError

from . import laws, laws_summary, twins
from .case import Case
from .laws import Law

LAWS: dict[str, Law] = {**laws.LAWS, **laws_summary.LAWS, **twins.LAWS}
CRASH, SENTENCE, STUCK = "no_crash", "one_sentence", "progress"
MOST_LETTERS = 600


@dataclass(frozen=True)
class Verdict:
    """What became of a case: refused with a sentence, or run; `broken` has (law, what it said)."""

    refused: str = ""
    broken: tuple[tuple[str, str], ...] = ()


def check(case: Case, names: Iterable[str] | None = None) -> Verdict:
    """Run a case and hold it against these laws (all of them by default)."""
    try:
        run = case.run()
    except InputError as error:
        said = str(error)
        if "the run cannot go on" in said:
            return Verdict(said, ((STUCK, said),))
        wrong = not said or "\n" in said or len(said) > MOST_LETTERS
        return Verdict(said or "-", ((SENTENCE, said),) if wrong else ())
    except Exception:
        return Verdict("", ((CRASH, _last(traceback.format_exc())),))
    broken = []
    for name in LAWS if names is None else [name for name in names if name in LAWS]:
        try:
            said_by_law = list(LAWS[name](run))
        except Exception:
            broken.append((name, f"raised {_last(traceback.format_exc())}"))
            continue
        if said_by_law:
            broken.append((name, "; ".join(said_by_law[:4])))
    return Verdict("", tuple(broken))


def broken(case: Case, law: str) -> str:
    """What is wrong with a case by one law; "" where nothing is."""
    return dict(check(case, (law,)).broken).get(law, "")


def _last(text: str) -> str:
    """The last place and the exception of a traceback."""
    lines = text.strip().splitlines()
    places = [line.strip() for line in lines if line.startswith("  File")]
    return f"{lines[-1]} [{places[-1] if places else ''}]"
