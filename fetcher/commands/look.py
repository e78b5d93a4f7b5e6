"""Listings of the collection: scans, deals, rejections."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from fetcher.commands.output import Format, age, print_json, print_rows, took
from fetcher.postgres.database import connect
from fetcher.postgres.reports import count_rejections, count_states, list_deals, list_scans
from fetcher.replies.units import DATE_RANGES, PRICE_TYPES, currency_code, is_price, value_words

Row = dict[str, Any]


def show_scans(
    database_url: str, *, query: str | None, limit: int, wide: bool, output: Format
) -> None:
    """Prints the newest scans; a table has the main columns, or all with *wide*."""
    with connect(database_url) as connection:
        rows = list_scans(connection, query=query, limit=limit)
    if output is Format.TABLE:
        now = datetime.now(UTC)
        rows = [_scan_for_people(row, now, wide=wide) for row in rows]
    print_rows("Scans", rows, output)


def show_deals(
    database_url: str, *, query: str | None, state: str | None, limit: int, output: Format
) -> None:
    """Prints the newest deals."""
    with connect(database_url) as connection:
        rows = list_deals(connection, query=query, state=state, limit=limit)
    if output is Format.TABLE:
        rows = [_deal_for_people(row) for row in rows]
    else:
        rows = [with_currency(row) for row in rows]
    print_rows("Deals", rows, output)


def show_rejections(
    database_url: str, *, query: str | None, since: timedelta | None, output: Format
) -> None:
    """Prints the numbers of verdicts, and the rules that rejected deals."""
    with connect(database_url) as connection:
        states = count_states(connection, query=query, since=since)
        rules = count_rejections(connection, query=query, since=since)
    if output is Format.JSON:
        by_query: dict[str, list[Row]] = defaultdict(list)
        for rule in rules:
            by_query[rule.pop("query")].append(rule)
        print_json([{**row, "rules": by_query[row["query"]]} for row in states])
        return
    print_rows("Verdicts", states, output)
    print_rows("Rules against rejected deals (a deal counts for each)", rules, output)


def _scan_for_people(row: Mapping[str, Any], now: datetime, *, wide: bool) -> Row:
    shown = {
        "id": row["id"],
        "query": row["query"],
        "kind": row["kind"],
        "ended by": row["end_reason"] or row["state"],
        "age": age(row["started_at"], now),
        "took": took(row["started_at"], row["ended_at"]),
        "pages": row["pages_read"],
        "new": row["new_deals"],
        "tokens": row["tokens"],
    }
    if not wide:
        return shown
    return shown | {
        "state": row["state"],
        "open": row["pages_open"],
        "dead": row["pages_dead"],
        "rows": row["rows"],
        "watermark's age": age(row["watermark"], now),
    }


def _deal_for_people(row: Mapping[str, Any]) -> Row:
    return {
        "site": row["domain_id"],
        "asin": row["asin"],
        "title": (row["title"] or "")[:40],
        "type": PRICE_TYPES[row["price_type"]],
        "price": value_of(row),
        "drop": drop_of(row),
        "rank": row["rank"],
        "created": row["creation_time"],
        "updated": row["last_update"],
        "verdicts": [f"{verdict['query']}: {verdict['state']}" for verdict in row["verdicts"]],
    }


def value_of(row: Mapping[str, Any]) -> str | None:
    """Returns the value of a deal's row for people, such as a price with its currency."""
    value = row["price_minor"] if is_price(row["price_type"]) else row["value"]
    if value is None:
        return None
    return value_words(value, price_type=row["price_type"], domain_id=row["domain_id"])


def drop_of(row: Mapping[str, Any]) -> str | None:
    """Returns the drop in a row, with its period: "40 % in 90 days"."""
    percent, index = row["drop_percent"], row["date_range"]
    if percent is None or index is None:
        return None
    return f"{percent} % in {DATE_RANGES[index]}" if index < len(DATE_RANGES) else f"{percent} %"


def with_currency(row: Mapping[str, Any]) -> Row:
    """Returns *row* with the currency of its amounts, which stay in minor units."""
    return {**row, "currency": currency_code(row["domain_id"])}
