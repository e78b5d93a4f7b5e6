"""Postgres errors by what the caller does next.

The SQLSTATE decides, not the driver's exception class: a read-only server (25006) is
an `InternalError` there, and a value too long for an index an `OperationalError`.

Source of the codes: PostgreSQL documentation, appendix A, "PostgreSQL Error Codes".
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

import psycopg

from protos.postgres.errors import (
    DatabaseAwayError,
    DatabaseError,
    DatabaseNotSetUpError,
    DatabaseRefusedError,
)


class Trouble(Enum):
    """What an error of Postgres means to the caller."""

    # The same work may succeed later, on another connection.
    AWAY = "away"
    # Tables, rights or the encoding are missing: an operator must act first.
    NOT_SET_UP = "not set up"
    # The same statement with the same values fails again.
    WRONG = "wrong"


AWAY_CLASSES: Final = frozenset({
    "08",  # the connection broke
    "28",  # login refused: passwords and pg_hba.conf change while fetchers run
    "40",  # serialization failure, deadlock
    "53",  # disk, memory or connections are used up
    "55",  # locked, or not in the needed state
    "57",  # shutdown, recovery, cancelled, idle time-out
    "58",  # input or output failed below Postgres
    "F0",  # a configuration file is broken
})  # fmt: skip
AWAY_CODES: Final = frozenset({
    "0A000",  # "cached plan must not change result type": a migration ran meanwhile
    "25006",  # read-only: a standby, or a managed server with a full disk
    "25P03",  # the transaction was idle for too long; the server closed the connection
    "25P04",  # the transaction took too long
    "26000",  # the prepared statement is another connection's: a pooler in between
    "42P05",  # as above
    "3D000",  # the database is not there yet, or not any more
})  # fmt: skip
MIGRATE_CODES: Final = frozenset({
    "42703",  # no such column
    "42704",  # no such type or other object
    "42883",  # no such function
    "42P01",  # no such table
    "42P10",  # no such unique key: the table is of another version
})  # fmt: skip
# A role that may not use a schema does not see it either.
RIGHTS_CODES: Final = frozenset({"42501", "3F000"})

# A refused login comes without a code; a server that speaks another language gets LOOK.
REMEDIES: Final = {
    "password authentication failed": "correct the password in {url}",
    "no password supplied": "put the password into {url}, PGPASSWORD or ~/.pgpass",
    "no pg_hba.conf entry": "allow this client in the server's pg_hba.conf",
    "is not permitted to log in": "ALTER ROLE ... LOGIN, or use another role in {url}",
    "permission denied for database": "GRANT CONNECT ON DATABASE to the role in {url}",
    "SSL": "check sslmode and the certificates in {url}",
    "certificate": "check sslmode and the certificates in {url}",
    "Connection refused": "start the server, or correct host and port in {url}",
    "timeout expired": "correct host and port in {url}, or let the firewall pass",
    "translate host name": "correct the host in {url}",
    "resolve host": "correct the host in {url}",
    "session is read-only": "none of the servers in {url} takes writes: see why",
    "too many clients": "raise max_connections, or put PgBouncer in between",
    "remaining connection slots": "raise max_connections, or put PgBouncer in between",
    "read-only": "see why the server takes no writes: a standby, or a full disk",
    "does not exist": "create it on the server, or correct {url}",
}


def classify(error: psycopg.Error) -> Trouble:
    """Returns what *error* means to the caller."""
    code = error.sqlstate
    if code is None:
        # The driver's own error: no answer of the server, or misuse by the program.
        lost = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
        return Trouble.AWAY if lost else Trouble.WRONG
    if code[:2] in AWAY_CLASSES or code in AWAY_CODES:
        return Trouble.AWAY
    if code in MIGRATE_CODES or code in RIGHTS_CODES:
        return Trouble.NOT_SET_UP
    return Trouble.WRONG


@dataclass(frozen=True, slots=True)
class Advice:
    """The remedies of one program: the setting of its URL, and what it needs.

    `url` is the variable, `migrate` the command that makes the tables, `grant` and
    `grant_schema` the rights to grant.
    """

    url: str
    migrate: str
    grant: str
    grant_schema: str

    @property
    def look(self) -> str:
        """The remedy if nothing better fits; also for a server that speaks another language."""
        return f"check {self.url} and the server"

    def explained(self, error: psycopg.Error) -> DatabaseError:
        """Returns *error* as one of the package's own, in one line that names the remedy."""
        text = summary(error)
        match classify(error):
            case Trouble.AWAY:
                remedies = (remedy for part, remedy in REMEDIES.items() if part in text)
                remedy = next(remedies, self.look).format(url=self.url)
                return DatabaseAwayError(text, remedy)
            case Trouble.NOT_SET_UP:
                if error.sqlstate in MIGRATE_CODES:
                    return DatabaseNotSetUpError(text, self.migrate)
                concerns_schema = error.sqlstate == "3F000" or "schema" in text
                remedy = self.grant_schema if concerns_schema else self.grant
                return DatabaseNotSetUpError(text, remedy)
        return DatabaseRefusedError(f"{text} (SQLSTATE {error.sqlstate})")


def summary(error: psycopg.Error) -> str:
    """Returns the first line of *error*: the rest quotes statements and hints."""
    lines = (error.diag.message_primary or str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__
