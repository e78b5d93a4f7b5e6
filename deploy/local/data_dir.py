"""The folder for data and logs of a stack; one run uses it at a time."""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.local.errors import StackError


class DataDir:
    """DATA_DIR, locked against other runs for the length of a with block.

    Raises:
        StackError: another run holds it, or it can't be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"
        self.postgres = path / "postgres"
        self.database_url_file = path / "database-url"
        self.broker_database_url_file = path / "broker-database-url"
        self._lock = -1

    def __enter__(self) -> Self:
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StackError(
                f"DATA_DIR: another run uses {self.path}; stop it, or choose another folder"
            ) from None
        except OSError as exc:
            raise StackError(f"DATA_DIR: {self.path} can't be used ({exc.strerror})") from None
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.database_url_file.unlink(missing_ok=True)
        self.broker_database_url_file.unlink(missing_ok=True)
        os.close(self._lock)
