"""Database roles with the least rights, beside the owner of the tables.

| role    | rights                                                             |
|---------|--------------------------------------------------------------------|
| owner   | runs migrations                                                    |
| fetcher | reads and writes rows, in every table of the schema                |
| reader  | reads rows, also the broker's: metrics and console                 |
| broker  | creates and uses tables in the schema `tokenbroker`, nowhere else  |

A role that exists keeps its password and what else it may do. Granting is safe to repeat.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from fetcher.errors import DatabaseNotSetUpError
from fetcher.postgres.database import Connection, connect
from fetcher.postgres.schema import LOCK_KEY
from protos.postgres.migrating import LOCK

BROKER_SCHEMA: Final = "tokenbroker"

EXISTS: Final = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %s)"
MAY_CREATE: Final = """
SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user
"""
CREATE: Final = "CREATE ROLE {role} LOGIN PASSWORD {password}"

FOR_ALL: Final = (
    "GRANT CONNECT ON DATABASE {database} TO {role}",
    "GRANT USAGE ON SCHEMA {schema} TO {role}",
)
# Tables of later migrations are the owner's too, so its default privileges cover them.
FOR_FETCHER: Final = (
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}",
    "GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role}",
    (
        "ALTER DEFAULT PRIVILEGES IN SCHEMA {schema}"
        " GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {role}"
    ),
    "ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT USAGE ON SEQUENCES TO {role}",
)
FOR_READER: Final = (
    "GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}",
    "ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT SELECT ON TABLES TO {role}",
)
FOR_BROKER: Final = (
    "GRANT CONNECT ON DATABASE {database} TO {role}",
    "GRANT USAGE, CREATE ON SCHEMA {broker_schema} TO {role}",
)
# The broker's tables are its own: only a member of its role may grant rights on them.
FOR_READER_OF_BROKER: Final = (
    "GRANT USAGE ON SCHEMA {broker_schema} TO {role}",
    "GRANT {broker} TO CURRENT_USER",
    "GRANT SELECT ON ALL TABLES IN SCHEMA {broker_schema} TO {role}",
    (
        "ALTER DEFAULT PRIVILEGES FOR ROLE {broker} IN SCHEMA {broker_schema}"
        " GRANT SELECT ON TABLES TO {role}"
    ),
)
# Only migrations record what has been applied.
YOYO_TABLES: Final = """
SELECT relname FROM pg_class
 WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'
   AND (starts_with(relname, '_yoyo') OR starts_with(relname, 'yoyo'))
"""
READ_ONLY_FOR_FETCHER: Final = "REVOKE INSERT, UPDATE, DELETE ON {schema}.{table} FROM {role}"


@dataclass(frozen=True, slots=True)
class RoleUrls:
    """URLs of the roles, None for one that is not wanted; their user names are the roles'."""

    fetcher: str | None = None
    reader: str | None = None
    broker: str | None = None


def grant_roles(owner_url: str, urls: RoleUrls) -> list[str]:
    """Makes the roles that don't exist, and grants each its rights; returns what was done.

    A URL with the owner's own user needs no grant: one role may serve for all.

    Raises:
        DatabaseAwayError: Postgres can't be reached.
        DatabaseNotSetUpError: The owner may not create roles, or a URL names none.
    """
    with connect(owner_url) as connection:
        connection.execute(LOCK, (LOCK_KEY,))
        owner = connection.info.user
        done: list[str] = []
        if urls.fetcher and (role := _role(connection, "fetcher", urls.fetcher, owner, done)):
            _grant(connection, (*FOR_ALL, *FOR_FETCHER), role=role)
            for (table,) in connection.execute(YOYO_TABLES).fetchall():
                _grant(connection, (READ_ONLY_FOR_FETCHER,), role=role, table=table)
        broker = urls.broker and _role(connection, "broker", urls.broker, owner, done)
        if broker:
            connection.execute(
                sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(BROKER_SCHEMA))
            )
            _grant(connection, FOR_BROKER, role=broker)
        if urls.reader and (role := _role(connection, "reader", urls.reader, owner, done)):
            _grant(connection, (*FOR_ALL, *FOR_READER), role=role)
            if broker:
                _grant(connection, FOR_READER_OF_BROKER, role=role, broker=broker)
    return done


def _role(
    connection: Connection, purpose: str, url: str, owner: str, done: list[str]
) -> str | None:
    """Returns the role in *url*, made if it is missing; None if it is the owner."""
    options = conninfo_to_dict(url)
    role, password = str(options.get("user") or ""), str(options.get("password") or "")
    if not role:
        raise DatabaseNotSetUpError(
            f"the URL for the {purpose} names no user", "write postgresql://USER:PASSWORD@..."
        )
    if role == owner:
        done.append(f"{purpose}: {role} is the owner")
        return None
    if connection.execute(EXISTS, (role,)).fetchone() == (True,):
        done.append(f"{purpose}: rights granted to {role}")
        return role
    if connection.execute(MAY_CREATE).fetchone() != (True,):
        raise DatabaseNotSetUpError(
            f"the role {role} does not exist, and the owner may not create it",
            f"CREATE ROLE {role} LOGIN PASSWORD '...' as an administrator, and repeat",
        )
    # Hashed here, so that no log of the server shows the password.
    hashed = (
        password
        and connection.pgconn.encrypt_password(
            password.encode(), role.encode(), b"scram-sha-256"
        ).decode()
    )
    connection.execute(
        sql.SQL(CREATE).format(role=sql.Identifier(role), password=sql.Literal(hashed or None))
    )
    done.append(f"{purpose}: {role} created")
    return role


def _grant(connection: Connection, statements: Sequence[str], **names: str) -> None:
    row = connection.execute("SELECT current_database(), current_schema()").fetchone()
    assert row is not None
    known = {"database": row[0], "schema": row[1], "broker_schema": BROKER_SCHEMA} | names
    identifiers = {key: sql.Identifier(name) for key, name in known.items()}
    for statement in statements:
        connection.execute(sql.SQL(statement).format(**identifiers))
