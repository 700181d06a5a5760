"""What a report's page says and draws, without its look: a page may be made by other means and say the same."""

from __future__ import annotations

import html
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from . import prints

VERSION = version("foretoken")


def of_page(path: Path) -> dict[str, Any]:
    """The words of a page by heading, and what it draws; not the scenario that it repeats."""
    text = path.read_text().replace(str(path.parent.parent), "")
    data = "".join(re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.S))
    body = re.sub(r"<(script|style|pre)\b.*?</\1>", " ", text, flags=re.S)
    words: dict[str, Any] = {}
    for part in re.split(r"(?=<h[123])", body)[1:]:
        first, _, rest = part.partition("</h")
        heading, inner = (" ".join(html.unescape(re.sub(r"<[^>]*>", " ", one)).split()) for one in (first, rest))
        words[heading if heading not in words else f"{heading} {len(words)}"] = prints.of_text(_without_times(inner))
    return {"words": words, "data": prints.of_text(data)}


def _without_times(text: str) -> str:
    """Without how fast the simulation ran, and which version it was."""
    text = re.sub(r"Wall time [\d.,]+ \w+", "", text)
    return text.replace(f"foretoken {VERSION}", "foretoken").replace(f"Version {VERSION}", "Version")
