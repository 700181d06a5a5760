"""How many tokens a text has: by a local tokenizer.json, else by a stated rule. Knows nothing of traces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from traces import files
from traces.schema import InputError

BYTES_PER_TOKEN = 4
MAX_TOKENIZER_BYTES = 256 * 2**20
BYTES_RULE = "Tokens are counted as UTF-8 bytes / 4, rounded up (no tokenizer was given)."


def count_bytes(text: str) -> int:
    """UTF-8 bytes / 4, rounded up, at least 1: a rule of thumb for English text."""
    return max(1, -(-len(text.encode("utf-8", errors="surrogatepass")) // BYTES_PER_TOKEN))


def counter(tokenizer: str | Path | None) -> tuple[Callable[[str], int], str]:
    """(text -> tokens, the rule as a sentence). `tokenizer` is a tokenizer.json or a folder that holds one.

    Special tokens and chat templates are not added. Raises InputError where the file cannot be used.
    """
    if tokenizer is None:
        return count_bytes, BYTES_RULE
    path = Path(tokenizer)
    if files.is_dir(path):
        path = path / "tokenizer.json"
    if not files.exists(path):
        raise InputError(f"{files.named(path)} does not exist; --tokenizer takes a local tokenizer.json")
    told = files.text(path, MAX_TOKENIZER_BYTES)
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415 - an optional dependency
    except ImportError:
        raise InputError("--tokenizer needs the package tokenizers: pip install 'foretoken[tokenizer]'") from None
    try:
        encoder = Tokenizer.from_str(told)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # the library raises plain Exception, and where it panics not even that
        raise InputError(f"{path} is not a usable tokenizer.json ({error})") from None

    def count(text: str) -> int:
        return max(1, len(encoder.encode(text, add_special_tokens=False).ids))

    return (count, f"Tokens are counted with {path.name} of {path.parent.name or '.'}, no special tokens added.")
