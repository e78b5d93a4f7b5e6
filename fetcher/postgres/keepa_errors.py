"""Counts of failed calls to Keepa, over all fetchers."""

from collections.abc import Mapping
from typing import Final, LiteralString

from fetcher.postgres.database import Connection, execute_each

ADD: Final[LiteralString] = """
INSERT INTO keepa_errors (kind, calls) VALUES (%s, %s)
ON CONFLICT (kind) DO UPDATE SET calls = keepa_errors.calls + EXCLUDED.calls
"""

COUNTS: Final[LiteralString] = "SELECT kind, calls FROM keepa_errors"


def add_errors(connection: Connection, counts: Mapping[str, int]) -> None:
    """Adds *counts*, by kind."""
    # In the order of their keys: no two writers wait in a circle.
    execute_each(connection, ADD, sorted(counts.items()))


def count_errors(connection: Connection) -> dict[str, int]:
    """Returns the number of failed calls by kind."""
    return {str(kind): int(calls) for kind, calls in connection.execute(COUNTS)}
