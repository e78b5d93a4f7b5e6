"""Rules: acceptance, rejection with every reason, and the unknown."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetcher.queries.conditions import FACTS
from fetcher.queries.enrichment import Enrichment
from fetcher.queries.reader import BadKeyError
from fetcher.queries.rules import Breakdown, RuleCount, RuleSet, Verdict, evaluate, read_rules
from tests.fetcher.builders import (
    MINUTE_MS,
    NOW_MS,
    PRICE_TYPES,
    deal,
    deal_row,
    product,
    product_row,
)

DETAILS = Enrichment()
MANUAL = Path(__file__).parents[3] / "deploy" / "queries" / "README.md"
UNRANKED: dict[str, Any] = {"current": [-1, -1, 2_000, *[-1] * (PRICE_TYPES - 3)]}


def rules(*, enrichment: Enrichment | None = None, **written: object) -> RuleSet:
    """A rule set from the content of a query file."""
    return read_rules(written, enrichment=enrichment)


def reasons(verdict: Verdict) -> list[tuple[str, str, str | None]]:
    """The failures of *verdict* as plain tuples."""
    return [(failure.rule, failure.outcome, failure.value) for failure in verdict.failures]


def test_without_rules_every_deal_is_accepted() -> None:
    """No rule, no reason to reject."""
    verdict = evaluate(read_rules(None, enrichment=None), deal(), now_ms=NOW_MS)

    assert (verdict.state, verdict.stage, verdict.failures) == ("accepted", "deal", ())


def test_every_failed_rule_is_named_with_limit_and_value() -> None:
    """A rejected deal shows all that is wrong with it, not only the first thing."""
    ruleset = rules(price={"min": 3_000}, rank={"max": 40_000}, rating={"min": 40})

    verdict = evaluate(ruleset, deal(), now_ms=NOW_MS)

    assert verdict.state == "rejected"
    assert reasons(verdict) == [("price", "failed", "2000"), ("rank", "failed", "50000")]
    assert [failure.limit for failure in verdict.failures] == [">= 3000", "<= 40000"]


@pytest.mark.parametrize(
    ("name", "accepting", "rejecting"),
    [
        ("price", {"min": 2_000, "max": 2_000}, {"max": 1_999}),
        ("drop", {"min": 3_000}, {"min": 3_001}),
        ("drop_percent", {"min": "60"}, {"min": 61}),
        ("last_drop", {"max": 0}, {"min": 1}),
        ("rank", {"max": 50_000}, {"max": 49_999}),
        ("rating", {"min": 45}, {"min": 46}),
        ("reviews", {"min": 68}, {"min": 69}),
        ("category", {"include": [4367]}, {"exclude": [283155]}),
        ("title", {"include": ["TITLE"]}, {"exclude": ["a  title"]}),
        ("title", {"exclude": ["tit"]}, {"include": ["tit"]}),
        ("deal_age", {"max": "1h"}, {"max": "59m"}),
        ("data_age", {"max": "0s"}, {"min": "1s"}),
        ("amazon", {"is": False}, {"is": True}),
    ],
)
def test_each_rule_on_a_deal_has_two_sides(name: str, accepting: Any, rejecting: Any) -> None:
    """The limit itself is inside, and the first value beyond it outside."""
    states = [
        evaluate(rules(**{name: limits}), deal(), now_ms=NOW_MS).state
        for limits in (accepting, rejecting)
    ]

    assert states == ["accepted", "rejected"]


@pytest.mark.parametrize(
    ("name", "accepting", "rejecting"),
    [
        ("brand", {"include": ["ACME"]}, {"exclude": ["acme"]}),
        ("total_offers", {"max": 7}, {"max": 6}),
        ("monthly_sold", {"min": 50}, {"min": 51}),
        ("rank", {"max": 20_000}, {"max": 19_999}),
        ("rank_average_90", {"max": 25_000}, {"max": 24_999}),
        ("amazon", {"is": False}, {"is": True}),
        ("profit", {"min": 999}, {"min": 1_000}),
        ("roi_percent", {"min": 49}, {"min": 50}),
    ],
)
def test_each_rule_on_details_has_two_sides(name: str, accepting: Any, rejecting: Any) -> None:
    """Once there are details they decide, also against an older value of the deal."""
    states = [
        evaluate(
            rules(enrichment=DETAILS, **{name: limits}), deal(), product(), now_ms=NOW_MS
        ).state
        for limits in (accepting, rejecting)
    ]

    assert states == ["accepted", "rejected"]


@pytest.mark.parametrize(
    ("on_unknown", "state"),
    [(None, "rejected"), ("reject", "rejected"), ("pass", "accepted"), ("pending", "pending")],
)
def test_unknown_is_an_outcome_of_its_own(on_unknown: str | None, state: str) -> None:
    """A missing rank is neither zero nor good nor bad: the query decides."""
    ruleset = rules(enrichment=DETAILS, rank={"max": 100, "unknown": on_unknown})

    verdict = evaluate(ruleset, deal(**UNRANKED), now_ms=NOW_MS)

    assert verdict.state == state
    assert reasons(verdict) == ([] if state == "accepted" else [("rank", "unknown", None)])


def test_details_end_the_waiting() -> None:
    """A rank that the deal lacked is found in the details, or its lack rejects."""
    ruleset = rules(enrichment=DETAILS, rank={"max": 30_000, "unknown": "pending"})
    bare = product(stats=None)

    known = evaluate(ruleset, deal(**UNRANKED), product(), now_ms=NOW_MS)
    unknown = evaluate(ruleset, deal(**UNRANKED), bare, now_ms=NOW_MS)

    assert (known.state, known.stage) == ("accepted", "product")
    assert (unknown.state, reasons(unknown)) == ("rejected", [("rank", "unknown", None)])


def test_a_rule_on_details_waits_for_them() -> None:
    """Nothing known is against the deal, so its details are worth buying."""
    verdict = evaluate(rules(enrichment=DETAILS, profit={"min": 1}), deal(), now_ms=NOW_MS)

    assert (verdict.state, reasons(verdict)) == ("pending", [("profit", "unknown", None)])


def test_what_is_rejected_already_waits_for_nothing() -> None:
    """No token is spent on a deal that a known value rules out."""
    ruleset = rules(enrichment=DETAILS, profit={"min": 1}, price={"max": 1})

    verdict = evaluate(ruleset, deal(), now_ms=NOW_MS)

    assert (verdict.state, reasons(verdict)) == ("rejected", [("price", "failed", "2000")])


def test_the_profit_estimate_goes_with_the_verdict() -> None:
    """Its inputs can be stored and looked at later."""
    verdict = evaluate(rules(enrichment=DETAILS), deal(), product(), now_ms=NOW_MS)

    assert verdict.profit is not None
    assert verdict.profit.profit_minor == 999


def test_times_ahead_of_the_clock_are_of_age_zero() -> None:
    """Some of Keepa's times run slightly ahead; nothing is negatively old."""
    verdict = evaluate(rules(data_age={"max": "0s"}), deal(), now_ms=NOW_MS - 5 * MINUTE_MS)

    assert verdict.state == "accepted"


@pytest.mark.parametrize(
    ("written", "key", "hint"),
    [
        ({"prise": {"max": 1}}, "rules.prise", "did you mean 'price'"),
        ({"price": 5}, "rules.price", "object"),
        ({"price": {}}, "rules.price", "min, max"),
        ({"price": {"maximum": 1}}, "rules.price.maximum", "unknown key"),
        ({"price": {"min": 5, "max": 4}}, "rules.price.min", "above max"),
        ({"price": {"min": "cheap"}}, "rules.price.min", "whole number"),
        ({"price": {"min": 1, "unknown": "?"}}, "rules.price.unknown", "pass, reject, pending"),
        ({"price": {"min": 1, "unknown": "pending"}}, "rules.price.unknown", "enrichment"),
        ({"deal_age": {"max": 5}}, "rules.deal_age.max", "duration"),
        ({"title": {"exclude": []}}, "rules.title.exclude", "empty"),
        ({"title": {"exclude": "word"}}, "rules.title.exclude", "list of words"),
        ({"category": {"include": ["x"]}}, "rules.category.include", "whole numbers"),
        ({"amazon": {"is": "no"}}, "rules.amazon.is", "true or false"),
        ({"profit": {"min": 1}}, "rules.profit", "enrichment"),
    ],
)
def test_a_bad_rule_is_named(written: dict[str, Any], key: str, hint: str) -> None:
    """The complaint names the rule's key and what to write instead."""
    with pytest.raises(BadKeyError) as caught:
        rules(**written)

    assert caught.value.key == key
    assert hint in caught.value.reason


def test_the_version_changes_with_whatever_changes_a_verdict() -> None:
    """It separates stored verdicts from newer rules."""
    versions = {
        rules(price={"max": 1}).version,
        rules(price={"max": 2}).version,
        rules(price={"max": 1, "unknown": "pass"}).version,
        rules(enrichment=DETAILS, price={"max": 1}).version,
    }

    assert len(versions) == 4
    assert rules(price={"max": 1}).version in versions


def test_a_breakdown_in_words_counts_each_rule() -> None:
    """One line shows why deals were rejected, with the unknown apart."""
    against = (RuleCount("price", failed=2, unknown=0), RuleCount("rank", failed=0, unknown=1))

    assert (
        Breakdown(accepted=1, pending=0, rejected=2, rules=against).words()
        == "1 accepted, 0 pending, 2 rejected: price 2, rank 1 (1 unknown)"
    )
    assert Breakdown(0, 0, 0, ()).words() == "0 accepted, 0 pending, 0 rejected"


@given(name=st.sampled_from(sorted(FACTS)), unknown=st.sampled_from(["pass", "reject"]))
def test_a_deal_of_which_nothing_is_known_never_fails_a_rule(name: str, unknown: str) -> None:
    """Whatever the rule, no value is not a value."""
    kinds: dict[str, dict[str, Any]] = {
        "number": {"min": 1, "max": 1},
        "money": {"min": 1},
        "duration": {"max": "1h"},
        "codes": {"include": [5]},
        "words": {"include": ["x"]},
        "phrases": {"include": ["x"]},
        "truth": {"is": True},
    }
    limits = kinds[FACTS[name].kind]
    nothing: dict[str, Any] = dict.fromkeys(product_row(), None) | {"asin": "B000000001"}
    empty: dict[str, Any] = dict.fromkeys(deal_row(), None)
    del empty["asin"]
    written: dict[str, Any] = {name: {**limits, "unknown": unknown}}
    ruleset = rules(enrichment=DETAILS, **written)

    verdict = evaluate(ruleset, deal(**empty), product(**nothing), now_ms=NOW_MS)

    expected = [] if unknown == "pass" else [(name, "unknown", None)]
    assert reasons(verdict) == expected


@given(price=st.integers(-2, 10_000), least=st.integers(0, 10_000), most=st.integers(0, 10_000))
def test_a_range_accepts_exactly_what_is_in_it(price: int, least: int, most: int) -> None:
    """Limits are inclusive, and an unknown price is in no range."""
    low, high = sorted((least, most))
    found = deal(current=[-1, -1, price, *[-1] * (PRICE_TYPES - 3)])

    verdict = evaluate(rules(price={"min": low, "max": high}), found, now_ms=NOW_MS)

    assert (verdict.state == "accepted") is (price >= 0 and low <= price <= high)


def test_every_rule_is_in_the_manual() -> None:
    """The README of the queries lists every rule."""
    manual = MANUAL.read_text(encoding="utf-8")

    assert [name for name in FACTS if f"`{name}`" not in manual] == []
