"""What files mean, followed while they change; a change that makes no sense is not taken."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from protos.credential_files import CredentialError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

T = TypeVar("T")
Stamp = tuple[tuple[int, int, int] | None, ...]


class Followed(Generic[T]):
    """The value that *read* makes of *paths*; looks whether they have changed at every `now`.

    Safe to use from several threads: at worst a change is read twice.

    Raises:
        CredentialError: *read* fails at the start.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self._paths = paths
        self._read = read
        self._stamp = _stamp(paths)
        self._value = read()

    def now(self) -> T:
        """The newest value that made sense."""
        stamp = _stamp(self._paths)
        if stamp != self._stamp:
            self._stamp = stamp
            self._take()
        return self._value

    def _take(self) -> None:
        files = ", ".join(map(str, self._paths))
        try:
            self._value = self._read()
        except CredentialError as exc:
            log.warning("changed files make no sense: the old ones stay", problem=str(exc))
        else:
            log.info("changed files taken", files=files)


def _stamp(paths: Sequence[Path]) -> Stamp:
    """Tells one state of the files from another."""
    return tuple(map(_stamp_of, paths))


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
