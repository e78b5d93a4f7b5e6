"""Logging of a process: structlog, with other libraries' lines in the same form.

Lines go to stderr: on a terminal as text, elsewhere as JSON, one object per line.
"""

import io
import logging
import sys
from collections.abc import Sequence
from typing import Final, TextIO

import structlog
from opentelemetry import trace
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

from protos.process.redaction import Redaction
from protos.process.settings import LogFormat, LogLevel
from protos.process.visible_text import visible

# Their debug lines hold whole URLs, and the key with them, or repeat the project's own lines.
QUIET: Final = (
    *("urllib3", "requests", "aiohttp.access", "asyncio", "grpc"),
    *("psycopg", "yoyo"),
)

# It logs at every batch and attempt that the collector is away.
REPEATS_ITSELF: Final = "opentelemetry."
SILENCE_S: Final = 300.0


class Seldom(logging.Filter):
    """Passes one line in `SILENCE_S` of each logger that repeats itself."""

    def __init__(self) -> None:
        super().__init__()
        self._passed_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether *record* is to be written."""
        if not record.name.startswith(REPEATS_ITSELF):
            return True
        silent = record.created - self._passed_s.get(record.name, -SILENCE_S) < SILENCE_S
        if not silent:
            self._passed_s[record.name] = record.created
        return not silent


class Renderer:
    """Renders lines and blanks out every secret in them."""

    def __init__(self, render: Processor, secrets: Sequence[str]) -> None:
        self._render = render
        self._redact = Redaction(secrets)

    def __call__(self, logger: WrappedLogger, name: str, event: EventDict) -> str:
        """Returns the line of *event*, with its secrets blanked out."""
        line = self._render(logger, name, event)
        assert isinstance(line, str)
        return self._redact(line)


def add_trace(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Adds the ids of the span in which a line is written: line and span lead to each other."""
    span = trace.get_current_span()
    # A trace that is not recorded, or a span that has ended, can't be looked up.
    if span.is_recording():
        context = span.get_span_context()
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event


def configure(
    level: LogLevel,
    style: LogFormat,
    *,
    secrets: Sequence[str] = (),
    stream: TextIO | None = None,
) -> None:
    """Sends all logging of this process to *stream*, else stderr; call it once, at the start."""
    stream = stream or sys.stderr
    console = style is LogFormat.CONSOLE or (style is LogFormat.AUTO and stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        add_trace,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
    ]
    handler = logging.StreamHandler(stream)
    handler.addFilter(Seldom())
    # JSON escapes control characters; a console line must not hold them.
    prepared = [_make_visible] if console else [structlog.processors.format_exc_info]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *prepared,
                Renderer(_renderer(console=console, colors=stream.isatty()), secrets),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _make_visible(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Shows control and hidden characters of texts as codes; the renderer quotes the rest."""
    return {visible(name): _shown(value) for name, value in event.items()}


def _shown(value: object) -> object:
    match value:
        case str():
            return visible(value)
        case list():
            return [_shown(item) for item in value]
        case tuple():
            # An error's exc_info is a tuple, and must stay one.
            return tuple(_shown(item) for item in value)
        case dict():
            return {visible(str(name)): _shown(item) for name, item in value.items()}
    return value


def _visible_traceback(stream: TextIO, exc_info: ExcInfo) -> None:
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    stream.write(visible(text.getvalue(), lines=True))


def _renderer(*, console: bool, colors: bool) -> Processor:
    if console:
        return structlog.dev.ConsoleRenderer(
            colors=colors,
            sort_keys=False,
            exception_formatter=_visible_traceback,
        )
    return structlog.processors.JSONRenderer(default=str)
