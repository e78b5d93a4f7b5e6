"""A value read from files and kept up to date; an invalid change is ignored."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

import structlog

from protos.channel.credential_files import CredentialError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

T = TypeVar("T")
VERSION_DIGITS: Final = 12
# Identity and state of a file; None if it is missing.
Stamp = tuple[int, int, int, int] | None


@dataclass(frozen=True, slots=True)
class FileState:
    """The version of followed files that is in use; *trouble*: why a newer one is not."""

    version: str
    trouble: str = ""


class Followed(Generic[T]):
    """The value that *read* makes of *paths*; every `now` checks whether they have changed.

    Safe to use from several threads: at worst, two of them read the same change.

    Raises:
        CredentialError: *read* fails at the start.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self._paths = paths
        self._read = read
        self._stamps = list(map(stamp, paths))
        self._value = read()
        self.state = FileState(file_version(paths))

    def now(self) -> T:
        """Returns the newest valid value."""
        stamps = list(map(stamp, self._paths))
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self._value = self._read()
            except CredentialError as exc:
                self.state = FileState(self.state.version, str(exc))
                log.warning("changed files are invalid: the old ones stay", problem=str(exc))
            else:
                self.state = FileState(file_version(self._paths))
                log.info("changed files read", files=", ".join(map(str, self._paths)))
        return self._value


def stamp(path: Path) -> Stamp:
    """Identifies the present state of the file behind *path*, links followed."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def file_version(paths: Sequence[Path]) -> str:
    """Returns the first digits of the SHA-256 of the files' content; empty without a file."""
    digest = hashlib.sha256()
    try:
        for path in paths:
            digest.update(path.read_bytes())
    except OSError:
        return ""
    return digest.hexdigest()[:VERSION_DIGITS]
