"""Alerts: how a query file asks for them, and when a deal is reported."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetcher.queries.alerts import Alert, Memory, Reading, decide, read_alerts
from fetcher.queries.conditions import Facts
from fetcher.queries.query import DealQuery, QueryError, parse_query
from fetcher.queries.rules import evaluate
from tests.fetcher.builders import NOW_MS, deal, product
from tests.fetcher.keepa_pages import query_text

MINUTE_MS = 60_000
QUIET_MS = 10 * MINUTE_MS


def query(*alerts: Any, **head: Any) -> DealQuery:
    """A query on used prices with *alerts*."""
    return parse_query("used", query_text(alerts=list(alerts), **head))


def alert(**written: Any) -> Alert:
    """An alert to the channel "team"."""
    return read_alerts([{"channel": "team", **written}], enrichment=None, price_type=2)[0]


def reports_on(
    alert: Alert, readings: list[Reading]
) -> tuple[list[tuple[int, str]], Memory | None]:
    """The reports on *readings* in turn: time and occasion; and the memory at the end."""
    memory: Memory | None = None
    reports: list[tuple[int, str]] = []
    for reading in readings:
        memory, occasion = decide(alert, memory, reading)
        if occasion is not None:
            reports.append((reading.time_ms, occasion))
    return reports, memory


def at(minute: int, *, matches: bool = True, value: int | None = 1000, **more: Any) -> Reading:
    """A reading at that minute."""
    return Reading(matches, value, minute * MINUTE_MS, **more)


def test_a_channel_alone_means_every_deal_newly_accepted() -> None:
    """The shortest alert has the defaults of all the others."""
    [short] = query({"channel": "team"}).alerts

    assert (short.channel, short.state, short.conditions) == ("team", "accepted", ())
    assert (short.quiet_ms, short.digest_ms, short.again_drop_percent) == (QUIET_MS, None, None)


def test_an_alert_is_explained_in_words() -> None:
    """The whole entry stands in the query's explanation."""
    written = {
        "channel": "team",
        "when": {"profit": {"min": 500}},
        "again": {"drop_percent": 10},
        "quiet": "30m",
        "digest": "1h",
    }
    words = query(written, enrichment=True).explain()

    assert (
        "alert: to team when accepted, profit >= 500; again 10 % lower; at most every 30 m on a"
        " deal; collected for 1 h" in words
    )


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ({"channel": "team"}, "alerts"),
        ([{}], "alerts[0].channel"),
        ([{"channel": "a b"}], "alerts[0].channel"),
        ([{"channel": "x" * 64}], "alerts[0].channel"),
        ([{"channel": "team", "wen": {}}], "alerts[0].wen"),
        ([{"channel": "team", "when": []}], "alerts[0].when"),
        ([{"channel": "team", "when": {"state": "good"}}], "alerts[0].when.state"),
        ([{"channel": "team", "when": {"prize": {"max": 1}}}], "alerts[0].when.prize"),
        ([{"channel": "team", "when": {"profit": {"min": 1}}}], "alerts[0].when.profit"),
        (
            [{"channel": "team", "when": {"price": {"max": 1, "unknown": "pass"}}}],
            "alerts[0].when.price.unknown",
        ),
        ([{"channel": "team", "again": {"drop_percent": 100}}], "alerts[0].again.drop_percent"),
        ([{"channel": "team", "quiet": "soon"}], "alerts[0].quiet"),
        ([{"channel": "team", "digest": "8d"}], "alerts[0].digest"),
        ([{"channel": "team"}, {"channel": "team"}], "alerts[1]"),
        ([{"channel": f"c{n}"} for n in range(21)], "alerts"),
    ],
)
def test_a_mistake_is_named(written: object, key: str) -> None:
    """An unusable alert is refused by the key that is wrong."""
    with pytest.raises(QueryError) as caught:
        parse_query("used", query_text(alerts=written))

    assert caught.value.key == key


def test_money_is_refused_where_the_price_type_is_none() -> None:
    """A condition on a price can't hold for a sales rank."""
    written = [{"channel": "team", "when": {"price": {"max": 1}}}]
    with pytest.raises(QueryError) as caught:
        parse_query("ranks", query_text(price_type=3, alerts=written))

    assert caught.value.key == "alerts[0].when.price"


def test_channel_and_condition_make_the_alert() -> None:
    """Quiet, digest and again may change, and nothing is reported anew."""
    same = {alert().key, alert(quiet="1h").key, alert(digest="1h").key}
    other = {alert(when={"state": "pending"}).key, alert(when={"price": {"max": 5}}).key}

    assert len(same) == 1
    assert len(same | other) == 3


def test_conditions_hold_beside_the_verdict() -> None:
    """A deal must be in the state, and known to be within each limit."""
    asked = query(
        {"channel": "team", "when": {"price": {"max": 2000}, "profit": {"min": 500}}},
        enrichment=True,
    )
    [wanted] = asked.alerts
    served = deal()
    alone = evaluate(asked.rules, served, now_ms=NOW_MS)
    informed = evaluate(asked.rules, served, product(), now_ms=NOW_MS)

    assert not wanted.matches(alone, Facts(served, None, None, NOW_MS))
    assert wanted.matches(informed, Facts(served, product(), informed.profit, NOW_MS))


def test_a_crossing_is_reported_once() -> None:
    """A deal that goes on matching is not reported again, however often it is read."""
    reports, _ = reports_on(alert(), [at(minute) for minute in (0, 0, 5, 20, 500)])

    assert reports == [(0, "crossing")]


def test_a_deal_that_comes_back_is_reported_again() -> None:
    """One alert is not followed by silence: the next crossing is one too."""
    readings = [at(0), at(20, matches=False), at(40), at(60)]
    reports, _ = reports_on(alert(), readings)

    assert reports == [(0, "crossing"), (40 * MINUTE_MS, "crossing")]


def test_a_deal_that_flickers_is_reported_once_per_quiet() -> None:
    """A crossing within the quiet time waits for the first reading after it."""
    readings = [at(minute, matches=minute % 2 == 0) for minute in range(31)]
    reports, _ = reports_on(alert(), readings)

    assert reports == [(minute * MINUTE_MS, "crossing") for minute in (0, 10, 20, 30)]


def test_a_further_drop_is_reported_against_the_last_report() -> None:
    """Cents are no news; ten percent below what was last reported are."""
    readings = [at(0), at(20, value=950), at(40, value=901), at(60, value=900), at(80, value=811)]
    reports, memory = reports_on(alert(again={"drop_percent": 10}), readings)

    assert reports == [(0, "crossing"), (60 * MINUTE_MS, "again")]
    assert memory == Memory("in", 900, 60 * MINUTE_MS)


def test_what_was_there_before_is_no_news() -> None:
    """A deal of the first run is remembered, and reported only after it has left."""
    readings = [at(0, is_news=False), at(20), at(40, matches=False), at(60)]
    reports, _ = reports_on(alert(), readings)

    assert reports == [(60 * MINUTE_MS, "crossing")]


def test_details_that_come_after_the_first_run_are_no_news() -> None:
    """A deal found in the first run is none of the new ones when its details arrive."""
    first = at(0, matches=False, is_news=False, is_complete=False)
    reports, _ = reports_on(alert(), [first, at(1, matches=False, is_complete=False), at(20)])
    new, _ = reports_on(alert(), [at(0, matches=False, is_complete=False), at(20)])

    assert reports == []
    assert new == [(20 * MINUTE_MS, "crossing")]


READINGS = st.lists(
    st.builds(
        Reading,
        matches=st.booleans(),
        value=st.none() | st.integers(0, 3000),
        time_ms=st.integers(0, 60).map(lambda minute: minute * MINUTE_MS),
        is_news=st.sampled_from([True, True, True, False]),
        is_complete=st.booleans(),
    ),
    max_size=40,
).map(lambda readings: sorted(readings, key=lambda reading: reading.time_ms))
ALERTS = st.builds(
    lambda quiet, again: alert(quiet=f"{quiet}m", again={"drop_percent": again} if again else {}),
    st.integers(0, 20),
    st.none() | st.integers(1, 99),
)


@given(ALERTS, READINGS)
def test_reports_keep_the_law(asked: Alert, readings: list[Reading]) -> None:
    """Whatever comes: only matches, only news, never twice within the quiet time."""
    memory, times = None, []
    for reading in readings:
        again_memory, again = decide(asked, memory, reading)
        memory, occasion = decide(asked, memory, reading)
        assert (again_memory, again) == (memory, occasion)
        # The same reading once more, as after a kill or a change of another alert.
        repeated, once_more = decide(asked, memory, reading)
        assert once_more is None
        assert repeated == memory
        if occasion is not None:
            assert reading.matches
            assert reading.is_news
            times.append(reading.time_ms)

    assert all(later - earlier >= asked.quiet_ms for earlier, later in pairwise(times))


@given(READINGS)
def test_each_stay_beyond_the_quiet_time_is_reported(readings: list[Reading]) -> None:
    """A deal seen to match, as news, out of every quiet time, has been reported in that stay."""
    asked, memory = alert(quiet="5m"), None
    reported_in_stay, last_ms = False, -QUIET_MS
    for reading in readings:
        was_silent = memory is not None and memory.phase == "before"
        if not reading.matches:
            reported_in_stay = False
        memory, occasion = decide(asked, memory, reading)
        if not reading.is_news or was_silent:
            # Such a stay needs no report.
            reported_in_stay = reading.matches
        if occasion is not None:
            reported_in_stay, last_ms = True, reading.time_ms

        if reading.matches and reading.time_ms - last_ms >= asked.quiet_ms:
            assert reported_in_stay


def test_the_example_of_the_documents_is_read() -> None:
    """The entry in the module's text is a usable alert."""
    text = (
        '{"channel": "team", "when": {"state": "accepted", "profit": {"min": 500}},'
        ' "again": {"drop_percent": 10}, "quiet": "10m", "digest": "1h"}'
    )
    [asked] = query(json.loads(text), enrichment=True).alerts

    assert asked.digest_ms == 60 * MINUTE_MS
