"""The schema and its versions, with yoyo-migrations."""

import re
import warnings
from pathlib import Path
from typing import Final

from fetcher.errors import DatabaseNotSetUpError
from fetcher.postgres.database import Connection, connect
from fetcher.postgres.errors import GRANT_SCHEMA

MIGRATIONS: Final = Path(__file__).parent / "migrations"

# Any number that no other program uses in this database. The lock ends with the transaction:
# a killed migration blocks none, also behind PgBouncer, where server connections live on.
LOCK_KEY: Final = 5_077_206_411

LOCK: Final = "SELECT pg_advisory_xact_lock(%s)"
LOOK: Final = "SELECT current_schema() IS NOT NULL, to_regclass('_yoyo_migration') IS NOT NULL"
CREATE_TABLE: Final = re.compile(r"CREATE TABLE(?: IF NOT EXISTS)? (\w+)")
APPLIED: Final = "SELECT migration_id FROM _yoyo_migration"


def migrate(database_url: str) -> list[str]:
    """Brings the schema up to date; returns the names of the migrations applied.

    Applies each in its own transaction: none holds the locks of another.
    Safe to run from several processes at once: they take turns.

    Raises:
        DatabaseAwayError: Postgres can't be reached.
        DatabaseNotSetUpError: The role may not create tables, or the encoding is wrong.
    """
    # Imported late: yoyo and its SQL parser are slow to load, and only this command needs them.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from fetcher.postgres.yoyo_backend import apply_next  # noqa: PLC0415 - see above

    applied: list[str] = []
    with connect(database_url, autocommit=True) as connection:
        while True:
            with connection.transaction():
                connection.execute(LOCK, (LOCK_KEY,))
                name = apply_next(connection, MIGRATIONS)
            if name is None:
                return applied
            applied.append(name)


def known_migrations() -> set[str]:
    """Returns the names of the migrations in this version of the program."""
    files = MIGRATIONS.glob("*.sql")
    return {path.stem for path in files if not path.stem.endswith(".rollback")}


def known_tables() -> set[str]:
    """Returns the names of the tables that they create; later ones may drop some again."""
    texts = (path.read_text(encoding="utf-8") for path in MIGRATIONS.glob("*.sql"))
    return {name for text in texts for name in CREATE_TABLE.findall(text)}


def missing_migrations(connection: Connection) -> set[str]:
    """Returns the migrations that the database lacks.

    Raises:
        DatabaseNotSetUpError: The role may not read them.
    """
    return known_migrations() - applied_migrations(connection)


def applied_migrations(connection: Connection) -> set[str]:
    """Returns the migrations that the database has, also those of a newer version.

    Raises:
        DatabaseNotSetUpError: The role may not read them.
    """
    row = connection.execute(LOOK).fetchone()
    assert row is not None
    sees_schema, exists = row
    # A role without rights on the schema sees no tables in it: to migrate is no remedy.
    if not sees_schema:
        raise DatabaseNotSetUpError("the role in DATABASE_URL sees no schema", GRANT_SCHEMA)
    return {str(name) for (name,) in connection.execute(APPLIED)} if exists else set()
