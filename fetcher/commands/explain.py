"""Everything about one product."""

from collections.abc import Mapping
from typing import Any

from fetcher.commands.look import drop_of, value_of, with_currency
from fetcher.commands.output import (
    EXIT_FAILED,
    EXIT_OK,
    Format,
    print_json,
    print_line,
    print_rows,
    when,
)
from fetcher.postgres.database import connect
from fetcher.postgres.story import product_story
from fetcher.queries.conditions import limit_words
from fetcher.replies.units import DOMAINS, PRICE_TYPES, money_words, value_words

CHANGES_SHOWN = 20

Row = dict[str, Any]


def explain_deal(database_url: str, asin: str, *, output: Format) -> int:
    """Prints what is stored about *asin*, and every verdict on it; returns the exit code."""
    with connect(database_url) as connection:
        story = product_story(connection, asin, changes=CHANGES_SHOWN)
    if output is Format.JSON:
        shown = {part: [with_currency(row) for row in rows] for part, rows in story.items()}
        print_json({"asin": asin, **shown})
    elif not story["deals"]:
        print_line(
            f"{asin}: never served to any query. Either no selection matches it, or the scan"
            " that would find it has not run yet (dealfetcher scans)."
        )
    else:
        _print(story)
    return EXIT_OK if story["deals"] else EXIT_FAILED


def _print(story: Mapping[str, list[Row]]) -> None:
    for listing in story["listings"]:
        site = DOMAINS.get(listing["domain_id"], listing["domain_id"])
        print_line(f"{listing['asin']} on {site}: {listing['title'] or 'no title'}")
        print_line(
            f"  rank {_or_unknown(listing['rank'])}, reviews {_or_unknown(listing['reviews'])}, "
            f"first seen {when(listing['first_seen'])}, last served {when(listing['reply_time'])}"
        )
        for deal in story["deals"]:
            if deal["domain_id"] == listing["domain_id"]:
                print_line(
                    f"  {PRICE_TYPES[deal['price_type']]} {_or_unknown(value_of(deal))}: "
                    f"created {when(deal['creation_time'])}, updated {when(deal['last_update'])}, "
                    f"last served {when(deal['reply_time'])}"
                )
    for verdict in story["verdicts"]:
        _print_verdict(verdict)
    if not story["verdicts"]:
        print_line("  no query has judged it")
    for details in story["details"]:
        error = f": {details['error']}" if details["error"] else ""
        print_line(f"  details ({details['operation']}): {details['state']}{error}")
    rows = [_change(row) for row in story["changes"]]
    print_rows("Changes", rows, Format.TABLE)


def _print_verdict(verdict: Row) -> None:
    site = verdict["domain_id"]
    with_details = " with details" if verdict["stage"] == "product" else ""
    print_line(
        f"  {verdict['query']}: {verdict['state']}{with_details}"
        f" on {PRICE_TYPES[verdict['price_type']]} ({when(verdict['judged_at'])})"
    )
    print_line(
        f"    drop {_or_unknown(drop_of(verdict))}"
        f", average {_amount(verdict['average_minor'], site)}"
    )
    for failure in verdict["failures"]:
        rule, limit = failure["rule"], limit_words(failure["rule"], failure["limit"], site)
        if failure["outcome"] == "unknown":
            print_line(f"    {rule} is unknown, wanted {limit}")
        else:
            print_line(
                f"    {rule} is {limit_words(rule, failure['value'], site)}, wanted {limit}"
            )
    if verdict["profit_minor"] is not None:
        roi = verdict["roi_percent"]
        print_line(
            f"    profit {_amount(verdict['profit_minor'], site)}, ROI "
            + ("unknown" if roi is None else f"{roi} %")
        )
    elif (verdict["profit"] or {}).get("missing"):
        print_line(f"    profit unknown: {', '.join(verdict['profit']['missing'])} missing")


def _change(row: Row) -> Row:
    parts = [
        f"{name.removesuffix('_minor')} {_changed(name, was, row)} → {_changed(name, now, row)}"
        for name, (was, now) in sorted(row["changes"].items())
    ]
    price_type = row["price_type"]
    return {
        "seen": row["reply_time"],
        "of": "product" if price_type is None else PRICE_TYPES[price_type],
        "what": parts,
    }


def _changed(name: str, value: Any, row: Row) -> object:
    """Returns one side of a change for people."""
    if value is not None and name.endswith("_minor"):
        return money_words(value, row["domain_id"])
    if value is not None and name == "value":
        return value_words(value, price_type=row["price_type"], domain_id=row["domain_id"])
    return _or_unknown(value)


def _amount(minor: int | None, domain_id: int) -> str:
    return "unknown" if minor is None else money_words(minor, domain_id)


def _or_unknown(value: object) -> object:
    return "unknown" if value is None else value
