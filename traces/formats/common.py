"""Files with common column names (CSV, JSON Lines, JSON, Parquet: such as timestamp, prompt_tokens, output_tokens).

The names are those of `traces.mapping.names` that say counts. This format is asked only where no other knows the file.
Where nothing but gaps tells the unit of times, and for every other name, `sim trace import` asks first.
"""

from __future__ import annotations

from traces.head import Head
from traces.late import pd
from traces.mapping.assign import command
from traces.mapping.guess import apart, guess, misfits, missing
from traces.mapping.names import counts
from traces.mapping.survey import survey
from traces.mapping.table import mapped
from traces.source import Source


def detect(head: Head) -> bool:
    sides = [[key for key in head.keys if counts(key, side)] for side in ("prompt", "output")]
    return all(len(found) == 1 for found in sides) and not head.folder


def common(source: Source) -> pd.DataFrame:
    found = survey(source.path, source.skip_bad)
    assignments = guess(found, {}, exact=True)
    if lacking := missing(assignments):
        source.fail(f"has no column for {' and '.join(lacking)} that holds whole numbers; there are {found.names}")
    if odd := misfits(found, assignments):
        source.fail(
            f"has {odd[0].path} for its times, but they are such as {odd[0].example}; known are numbers, and dates "
            "such as 2023-11-16 18:15:46.680590"
        )
    arrival = next((one for one in assignments if one.target == "arrival"), None)
    if arrival is not None and arrival.doubtful:
        source.fail(
            f"does not say for certain the unit of {arrival.column.path}, which is such as {arrival.column.example}; "
            f"by {command(source.path, assignments)} it is {arrival.unit}"
        )
    if beside := apart(found, assignments):
        source.notes.append(beside)
    source.notes.append(f"Read by its columns: {', '.join(map(str, assignments))}.")
    return mapped(source, assignments)
