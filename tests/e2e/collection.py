"""Checks of a collection, from the simulator's journal and the database."""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, LiteralString

import psycopg

KEEPA_EPOCH_MINUTES = 21_564_000
PAGE_TOKENS = 5
# Every deal of the simulator: many pages, so a fleet has work to share.
WIDE = {"domainId": 1, "priceTypes": [1], "dateRange": 3, "sortType": 1, "page": 0}

Call = dict[str, Any]


def write_query(folder: Path, name: str, selection: dict[str, Any], **head: Any) -> Path:
    """Writes a query into *folder*, creates that if missing, and returns it."""
    folder.mkdir(exist_ok=True)
    query = {"name": name, "sort": 1, **head, "selection": {**WIDE, **selection}}
    (folder / f"{name}.json").write_text(json.dumps(query))
    return folder


def fetch(database_url: str, statement: LiteralString) -> list[tuple[Any, ...]]:
    """The rows of a query."""
    with psycopg.connect(database_url) as connection:
        return connection.execute(statement).fetchall()


def stored_deals(database_url: str) -> dict[tuple[int, str, int], int]:
    """The lastUpdate, in Keepa minutes, of every stored deal by (domain, asin, price type)."""
    rows = fetch(
        database_url,
        "SELECT domain_id, asin, price_type, extract(epoch FROM last_update)::bigint FROM deals",
    )
    return {
        (domain, asin, price_type): at_s // 60 - KEEPA_EPOCH_MINUTES
        for domain, asin, price_type, at_s in rows
    }


def paid_calls(calls: Iterable[Call]) -> list[Call]:
    """The calls that were charged."""
    return [call for call in calls if call["consumed"] > 0]


def times_dry(calls: Iterable[Call]) -> int:
    """Number of times that the bucket sank below the price of a page and refilled."""
    balances = itertools.chain.from_iterable(
        (call["before"], call["before"] - call["consumed"]) for call in calls
    )
    dry = [balance < PAGE_TOKENS for balance in balances]
    return sum(was and not still for was, still in itertools.pairwise(dry))


def same_page_at_once(calls: Iterable[Call]) -> list[tuple[Call, Call]]:
    """Pairs of calls for the same page of the same selection that ran at the same time.

    A call without a selection asks for no page.
    """
    by_page: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if call["path"] == "/deal" and call["selection"]:
            by_page[call["selection"]].append(call)
    pairs = itertools.chain.from_iterable(itertools.pairwise(page) for page in by_page.values())
    return [
        (first, second)
        for first, second in pairs
        if second["time_ms"] < first["time_ms"] + first["duration_ms"]
    ]
