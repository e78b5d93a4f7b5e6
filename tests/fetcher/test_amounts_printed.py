"""What people read of amounts, and what programs get."""

import json
from typing import Any

import pytest

from fetcher.commands.explain import explain_deal
from fetcher.commands.look import show_deals
from fetcher.commands.output import Format
from fetcher.postgres import Database
from fetcher.queries.query import parse_query
from fetcher.replies.deals import parse_deal_page
from fetcher.work.page_commit import PageReply, write_deals
from tests.fetcher.keepa_pages import MINUTE_MS, NOON_MS, asin, body, row

JAPAN, USED, COUNT_NEW = 5, 2, 11


def serve(database_url: str, price_type: int, value: int, *, minutes: int = 0) -> None:
    """Stores a deal of amazon.co.jp, judged by a query with a rule against it."""
    selection = {"domainId": JAPAN, "priceTypes": [price_type], "dateRange": 3, "sortType": 1}
    rules: dict[str, Any] = {"drop_percent": {"min": 90}}
    if price_type == USED:
        rules["price"] = {"max": 500}
    name = f"type-{price_type}"
    query = parse_query(name, json.dumps({"selection": selection, "rules": rules}))
    served = row(1)
    served["current"][price_type] = value
    page = parse_deal_page(body([served]), domain_id=JAPAN, price_type=price_type, date_range=3)
    paid = PageReply(page, server_ms=NOON_MS + minutes * MINUTE_MS, tokens=5)
    with Database(database_url) as database, database.connection() as connection:
        write_deals(connection, query, paid, scan_id=None)


def test_deals_are_listed_with_the_currency_beside_the_number(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Yen have no decimals, and a count is no amount."""
    serve(database_url, USED, 620)
    serve(database_url, COUNT_NEW, 7)
    show_deals(database_url, query=None, state=None, limit=9, output=Format.TABLE)
    table = capsys.readouterr().out
    show_deals(database_url, query=None, state=None, limit=9, output=Format.JSON)
    rows = json.loads(capsys.readouterr().out)

    assert "620 JPY" in table
    assert "6.20" not in table
    assert "40 % in 90 days" in table
    assert [(row["price_minor"], row["value"], row["currency"]) for row in rows] == [
        (620, None, "JPY"),
        (None, 7, "JPY"),
    ]


def test_one_product_is_explained_with_the_currency_beside_the_number(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Price, average, the rule against it with its limit, and what changed."""
    serve(database_url, USED, 2530)
    serve(database_url, USED, 620, minutes=1)
    serve(database_url, COUNT_NEW, 7)
    explain_deal(database_url, asin(1), output=Format.TABLE)
    told = capsys.readouterr().out
    explain_deal(database_url, asin(1), output=Format.JSON)
    story = json.loads(capsys.readouterr().out)

    assert "USED 620 JPY:" in told
    assert "COUNT_NEW 7:" in told
    assert "average 1500 JPY" in told
    assert "price is 620 JPY, wanted <= 500 JPY" in told
    assert "drop_percent is 40, wanted >= 90" in told
    assert "price 2530 JPY → 620 JPY" in told
    assert {deal["currency"] for deal in story["deals"]} == {"JPY"}
    assert [deal["price_minor"] for deal in story["deals"]] == [620, None]
