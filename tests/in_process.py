"""Commands within the test process: a start of Python costs a second, most of it imports.

For what a command prints and how it ends. Where signals, a terminal or the process itself
are the subject, tests start a process (`start_program`).
"""

import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest import mock

import structlog


def run_here(
    main: Callable[[], object],
    program: str,
    arguments: tuple[str, ...],
    *,
    environment: Mapping[str, str],
    folder: Path,
) -> CompletedProcess[str]:
    """Runs a command as a process would, without one.

    Args:
        main: The command's `main`, which reads sys.argv.
        program: Its name in usage messages.
        arguments: The words after its name.
        environment: All variables that it finds.
        folder: Its working directory.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    argv = [program, *arguments]
    code: object = 0
    with (
        mock.patch.dict(os.environ, environment, clear=True),
        mock.patch.multiple(sys, argv=argv, stdout=out, stderr=err),
        # `python -m pytest` would be the command's name in its help.
        mock.patch.object(sys.modules["__main__"], "__package__", None),
        chdir(folder),
        _same_process_afterwards(),
    ):
        try:
            main()
        except SystemExit as exc:
            code = exc.code
    texts = (stream.buffer.getvalue().decode() for stream in (out, err))
    return CompletedProcess(argv, code if isinstance(code, int) else bool(code), *texts)


@contextmanager
def _same_process_afterwards() -> Iterator[None]:
    """Restores what a command sets for its whole process: logging and the hook of threads."""
    root = logging.getLogger()
    handlers, level, hook = root.handlers, root.level, threading.excepthook
    configured = _structlog_config()
    try:
        yield
    finally:
        root.handlers, threading.excepthook = handlers, hook
        root.setLevel(level)
        # Left alone if nothing has changed: other threads may be writing.
        if _structlog_config() != configured:
            structlog.reset_defaults()
            if configured is not None:
                structlog.configure(**configured)


def _structlog_config() -> dict[str, Any] | None:
    return structlog.get_config() if structlog.is_configured() else None
