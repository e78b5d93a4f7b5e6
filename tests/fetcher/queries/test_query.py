"""Query files: what is accepted, what is refused, and in which words."""

import json
from pathlib import Path
from typing import Any

import pytest

from fetcher.queries.query import DealQuery, QueryError, parse_query, read_queries
from tests.fetcher.builders import recording

SELECTION: dict[str, Any] = {
    "page": 0,
    "domainId": "1",
    "priceTypes": [2],
    "dateRange": "3",
    "isRangeEnabled": True,
    "deltaPercentRange": [50, 2147483647],
    "includeCategories": [283155],
}
QUERY_FOLDER = Path(__file__).parents[3] / "deploy" / "queries"


def read(selection: dict[str, Any] | None = None, **head: object) -> DealQuery:
    """A query parsed from SELECTION with changes, under a head if there is one."""
    asked = SELECTION | (selection or {})
    return parse_query("some", json.dumps({"selection": asked, **head} if head else asked))


def test_a_pasted_selection_is_a_query() -> None:
    """Keepa's own JSON is accepted verbatim, numbers in quotes included."""
    body = recording("deal-selection-2025-09-14.json")

    query = parse_query("pasted", json.dumps(body))

    assert (query.name, query.domain_id, query.price_type, query.date_range) == ("pasted", 1, 2, 3)
    assert query.page_selection(4) == body | {"page": 4}
    assert query.sort_words == "4 (percent drop, largest first)"
    assert "reads every page" in query.warnings[0]


def test_the_sort_defaults_to_newest_first() -> None:
    """A selection that names no order is read newest first."""
    assert read().page_selection(0)["sortType"] == 1


def test_the_head_overrides_a_pasted_sort() -> None:
    """The sort beside the selection wins over the one inside it."""
    query = read({"sortType": 4}, sort=1)

    assert (query.sort_type, query.page_selection(0)["sortType"]) == (1, 1)
    assert not query.warnings


def test_the_head_is_read() -> None:
    """Durations, priority, caps, enrichment and costs arrive in our units."""
    query = read(
        name="used-books",
        interval="5m",
        priority="high",
        max_pages="3",
        full_scan_every="never",
        enrichment={"offers": 20, "refresh": "1d"},
        costs={"inbound_per_kg": 120},
        rules={"price": {"max": 5_000}},
    )

    assert (query.name, query.interval_ms, query.priority) == ("used-books", 300_000, "high")
    assert (query.max_pages, query.pages_per_scan, query.full_scan_every_ms) == (3, 3, None)
    assert query.enrichment is not None
    assert (query.enrichment.offers, query.enrichment.refresh_ms) == (20, 86_400_000)
    assert query.rules.costs.inbound_per_kg_minor == 120


def test_missing_keys_have_defaults() -> None:
    """Without a head the budget sets the interval and a full scan is daily."""
    query = read()

    assert (query.interval_ms, query.max_pages, query.pages_per_scan) == (None, None, 67)
    assert (query.priority, query.full_scan_every_ms) == ("normal", 86_400_000)
    assert query.enrichment is None


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("", "file", "not JSON at line 1, column 1"),
        ('{"page": 0,}', "file", "not JSON at line 1"),
        ("[]", "file", "one JSON object"),
        ('{"page": NaN}', "file", "NaN"),
        ('{"page": 0, "page": 1}', "page", "given twice"),
        ("[" * 100_000, "file", "nesting"),
        ('{"domainId": ' + "9" * 5_000 + "}", "file", "too big"),
        ('{"interval": "5m", "domainId": 1}', "interval", '"selection"'),
        ('{"selection": 5}', "selection", "object"),
        ("{}", "selection.domainId", "missing"),
        ('{"domainId": 1}', "selection.priceTypes", "missing"),
    ],
)
def test_a_bad_file_is_named_with_key_and_reason(text: str, key: str, hint: str) -> None:
    """The error names the file, the key and what to write instead."""
    with pytest.raises(QueryError) as caught:
        parse_query("broken", text)

    assert (caught.value.query, caught.value.key) == ("broken", key)
    assert hint in caught.value.reason
    assert str(caught.value).startswith("query broken: ")


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"domainId": 7}, "one of 1, 2, 3"),
        ({"domainId": "com"}, "not 'com'"),
        ({"domainId": None}, "not None"),
        ({"priceTypes": [1, 2]}, "exactly one"),
        ({"priceTypes": 2}, "exactly one"),
        ({"priceTypes": [34]}, "from 0 to 33"),
        ({"dateRange": 9}, "from 0 to 3"),
        ({"sortType": 5}, "one of 0, 1, 2"),
        ({"minRating": 51}, "from 0 to 50"),
        ({"currentRange": [500]}, "[lowest, highest]"),
        ({"currentRange": [500, 100]}, "[lowest, highest]"),
        ({"isLowest": 3}, "true or false"),
        ({"includeCategories": ["books"]}, "list of ids"),
        ({"excludeCategories": list(range(1, 502))}, "at most 500"),
    ],
)
def test_what_keepa_would_refuse_is_refused_before_it_costs_a_call(
    change: dict[str, Any], hint: str
) -> None:
    """A documented key with an impossible value is an error that names it."""
    with pytest.raises(QueryError) as caught:
        read(change)

    assert caught.value.key == f"selection.{next(iter(change))}"
    assert hint in caught.value.reason


@pytest.mark.parametrize(
    ("head", "key", "hint"),
    [
        ({"intervall": "5m"}, "intervall", "did you mean 'interval'"),
        ({"zzz": 1}, "zzz", "known are"),
        ({"interval": 5}, "interval", "duration"),
        ({"interval": "10d"}, "interval", "from 1 s to 7 d"),
        ({"priority": "urgent"}, "priority", "high, normal, low"),
        ({"max_pages": 0}, "max_pages", "from 1 to 67"),
        ({"max_pages": 1.5}, "max_pages", "whole number"),
        ({"sort": -1}, "sort", "one of"),
        ({"name": "two words"}, "name", "letters"),
        ({"name": 5}, "name", "letters"),
        ({"rules": []}, "rules", "object"),
        ({"enrichment": "yes"}, "enrichment", "object"),
        ({"enrichment": {"offer": 20}}, "enrichment.offer", "'offers'"),
        ({"enrichment": {"rating": 1}}, "enrichment.rating", "true or false"),
        ({"costs": {"other": -5}}, "costs.other", "whole number"),
    ],
)
def test_typos_in_the_head_are_errors(head: dict[str, Any], key: str, hint: str) -> None:
    """An unknown key is not ignored, and the nearest one is suggested."""
    with pytest.raises(QueryError) as caught:
        read(**head)

    assert caught.value.key == key
    assert hint in caught.value.reason


def test_unknown_selection_keys_are_sent_along() -> None:
    """Keepa may have more filters than its documentation."""
    assert read({"brandNew": ["x"]}).page_selection(0)["brandNew"] == ["x"]


def test_the_hash_is_of_what_is_asked_not_of_how_it_is_written() -> None:
    """Key order, quotes around numbers and the page change nothing; a filter does."""
    same = read({"domainId": 1, "page": 3, "sortType": "1"})
    turned = parse_query("some", json.dumps(dict(reversed(SELECTION.items()))))
    other = read({"minRating": 40})

    assert read().selection_hash == same.selection_hash == turned.selection_hash
    assert read().selection_hash != other.selection_hash
    assert read().selection_hash != read(sort=4).selection_hash


def test_a_bad_file_does_not_stop_the_others() -> None:
    """Good files are read, bad ones reported, and a name belongs to one file only."""
    good = json.dumps(SELECTION)
    again = json.dumps({"name": "a", "selection": SELECTION})

    book = read_queries({"a": good, "b": "{", "c": again, "d": good})

    assert [query.name for query in book.queries] == ["a", "d"]
    assert [(error.query, error.key) for error in book.errors] == [("b", "file"), ("c", "name")]


def test_warns_of_what_keepa_ignores() -> None:
    """Ranges that are off, undocumented periods and a too low percent are noted."""
    found = read(
        {"isRangeEnabled": False, "dateRange": 4, "deltaPercentRange": [5, 90]}, interval="30s"
    )

    notes = " / ".join(found.warnings)
    assert "isRangeEnabled is off" in notes
    assert "dateRange 4 is undocumented" in notes
    assert "below 10" in notes
    assert "interval below 2 m" in notes


def test_explains_a_query_in_words() -> None:
    """A person reads what is asked, how often, at what cost and under which rules."""
    words = read(rules={"price": {"max": 5_000}}, enrichment=True).explain()

    assert "USED prices on amazon.com; drops over 90 days; in categories 283155" in words
    assert "sort: 1 (deal age, newest first)" in words
    assert "5 tokens while fewer than 150 deals are new, at most 335 (67 pages)" in words
    assert "rule: price <= 50.00 USD (unknown rejects)" in words
    assert "details: of deals no rule is against, about 1 tokens each" in words


def test_a_byte_order_mark_is_no_error() -> None:
    """Some editors put one before the text."""
    assert parse_query("some", "\ufeff" + json.dumps(SELECTION)).domain_id == 1


def test_the_shipped_queries_are_good() -> None:
    """Everything in deploy/queries can be run as it is, without a warning."""
    book = read_queries({path.stem: path.read_text() for path in QUERY_FOLDER.glob("*.json")})

    assert len(book.queries) >= 3
    assert not book.errors
    assert not any(query.warnings for query in book.queries)
