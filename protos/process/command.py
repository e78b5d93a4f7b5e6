"""Running a command: an error from outside ends in one clear line, never a traceback."""

import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NoReturn

from protos.process.redaction import redact_stderr
from protos.process.visible_text import visible

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2


def run_command(
    program: str,
    command: Callable[[], object],
    *,
    exit_codes: Mapping[type[Exception], int],
    secrets: Callable[[], Iterable[str]],
) -> None:
    """Runs *command*; an expected error becomes a line on stderr and an exit code.

    Args:
        program: Its name, before each line.
        command: A typer application.
        exit_codes: The expected errors; the first class that fits decides.
        secrets: The texts to blank out on stderr.
    """
    redact_stderr(secrets)
    threading.excepthook = _show_unless_channel_closed
    if hasattr(sys.stdout, "reconfigure"):
        # A terminal that lacks a letter shows its number.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except tuple(exit_codes) as exc:
        code = next(code for kind, code in exit_codes.items() if isinstance(exc, kind))
        message = str(exc)
    except OSError as exc:
        code, message = EXIT_FAILED, _os_problem(exc)
    else:
        return
    _fail(program, message, code)


def _show_unless_channel_closed(args: threading.ExceptHookArgs) -> None:
    """Drops the error of gRPC's own thread that polls a channel just after its end.

    grpc/_channel.py, `_poll_connectivity`: no call can end the thread before.
    """
    names = {frame.f_code.co_name for frame, _ in traceback.walk_tb(args.exc_traceback)}
    if not (args.exc_type is ValueError and "_poll_connectivity" in names):
        threading.__excepthook__(args)


def _os_problem(exc: OSError) -> str:
    if exc.filename:
        return f"{exc.filename}: {exc.strerror}"
    # At exit Python would write the rest again, and fail with a traceback.
    # Source: Python documentation, module signal, "Note on SIGPIPE".
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return f"the output can't be written: {exc.strerror or exc}"


def _fail(program: str, message: str, code: int) -> NoReturn:
    for line in message.splitlines():
        sys.stderr.write(f"{program}: {visible(line)}\n")
    raise SystemExit(code)
