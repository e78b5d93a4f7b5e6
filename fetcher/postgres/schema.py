"""The schema and its versions, by yoyo-migrations."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import psycopg

from fetcher.postgres.database import Connection, explaining

MIGRATIONS: Final = Path(__file__).parent / "migrations"

# Any number that nobody else takes in this database. Unlike yoyo's own lock it
# goes with the connection, so a killed migration blocks nobody.
LOCK_KEY: Final = 5_077_206_411

LOCK: Final = "SELECT pg_advisory_lock(%s)"
TABLE_EXISTS: Final = "SELECT to_regclass('_yoyo_migration') IS NOT NULL"
APPLIED: Final = "SELECT migration_id FROM _yoyo_migration"


def migrate(database_url: str) -> list[str]:
    """Bring the schema up to date; returns the names of the migrations applied.

    Safe to run from several processes at once: they take turns.

    Raises:
        DatabaseAwayError: Postgres can't be reached.
    """
    # Imported late: only this command pays for yoyo and its SQL parser.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import yoyo  # noqa: PLC0415 - see above

    with explaining(), _taking_turns(database_url):
        backend = yoyo.get_backend(_yoyo_url(database_url))
        with contextlib.closing(backend.connection):
            pending = backend.to_apply(yoyo.read_migrations(str(MIGRATIONS)))
            names = [migration.id for migration in pending]
            backend.apply_migrations(pending)
    return names


def known_migrations() -> set[str]:
    """Names of the migrations that this version of the program brings."""
    files = MIGRATIONS.glob("*.sql")
    return {path.stem for path in files if not path.stem.endswith(".rollback")}


def missing_migrations(connection: Connection) -> set[str]:
    """Migrations that the database lacks."""
    exists = connection.execute(TABLE_EXISTS).fetchone()
    if exists is None or not exists[0]:
        return known_migrations()
    applied = {str(name) for (name,) in connection.execute(APPLIED)}
    return known_migrations() - applied


@contextlib.contextmanager
def _taking_turns(database_url: str) -> Iterator[None]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(LOCK, (LOCK_KEY,))
        yield


def _yoyo_url(database_url: str) -> str:
    return urlunsplit(urlsplit(database_url)._replace(scheme="postgresql+psycopg"))
