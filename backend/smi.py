"""What nvidia-smi answers about the first GPU. It knows no question."""

from __future__ import annotations

import shutil
import subprocess

ANSWER_S = 10.0
"""A driver that takes longer is taken for one that does not answer."""


def smi(*query: str) -> list[str]:
    """Its lines without heads and units; none where there is no nvidia-smi, it does not know, or it does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run(
            [program, *query, "--format=csv,noheader,nounits", "--id=0"],
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
