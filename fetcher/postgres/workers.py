"""Which fetcher processes are alive, for people."""

from typing import Final, LiteralString

from fetcher.postgres.database import Connection

BEAT: Final[LiteralString] = """
INSERT INTO workers (holder, version, doing) VALUES (%s, %s, %s)
ON CONFLICT (holder) DO UPDATE SET seen_at = now(), doing = EXCLUDED.doing
"""

LEAVE: Final[LiteralString] = "DELETE FROM workers WHERE holder = %s"

FORGET: Final[LiteralString] = "DELETE FROM workers WHERE seen_at < now() - interval '1 day'"


def beat(connection: Connection, *, holder: str, version: str, doing: str) -> None:
    """Say that *holder* lives, and what it does."""
    connection.execute(BEAT, (holder, version, doing))
    connection.execute(FORGET)


def leave(connection: Connection, *, holder: str) -> None:
    """*holder* has stopped."""
    connection.execute(LEAVE, (holder,))
