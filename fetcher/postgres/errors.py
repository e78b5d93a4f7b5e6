"""Postgres errors by what the caller does next.

The SQLSTATE decides, not the driver's exception class: a read-only server (25006) is
an `InternalError` there, and a value too long for an index an `OperationalError`.

Source of the codes: PostgreSQL documentation, appendix A, "PostgreSQL Error Codes".
"""

from enum import Enum
from typing import Final

import psycopg

from fetcher.errors import (
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

MIGRATE: Final = "run dealfetcher migrate"
GRANT: Final = (
    "grant the role in DATABASE_URL USAGE on the schema, SELECT, INSERT, UPDATE and DELETE on"
    " its tables and USAGE on its sequences, or use the role that ran dealfetcher migrate"
)
GRANT_SCHEMA: Final = (
    "GRANT USAGE ON SCHEMA public to the role in DATABASE_URL, and CREATE for dealfetcher migrate"
)
LOOK: Final = "check DATABASE_URL and the server"

# A refused login comes without a code; a server that speaks another language gets LOOK.
REMEDIES: Final = {
    "password authentication failed": "correct the password in DATABASE_URL",
    "no password supplied": "put the password into DATABASE_URL, PGPASSWORD or ~/.pgpass",
    "no pg_hba.conf entry": "allow this client in the server's pg_hba.conf",
    "is not permitted to log in": "ALTER ROLE ... LOGIN, or use another role in DATABASE_URL",
    "permission denied for database": "GRANT CONNECT ON DATABASE to the role in DATABASE_URL",
    "SSL": "check sslmode and the certificates in DATABASE_URL",
    "certificate": "check sslmode and the certificates in DATABASE_URL",
    "Connection refused": "start the server, or correct host and port in DATABASE_URL",
    "timeout expired": "correct host and port in DATABASE_URL, or let the firewall pass",
    "translate host name": "correct the host in DATABASE_URL",
    "resolve host": "correct the host in DATABASE_URL",
    "session is read-only": "none of the servers in DATABASE_URL takes writes: see why",
    "too many clients": "raise max_connections, or put PgBouncer in between",
    "remaining connection slots": "raise max_connections, or put PgBouncer in between",
    "read-only": "see why the server takes no writes: a standby, or a full disk",
    "does not exist": "create it on the server, or correct DATABASE_URL",
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


def explained(error: psycopg.Error) -> DatabaseError:
    """Returns *error* as one of the fetcher's own, in one line that names the remedy."""
    text = summary(error)
    match classify(error):
        case Trouble.AWAY:
            remedies = (remedy for part, remedy in REMEDIES.items() if part in text)
            return DatabaseAwayError(text, next(remedies, LOOK))
        case Trouble.NOT_SET_UP:
            if error.sqlstate in MIGRATE_CODES:
                return DatabaseNotSetUpError(text, MIGRATE)
            concerns_schema = error.sqlstate == "3F000" or "schema" in text
            return DatabaseNotSetUpError(text, GRANT_SCHEMA if concerns_schema else GRANT)
    return DatabaseRefusedError(f"{text} (SQLSTATE {error.sqlstate})")


def summary(error: psycopg.Error) -> str:
    """Returns the first line of *error*: the rest quotes statements and hints."""
    lines = (error.diag.message_primary or str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__
