"""Runs a case and holds it against the laws. It draws nothing."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from traces.schema import InputError

from . import laws, laws_folder, laws_summary, twins
from .case import Case, EndlessError
from .laws import Law

LAWS: dict[str, Law] = {**laws.LAWS, **laws_summary.LAWS, **twins.LAWS, **laws_folder.LAWS}
CRASH, SENTENCE, STUCK = "no_crash", "one_sentence", "progress"
MOST_LETTERS = 600


def chosen(seed: int, share: float = 0.4) -> list[str]:
    """All laws of one run, the law of spans, and of the others that take a second run so many, by the seed."""
    rng = Random(f"laws {seed}")
    shares = {**dict.fromkeys(twins.LAWS, share), "spans": 1.0, "folder": share / 4}
    return [name for name in LAWS if rng.random() < shares.get(name, 1.0)]


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
        text = str(error)
        if "the run cannot go on" in text and "in turns" not in text:  # as vLLM's priority policy would among equals
            return Verdict(text, ((STUCK, text),))
        wrong = not text or "\n" in text or len(text) > MOST_LETTERS
        return Verdict(text or "-", ((SENTENCE, text),) if wrong else ())
    except EndlessError as error:
        return Verdict("", ((STUCK, str(error)),))
    except Exception:
        return Verdict("", ((CRASH, _last(traceback.format_exc())),))
    found = []
    for name in LAWS if names is None else [name for name in names if name in LAWS]:
        try:
            complaints = list(LAWS[name](run))
        except Exception:
            found.append((name, f"raised {_last(traceback.format_exc())}"))
            continue
        if complaints:
            found.append((name, "; ".join(complaints[:4])))
    return Verdict("", tuple(found))


def said(case: Case, law: str) -> str:
    """What is wrong with a case by one law; "" where nothing is, or where the case does not run."""
    return dict(check(case, (law,)).broken).get(law, "")


def broken(case: Case, law: str) -> str:
    """What is wrong with a case that once broke a law and has to run; "" where nothing is."""
    verdict = check(case, (law,))
    if verdict.refused and not verdict.broken and law not in (CRASH, SENTENCE, STUCK):
        return f"refused: {verdict.refused}"
    return "; ".join(f"{name}: {text}" for name, text in verdict.broken)


def _last(text: str) -> str:
    """The last place and the exception of a traceback."""
    lines = text.strip().splitlines()
    places = [line.strip() for line in lines if line.startswith("  File")]
    return f"{lines[-1]} [{places[-1] if places else ''}]"
