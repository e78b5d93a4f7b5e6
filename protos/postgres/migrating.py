"""Migrations with yoyo: one transaction each, one process at a time."""

import re
import warnings
from pathlib import Path
from typing import Final, LiteralString

from psycopg import sql

from protos.postgres.connections import Connection, connect
from protos.postgres.trouble import Advice

LOCK: Final = "SELECT pg_advisory_xact_lock(%s)"
CREATE_TABLE: Final = re.compile(r"CREATE TABLE(?: IF NOT EXISTS)? ([\w.]+)")


def migrate(
    database_url: str,
    folder: Path,
    *,
    advice: Advice,
    program: str,
    lock_key: int,
    prepare: LiteralString | None = None,
) -> list[str]:
    """Applies the missing migrations in *folder*; returns their names.

    Applies each in its own transaction: none holds the locks of another.
    Safe to run from several processes at once: they take turns.

    Args:
        database_url: The database.
        folder: SQL files as yoyo reads them.
        advice: Remedies for errors.
        program: Name of the program, for Postgres and yoyo's log.
        lock_key: Any number that no other program uses in this database. The lock ends
            with the transaction: a killed migration blocks none, also behind PgBouncer,
            where server connections live on.
        prepare: A statement that begins each transaction, such as SET LOCAL.

    Raises:
        DatabaseAwayError: Postgres can't be reached.
        DatabaseNotSetUpError: The role may not create tables, or the encoding is wrong.
    """
    # Imported late: yoyo and its SQL parser are slow to load, and only this command needs them.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from protos.postgres.yoyo_backend import apply_next  # noqa: PLC0415 - see above

    applied: list[str] = []
    with connect(database_url, advice, program, autocommit=True) as connection:
        while True:
            with connection.transaction():
                connection.execute(LOCK, (lock_key,))
                if prepare is not None:
                    connection.execute(prepare)
                name = apply_next(connection, folder, program)
            if name is None:
                return applied
            applied.append(name)


def known_migrations(folder: Path) -> set[str]:
    """Returns the names of the migrations in *folder*."""
    return {path.stem for path in folder.glob("*.sql") if not path.stem.endswith(".rollback")}


def known_tables(folder: Path) -> set[str]:
    """Returns the names of the tables that they create; later ones may drop some again."""
    texts = (path.read_text(encoding="utf-8") for path in folder.glob("*.sql"))
    return {name for text in texts for name in CREATE_TABLE.findall(text)}


def applied_migrations(connection: Connection, table: str) -> set[str]:
    """Returns the migrations in yoyo's *table*, also those of a newer version; none without it.

    Raises:
        DatabaseNotSetUpError: The role may not read them.
    """
    row = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (table,)).fetchone()
    assert row is not None
    if not row[0]:
        return set()
    parts = table.split(".")
    query = sql.SQL("SELECT migration_id FROM {}").format(sql.Identifier(*parts))
    return {str(name) for (name,) in connection.execute(query)}
