"""What everything that shows or keeps a run needs of it. It computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from sim.results.percentiles import Itl
from traces.late import pd


class Run(Protocol):
    """What a report needs of a result; the columns are those of docs/metrics.md."""

    @property
    def requests(self) -> pd.DataFrame: ...
    @property
    def steps(self) -> pd.DataFrame: ...
    @property
    def itl(self) -> Itl: ...
    @property
    def summary(self) -> Mapping[str, Any]: ...
