"""What files mean, followed while they change; a change that makes no sense is not taken."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from protos.channel.credential_files import CredentialError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

T = TypeVar("T")
# Which file a path leads to, and its state; None: there is none.
Stamp = tuple[int, int, int, int] | None


class Followed(Generic[T]):
    """The value that *read* makes of *paths*; looks whether they have changed at every `now`.

    Safe to use from several threads: at worst a change is read twice.

    Raises:
        CredentialError: *read* fails at the start.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self._paths = paths
        self._read = read
        self._stamps = list(map(stamp, paths))
        self._value = read()

    def now(self) -> T:
        """The newest value that made sense."""
        stamps = list(map(stamp, self._paths))
        if stamps != self._stamps:
            self._stamps = stamps
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


def stamp(path: Path) -> Stamp:
    """Tells one state of a file from another; links are followed."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
