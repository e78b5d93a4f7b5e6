"""The whole story of one product."""

from collections.abc import Mapping
from typing import Any

from fetcher.commands.look import money
from fetcher.commands.output import EXIT_FAILED, EXIT_OK, Format, print_json, print_rows, say, when
from fetcher.postgres.database import connect
from fetcher.postgres.story import tell_story
from fetcher.replies.units import DOMAINS, PRICE_TYPES

CHANGES_SHOWN = 20

Row = dict[str, Any]


def explain_deal(database_url: str, asin: str, *, output: Format) -> int:
    """Print what is known of *asin* and why each query takes it or not; returns the exit code."""
    with connect(database_url) as connection:
        story = tell_story(connection, asin, changes=CHANGES_SHOWN)
    if output is Format.JSON:
        print_json({"asin": asin, **story})
    elif not story["deals"]:
        say(
            f"{asin}: never served to any query. Either no selection matches it, or the scan"
            " that would find it has not run yet (dealfetcher scans)."
        )
    else:
        _print(story)
    return EXIT_OK if story["deals"] else EXIT_FAILED


def _print(story: Mapping[str, list[Row]]) -> None:
    for deal in story["deals"]:
        _print_deal(deal)
    for verdict in story["verdicts"]:
        _print_verdict(verdict)
    if not story["verdicts"]:
        say("  no query has judged it")
    for details in story["details"]:
        error = f": {details['error']}" if details["error"] else ""
        say(f"  details ({details['operation']}): {details['state']}{error}")
    rows = [_change(row) for row in story["changes"]]
    print_rows("Changes", rows, Format.TABLE)


def _print_deal(deal: Row) -> None:
    site = DOMAINS.get(deal["domain_id"], deal["domain_id"])
    say(f"{deal['asin']} on {site}: {deal['title'] or 'no title'}")
    say(
        f"  {PRICE_TYPES[deal['price_type']]} price {money(deal['price_minor']) or 'unknown'}, "
        f"average {money(deal['average_minor']) or 'unknown'}, "
        f"drop {_or_unknown(deal['drop_percent'])} %, rank {_or_unknown(deal['rank'])}"
    )
    say(
        f"  created {when(deal['creation_time'])}, updated {when(deal['last_update'])}, "
        f"first seen {when(deal['first_seen'])}, last served {when(deal['reply_time'])}"
    )


def _print_verdict(verdict: Row) -> None:
    with_details = " with details" if verdict["stage"] == "product" else ""
    say(f"  {verdict['query']}: {verdict['state']}{with_details} ({when(verdict['judged_at'])})")
    for failure in verdict["failures"]:
        if failure["outcome"] == "unknown":
            say(f"    {failure['rule']} is unknown, wanted {failure['limit']}")
        else:
            say(f"    {failure['rule']} is {failure['value']}, wanted {failure['limit']}")
    if verdict["profit_minor"] is not None:
        say(f"    profit {money(verdict['profit_minor'])}, ROI {verdict['roi_percent']} %")
    elif (verdict["profit"] or {}).get("missing"):
        say(f"    profit unknown: {', '.join(verdict['profit']['missing'])} missing")


def _change(row: Row) -> Row:
    parts = [
        f"{name} {_or_unknown(was)} → {_or_unknown(now)}"
        for name, (was, now) in sorted(row["changes"].items())
    ]
    return {"seen": row["reply_time"], "what": parts}


def _or_unknown(value: object) -> object:
    return "unknown" if value is None else value
