"""Looking at what has been collected: scans, deals, rejections."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from fetcher.commands.output import Format, print_json, print_rows
from fetcher.postgres.database import connect
from fetcher.postgres.reports import count_rejections, count_states, list_deals, list_scans

Row = dict[str, Any]


def show_scans(database_url: str, *, query: str | None, limit: int, output: Format) -> None:
    """Print the newest scans."""
    with connect(database_url) as connection:
        rows = list_scans(connection, query=query, limit=limit)
    print_rows("Scans", rows, output)


def show_deals(
    database_url: str, *, query: str | None, state: str | None, limit: int, output: Format
) -> None:
    """Print the newest deals."""
    with connect(database_url) as connection:
        rows = list_deals(connection, query=query, state=state, limit=limit)
    if output is Format.TABLE:
        rows = [_deal_for_people(row) for row in rows]
    print_rows("Deals", rows, output)


def show_rejections(
    database_url: str, *, query: str | None, since: timedelta | None, output: Format
) -> None:
    """Print how deals were judged, and which rules rejected them."""
    with connect(database_url) as connection:
        states = count_states(connection, query=query, since=since)
        rules = count_rejections(connection, query=query, since=since)
    if output is Format.JSON:
        print_json([{**row, "rules": _rules_of(row, rules)} for row in states])
        return
    print_rows("Verdicts", states, output)
    print_rows("Rules against rejected deals (a deal counts for each)", rules, output)


def _rules_of(state: Row, rules: Iterable[Row]) -> list[Row]:
    return [
        {key: value for key, value in rule.items() if key != "query"}
        for rule in rules
        if rule["query"] == state["query"]
    ]


def _deal_for_people(row: Mapping[str, Any]) -> Row:
    return {
        "site": row["domain_id"],
        "asin": row["asin"],
        "title": (row["title"] or "")[:40],
        "price": money(row["price_minor"]),
        "drop %": row["drop_percent"],
        "rank": row["rank"],
        "created": row["creation_time"],
        "updated": row["last_update"],
        "verdicts": [f"{verdict['query']}: {verdict['state']}" for verdict in row["verdicts"]],
    }


def money(minor: int | None) -> str | None:
    """An amount in hundredths, for people; yen has no smaller unit and reads a hundred less."""
    return None if minor is None else f"{minor / 100:.2f}"
