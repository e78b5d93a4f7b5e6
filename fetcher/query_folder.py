"""The folder of query files; reread whenever a file in it changes."""

import errno
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from fetcher.queries.query import DealQuery, QueryBook, QueryError, read_queries
from protos.process.text_file import NotUtf8Error, decode_text

log = structlog.get_logger(__name__)

# Larger than any selection that Keepa accepts.
LARGEST_FILE_BYTES: Final = 1024 * 1024

Stamps = Mapping[Path, tuple[int, int]]


class QueryFolder:
    """The deal queries in *folder*; a bad file does not stop the others."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamps: Stamps | None = None
        self._book = QueryBook((), ())

    @property
    def book(self) -> QueryBook:
        """The queries and errors that were read last."""
        return self._book

    def find(self, name: str) -> DealQuery | None:
        """Returns the query of that name."""
        return next((query for query in self._book.queries if query.name == name), None)

    def refresh(self) -> bool:
        """Rereads the folder if it has changed; returns whether it has."""
        stamps: dict[Path, tuple[int, int]] = {}
        for path in self._folder.glob("*.json"):
            # A file may be removed after the listing.
            with suppress(OSError):
                status = path.stat()
                stamps[path] = (status.st_mtime_ns, status.st_size)
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        texts: dict[str, str] = {}
        unreadable: list[QueryError] = []
        for path in sorted(stamps):
            try:
                texts[path.stem] = _text(path)
            except (OSError, NotUtf8Error) as exc:
                reason = str(exc.strerror) if isinstance(exc, OSError) else str(exc)
                unreadable.append(QueryError(path.stem, "file", f"{path}: {reason}"))
        book = read_queries(texts)
        self._book = QueryBook(book.queries, (*unreadable, *book.errors))
        return True

    def report(self) -> None:
        """Logs what is wrong with the files, one line each."""
        for error in self._book.errors:
            log.error("query file refused", query=error.query, key=error.key, reason=error.reason)
        for query in self._book.queries:
            for warning in query.warnings:
                log.warning("query warning", query=query.name, warning=warning)
        if not self._book.queries:
            folder = str(self._folder.absolute())
            log.warning("no usable query: put Keepa's selection as *.json there", folder=folder)


def _text(path: Path) -> str:
    with path.open("rb") as file:
        raw = file.read(LARGEST_FILE_BYTES + 1)
    if len(raw) > LARGEST_FILE_BYTES:
        raise OSError(errno.EFBIG, f"larger than {LARGEST_FILE_BYTES} bytes: no query is")
    return decode_text(raw)
