"""yoyo-migrations on a connection of the package, each in one transaction.

yoyo parses connection URLs in its own way, opens a second connection for every
migration, and locks with a row that a killed process leaves behind. Here it gets a
connection like any other, and the caller holds a lock that ends with the transaction.
"""

import contextlib
import socket
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

import yoyo
from yoyo import internalmigrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI

from protos.postgres.connections import Connection

# yoyo takes only the database's name from it, and Postgres needs none.
NO_URI: Final = DatabaseURI("postgresql+psycopg", None, None, None, None, None, {})


def apply_next(connection: Connection, folder: Path, program: str) -> str | None:
    """Applies the first missing migration in *folder*; returns its name, None if none is missing.

    *connection* is in autocommit mode: yoyo sends BEGIN and COMMIT itself, here as
    savepoints within the open transaction. *program* stands in yoyo's log.
    """
    backend = _Backend(connection, program)
    pending = backend.to_apply(yoyo.read_migrations(str(folder)))
    if not pending:
        return None
    name = str(pending[0].id)
    backend.apply_migrations(pending.filter(lambda migration: migration.id == name))
    return name


class _Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo has no types
    def __init__(self, connection: Connection, program: str) -> None:
        self._given = connection
        self._program = program
        super().__init__(NO_URI, yoyo.default_migration_table)
        # The caller has begun the transaction.
        self._in_transaction = True

    def connect(self, _uri: object) -> Connection:
        return self._given

    def copy(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the connection open; the caller closes it."""

    @contextlib.contextmanager
    def disable_transactions(self) -> Iterator[None]:
        raise NotImplementedError("a migration is part of one transaction")

    def ensure_internal_schema_updated(self) -> None:
        if internalmigrations.needs_upgrading(self):
            internalmigrations.upgrade(self)

    def get_log_data(self, migration: Any = None, operation: str = "apply") -> dict[str, Any]:
        """Returns the row for yoyo's log; yoyo's own needs a user name, which containers lack."""
        return {
            "id": str(uuid.uuid4()),
            "migration_id": migration.id if migration else None,
            "migration_hash": migration.hash if migration else None,
            "username": self._program,
            "hostname": socket.gethostname(),
            "created_at_utc": datetime.now(UTC).replace(tzinfo=None),
            "operation": operation,
        }
