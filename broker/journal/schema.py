"""The journal's schema `tokenbroker`, with yoyo-migrations.

Every name is qualified: behind PgBouncer a search_path would not stay.
"""

from pathlib import Path
from typing import Final

from protos.postgres import migrating
from protos.postgres.connections import Connection, connect
from protos.postgres.errors import DatabaseNotSetUpError
from protos.postgres.trouble import Advice

PROGRAM: Final = "tokenbroker"
MIGRATIONS: Final = Path(__file__).parent / "migrations"
LOCK_KEY: Final = 5_077_206_410
SCHEMA: Final = "tokenbroker"
GRANT: Final = (
    "GRANT USAGE ON SCHEMA tokenbroker, SELECT, INSERT and UPDATE on its tables, and EXECUTE on"
    " its functions to the role in BROKER_DATABASE_URL, or use the role that ran tokenbroker"
    " migrate"
)
MIGRATE: Final = (
    "run tokenbroker migrate with a role that may CREATE in the database (GRANT CREATE ON"
    " DATABASE ... TO ...)"
)
ADVICE: Final = Advice("BROKER_DATABASE_URL", MIGRATE, GRANT, MIGRATE)

# yoyo's own tables stand beside the journal's; the setting ends with the transaction.
PREPARE: Final = "SET LOCAL search_path TO tokenbroker"
SEES: Final = "SELECT to_regnamespace('tokenbroker') IS NOT NULL"
CREATE_SCHEMA: Final = "CREATE SCHEMA IF NOT EXISTS tokenbroker"
KEEP_PARTITIONS: Final = "SELECT tokenbroker.keep_partitions(%s, %s)"
MONTHS_AHEAD: Final = 2


def migrate(database_url: str, months_kept: int) -> list[str]:
    """Brings the schema up to date; returns the names of the migrations applied.

    A role without the right to create finds nothing to do in a schema that is up to date.

    Raises:
        DatabaseAwayError: Postgres can't be reached.
        DatabaseNotSetUpError: The role may not create what is missing.
    """
    applied: list[str] = []
    with connect(database_url, ADVICE, PROGRAM) as connection:
        complete = not missing_migrations(connection)
        # Even IF NOT EXISTS needs the right to create schemas, which a role with a schema
        # of its own may lack.
        if not complete and connection.execute(SEES).fetchone() == (False,):
            # IF NOT EXISTS alone fails where two brokers start at once.
            connection.execute(migrating.LOCK, (LOCK_KEY,))
            connection.execute(CREATE_SCHEMA)
    if not complete:
        applied = migrating.migrate(
            database_url,
            MIGRATIONS,
            advice=ADVICE,
            program=PROGRAM,
            lock_key=LOCK_KEY,
            prepare=PREPARE,
        )
    with connect(database_url, ADVICE, PROGRAM) as connection:
        keep_partitions(connection, months_kept)
    return applied


def missing_migrations(connection: Connection) -> set[str]:
    """Returns the migrations that the database lacks.

    Raises:
        DatabaseNotSetUpError: The role may not read them.
    """
    row = connection.execute(SEES).fetchone()
    known = migrating.known_migrations(MIGRATIONS)
    if row is None or not row[0]:
        return known
    usable = connection.execute("SELECT has_schema_privilege(%s, 'USAGE')", (SCHEMA,)).fetchone()
    if usable is None or not usable[0]:
        raise DatabaseNotSetUpError("the role may not use the schema tokenbroker", GRANT)
    return known - migrating.applied_migrations(connection, f"{SCHEMA}._yoyo_migration")


def keep_partitions(connection: Connection, months_kept: int) -> None:
    """Makes the partitions of the next months, and drops what is older than *months_kept*."""
    connection.execute(KEEP_PARTITIONS, (MONTHS_AHEAD, months_kept))
