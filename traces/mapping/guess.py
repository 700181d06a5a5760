"""Which column of a log tells which field of a request: by names, checked by values; what is given wins.

A name of the list in `traces.mapping.names` goes first, a name that resembles one next, for times at last the values.
"""

from __future__ import annotations

from collections.abc import Mapping

from traces.chats import APART
from traces.fields import shown
from traces.mapping import status, times
from traces.mapping.assign import TIMED, Assignment, named, typed
from traces.mapping.names import REQUIRED, TARGETS, counts, rank, resembles
from traces.mapping.survey import LogColumn, Survey
from traces.schema import InputError


def guess(survey: Survey, given: Mapping[str, str], *, exact: bool = False) -> tuple[Assignment, ...]:
    """The mapping of a file in the order of `TARGETS`: what `given` says, and guesses for the other fields.

    With `exact`, names of the list that say counts, and nothing else. Raises InputError for columns that `given` names
    and the file has not, for one that is used twice, and for one whose values its field cannot have.
    """
    told = named(given, survey)
    used = {column.path for column, _ in told.values()}
    found = []
    for target in TARGETS:
        if target in told:
            column, unit = told[target]
            found.append(_given(survey, target, column, unit))
        elif target not in given and (guessed := _best(survey, target, used, exact)) is not None:
            used.add(guessed.column.path)
            found.append(guessed)
    if len({one.column.path for one in found}) < len(found):
        raise InputError(f"--map {typed(found)}: a column can tell one field only")
    return tuple(found)


def missing(assignments: tuple[Assignment, ...]) -> list[str]:
    """The fields without which there is no request, and for which no column was found."""
    return [name for name in REQUIRED if name not in {one.target for one in assignments}]


def misfits(survey: Survey, assignments: tuple[Assignment, ...]) -> list[LogColumn]:
    """Columns named like arrivals whose values are none, where nothing else tells arrivals."""
    if "arrival" in {one.target for one in assignments}:
        return []
    used = {one.column.path for one in assignments}
    return [
        one for one in survey.columns if one.path not in used and one.values and rank(one.path, "arrival") is not None
    ]


def apart(survey: Survey, assignments: tuple[Assignment, ...]) -> str:
    """A sentence on columns of cached tokens beside the prompt's, which some interfaces count apart; or nothing."""
    prompt = next((one.column.path for one in assignments if one.target == "prompt"), "")
    beside = [prompt.rpartition(".")[0] + "." * ("." in prompt) + name for name in APART]
    found = [name for name in beside if survey.column(name) is not None]
    if not prompt.endswith("input_tokens") or not found:
        return ""
    return f"Anthropic's interfaces count the tokens of {' and '.join(found)} beside {prompt}; here they are not added."


def _given(survey: Survey, target: str, column: LogColumn, unit: str) -> Assignment:
    if column.first_of_many:
        raise InputError(
            f"--map {target}={column.path}: that is of the first of several objects in each row of {survey.path}; "
            f"--rows PATH takes each object of a list for a row, such as of {column.path.rpartition('.0.')[0]}"
        )
    if not _fits(target, column) and column.kind != "empty":
        kinds = ", ".join(TARGETS[target].kinds).replace("stamp", "date and time")
        raise InputError(
            f"--map {target}={column.path}: {survey.path} has {column.kind} there, such as "
            f"{shown(column.values[0])}; {target} ({TARGETS[target].meaning}) takes {kinds}"
        )
    if unit and (unit == times.ISO) != (column.kind == "stamp") and column.kind != "empty":
        raise InputError(f"--map {target}={column.path}:{unit}: values are such as {shown(column.values[0])}")
    if unit or target not in TIMED:
        return Assignment(target, column, unit, "--map")
    return _timed(target, column, "--map")


def _best(survey: Survey, target: str, used: set[str], exact: bool) -> Assignment | None:
    free = [one for one in survey.columns if one.path not in used and not one.first_of_many and _fits(target, one)]
    listed = [(place, column) for column in free if (place := rank(column.path, target)) is not None]
    if exact:
        listed = [(place, column) for place, column in listed if counts(column.path, target) and column.kind != "text"]
        if target in ("session", "model", "status"):
            listed = [(place, column) for column in free if (place := rank(column.path, target)) is not None]
    if listed:
        # Of a side's columns a count goes before a text, and what is nearer to the top before what lies deeper.
        place, column = min(listed, key=lambda one: (one[0], one[1].path.count(".")))
        return _assigned(target, column, "its name")
    if exact:
        return None
    if alike := [column for column in free if resembles(column.path, target) and _sure(target, column)]:
        return _assigned(target, alike[0], "its name, in part")
    if target == "arrival" and len(alone := [column for column in free if times.is_time(column)]) == 1:
        return _assigned(target, alone[0], "its values alone")
    return None


def _sure(target: str, column: LogColumn) -> bool:
    return times.is_time(column) if target == "arrival" else column.kind == "whole"


def _assigned(target: str, column: LogColumn, why: str) -> Assignment:
    return _timed(target, column, why) if target in TIMED else Assignment(target, column, "", why)


def _timed(target: str, column: LogColumn, why: str) -> Assignment:
    unit = times.moments(column) if target in ("arrival", "end") else times.lengths(column)
    return Assignment(target, column, unit.unit, f"{why}; {unit.why}", unit.guessed)


def _fits(target: str, column: LogColumn) -> bool:
    """Whether the values of a column are such as a field may have."""
    if column.kind not in TARGETS[target].kinds:
        return False
    if target == "status":
        return all(status.success(str(value)) is not None for value in column.values)
    if target in ("arrival", "end", "duration", "think") and column.kind != "stamp":
        return min(times.numbers(column), default=-1.0) >= 0
    if target in REQUIRED and column.kind == "whole":
        return min(times.numbers(column), default=-1.0) >= 0
    return target != "samples" or max(times.numbers(column), default=0.0) <= MAX_SAMPLES


MAX_SAMPLES = 128
"""More answers to one prompt than this are taken for something else."""
