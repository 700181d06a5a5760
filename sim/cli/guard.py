"""The last guard of a command: whatever happens, its user reads a sentence and not a traceback.

Exit codes: 2 for what the user can mend, 70 for a mistake of this program, 130 for Ctrl-C, 141 where nobody reads on.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

import click

from traces.code import USERS
from traces.schema import InputError
from traces.version import product_version

BUG, STOPPED, UNREAD = 70, 130, 141
LONGEST = 4000
"""Letters of a sentence; what is longer quotes a file that is no good."""
SHOW = "FORETOKEN_TRACEBACK"
"""Set in the environment (to anything but 0), it lets the traceback through."""


class Commands(click.Group):
    """A group whose commands may find that nobody reads what they print, which click itself ends with a 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise Unread from None


def version_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --version. It looks when it is asked: the product need not be installed."""

    def tell(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
        if wanted and not ctx.resilient_parsing:
            from sim.engine.build import build  # noqa: PLC0415 - no other command tells it here

            click.echo(f"{ctx.find_root().info_name}, version {product_version()} ({build()})")
            ctx.exit()

    about = "Show the version and exit."
    add = click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=tell, help=about)
    made: Callable[..., Any] = add(command)
    return made


class Unread(Exception):  # noqa: N818 - nothing is wrong
    """The other end of the pipe has gone, as of `| head`."""


def guarded(command: Callable[[], object], *, stopped: str = "stopped") -> None:
    """Call `command` and end the process with its exit code, having told in a sentence why it failed.

    stopped: what is said when Ctrl-C ends it.
    """
    try:
        command()
        sys.stdout.flush()
    except InputError as error:
        _end(f"error: {error}", 2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _end(stopped, STOPPED)
    except (Unread, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be flushed
        sys.exit(UNREAD)
    except Exception as error:
        _failed(error)
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":  # a panic of a library written in Rust
            raise
        _failed(error)


def _failed(error: BaseException) -> None:
    """End the process over an exception that is no answer to the user."""
    if os.environ.get(SHOW, "0") not in ("", "0"):
        traceback.print_exception(error)
    if isinstance(error, MemoryError):
        what, code = "memory ran out; ask for less: a shorter trace (--limit), fewer replicas or KV blocks", 2
    elif isinstance(error, OSError) and error.errno is not None:
        place = f" {error.filename}" if error.filename else ""
        reason = os.strerror(error.errno) if error.errno in errno.errorcode else str(error)
        what, code = f"the system refused{place}: {reason}", 2
    elif line := _in_user_code(error.__traceback__):
        what, code = f"{line}: {_line(error)}; this is code that you named, not Foretoken's", 2
    else:
        what, code = f"this is a bug in Foretoken, please report it: {_line(error)}", BUG
    _end(f"error: {what}{_kept(error)}", code)


def _line(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else text[:297] + "..."


def _in_user_code(trace: TracebackType | None) -> str:
    """The innermost line of the user's own modules that the exception went through; "" where there is none."""
    line = ""
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") in USERS:
            line = f"{trace.tb_frame.f_code.co_filename} line {trace.tb_lineno}"
        trace = trace.tb_next
    return line


def _kept(error: BaseException) -> str:
    """Where the details of a failure were written, as the end of a sentence."""
    import tempfile  # noqa: PLC0415 - of no use where nothing fails

    try:
        number, path = tempfile.mkstemp(prefix="foretoken-", suffix=".txt", text=True)
        with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"foretoken {product_version()}, Python {sys.version.split()[0]} on {sys.platform}\n")
            file.write(f"command: {sys.argv}\n\n")
            file.writelines(traceback.format_exception(error))
    except (OSError, MemoryError):
        return f" ({SHOW}=1 shows the details)"
    return f" (details: {path})"


def _end(text: str, code: int) -> None:
    text = text.encode("utf-8", "backslashreplace").decode()
    with suppress(OSError):  # nobody reads errors either
        click.echo(text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}", err=True)
    sys.exit(code)
