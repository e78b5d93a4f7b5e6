"""Compares the deals that were served with those in a database.

Only replies that were sent completely count: a client can't store what it never received.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

from deploy.keepa_simulator.keepa_time import unix_ms
from deploy.keepa_simulator.selection import parse_selection

_TIMEOUT_S: Final = 30
_LOAD: Final = "SELECT domain_id, asin, price_type, last_update FROM deals"

# A deal is the price of one type of a product.
Key = tuple[int, str, int]


class DatabaseError(Exception):
    """The database can't be read; the text is the kind of failure."""


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a comparison; deals are (domain, asin, price type).

    Args:
        served: How many different deals were served.
        missing: Served, but not in the database.
        stale: In the database with an older update than the newest one served.
        unserved: In the database, but never served.
    """

    served: int
    stored: int
    missing: list[Key]
    stale: list[Key]
    unserved: list[Key]

    @property
    def is_complete(self) -> bool:
        """Whether every served deal is in the database."""
        return not self.missing


def calls_of_simulator(base_url: str) -> Iterator[dict[str, Any]]:
    """Every call that a running simulator still keeps.

    Raises:
        OSError: It can't be reached.
    """
    since = 0
    while True:
        url = f"{base_url.rstrip('/')}/_simulator/calls?since={since}"
        with urlopen(url, timeout=_TIMEOUT_S) as reply:  # noqa: S310 - the caller's own address
            calls = json.load(reply)["calls"]
        if not calls:
            return
        yield from calls
        since = calls[-1]["seq"]


def calls_of_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Every call in a file written with ``serve --journal``.

    Raises:
        OSError: It can't be read.
    """
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def newest_served(calls: Iterable[dict[str, Any]]) -> dict[Key, int]:
    """The newest lastUpdate (Keepa minutes) of every deal in a delivered reply."""
    newest: dict[Key, int] = {}
    for call in calls:
        if call["delivered"] and call["rows"]:
            price_type = parse_selection(call["selection"]).price_type
            for domain, asin, last_update, _ in call["rows"]:
                key = (domain, asin, price_type)
                newest[key] = max(last_update, newest.get(key, last_update))
    return newest


def stored_deals(database_url: str) -> dict[Key, datetime]:
    """The rows of the table ``deals``, by (domain, asin, price type).

    Raises:
        DatabaseError: The database can't be reached, or has no such table.
    """
    # Serving needs no database driver, and starts sooner without.
    import psycopg  # noqa: PLC0415 - see above

    try:
        with psycopg.connect(database_url, connect_timeout=_TIMEOUT_S) as connection:
            rows = connection.execute(_LOAD).fetchall()
    except psycopg.Error as exc:
        # Its text may hold the address with a password.
        raise DatabaseError(type(exc).__name__) from None
    return {tuple(key): last_update for *key, last_update in rows}


def compare(served: dict[Key, int], stored: dict[Key, datetime]) -> Report:
    """Compares what was served with what is stored."""
    updated = {
        key: datetime.fromtimestamp(unix_ms(minutes) / 1000, UTC)
        for key, minutes in served.items()
    }
    return Report(
        served=len(served),
        stored=len(stored),
        missing=sorted(served.keys() - stored.keys()),
        stale=sorted(key for key, at in updated.items() if key in stored and stored[key] < at),
        unserved=sorted(stored.keys() - served.keys()),
    )
