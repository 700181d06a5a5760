"""Files that a kill leaves whole: the old one, or the new one."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from traces.schema import InputError


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` in the place of what is there, at once; after an error nothing else is left. Raises InputError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
