"""The schema and its versions, with yoyo-migrations."""

from pathlib import Path
from typing import Final

from fetcher.errors import DatabaseNotSetUpError
from fetcher.postgres.database import PROGRAM, Connection
from fetcher.postgres.errors import ADVICE, GRANT_SCHEMA
from protos.postgres import migrating

MIGRATIONS: Final = Path(__file__).parent / "migrations"

LOCK_KEY: Final = 5_077_206_411

SEES_SCHEMA: Final = "SELECT current_schema() IS NOT NULL"


def migrate(database_url: str) -> list[str]:
    """Brings the schema up to date; returns the names of the migrations applied.

    Raises:
        DatabaseAwayError: Postgres can't be reached.
        DatabaseNotSetUpError: The role may not create tables, or the encoding is wrong.
    """
    return migrating.migrate(
        database_url, MIGRATIONS, advice=ADVICE, program=PROGRAM, lock_key=LOCK_KEY
    )


def known_migrations() -> set[str]:
    """Returns the names of the migrations in this version of the program."""
    return migrating.known_migrations(MIGRATIONS)


def known_tables() -> set[str]:
    """Returns the names of the tables that they create; later ones may drop some again."""
    return migrating.known_tables(MIGRATIONS)


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
    row = connection.execute(SEES_SCHEMA).fetchone()
    # A role without rights on the schema sees no tables in it: to migrate is no remedy.
    if row is None or not row[0]:
        raise DatabaseNotSetUpError("the role in DATABASE_URL sees no schema", GRANT_SCHEMA)
    return migrating.applied_migrations(connection, "_yoyo_migration")
