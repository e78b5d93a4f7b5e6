"""Alerts on freshly judged deals, decided and put into the outbox in the page's transaction."""

from collections.abc import Iterable, Mapping

from fetcher.postgres.alerts import (
    Remembered,
    Report,
    end_first_run,
    judged_at_ms,
    memories,
    post,
    remember,
    report,
    standings_of_alerts,
)
from fetcher.postgres.database import Connection
from fetcher.postgres.marks import marked_asins
from fetcher.queries.alerts import Alert, Memory, Reading, decide
from fetcher.queries.conditions import Facts
from fetcher.queries.judging import JudgedDeal
from fetcher.queries.query import DealQuery


def alert_about(
    connection: Connection,
    query: DealQuery,
    judged: Iterable[JudgedDeal],
    *,
    is_news: bool,
    fills_gap: bool = False,
) -> None:
    """Decides about deals after their verdicts were stored; the caller commits.

    Args:
        connection: In the transaction that has stored the verdicts.
        query: The query that judged.
        judged: Its verdicts; of two on a deal, the last one counts.
        is_news: False if the verdicts are new because the rules are.
        fills_gap: The deals come late, out of a gap: older ones than the alert are no news.
    """
    if not query.alerts:
        return
    standings = standings_of_alerts(connection, query)
    latest = {one.deal.asin: one for one in judged}
    stored_ms = judged_at_ms(connection, query, list(latest))
    # What a person has marked as ignored or bought is reported no more.
    marked = marked_asins(connection, query.domain_id, list(latest))
    current = [
        one
        for asin, one in latest.items()
        if stored_ms.get(asin) == one.reply_time_ms and asin not in marked
    ]
    if not current:
        return
    remembered = memories(connection, query, [one.deal.asin for one in current])
    for alert in query.alerts:
        of_alert = {asin: memory for (key, asin), memory in remembered.items() if key == alert.key}
        standing = standings[alert.key]
        news_from_ms: int | None = None
        if is_news and standing.is_primed:
            news_from_ms = standing.added_ms if fills_gap else 0
        _alert(connection, query, alert, current, of_alert, news_from_ms=news_from_ms)


def _alert(
    connection: Connection,
    query: DealQuery,
    alert: Alert,
    judged: Iterable[JudgedDeal],
    remembered: Mapping[str, Memory],
    *,
    news_from_ms: int | None,
) -> None:
    """Decides for one alert; deals created before *news_from_ms* are no news, None: none is."""
    changes: list[Remembered] = []
    reports: list[Report] = []
    for one in judged:
        deal, verdict = one.deal, one.verdict
        facts = Facts(deal, one.product, verdict.profit, one.reply_time_ms)
        reading = Reading(
            matches=alert.matches(verdict, facts),
            value=deal.value,
            time_ms=one.reply_time_ms,
            is_news=news_from_ms is not None and (deal.creation_ms or 0) >= news_from_ms,
            is_complete=(
                query.enrichment is None
                or verdict.stage == "product"
                or verdict.state == "rejected"
            ),
        )
        before = remembered.get(deal.asin)
        memory, occasion = decide(alert, before, reading)
        if memory != before:
            changes.append(Remembered(deal.asin, memory))
        if occasion is not None:
            reports.append(Report(deal.asin, one.reply_time_ms, occasion, picture(one)))
    remember(connection, query, alert, changes)
    report(connection, query, alert, reports)


def sum_up_first_run(connection: Connection, query: DealQuery) -> None:
    """Posts one summary for each alert of *query*, at the end of its first scan."""
    if not query.alerts:
        return
    standings_of_alerts(connection, query)
    for key, count in end_first_run(connection, query).items():
        alert = next(alert for alert in query.alerts if alert.key == key)
        post(
            connection,
            channel=alert.channel,
            kind="summary",
            query=query.name,
            rule=key,
            content={"matches": count, "alert": alert.words()},
        )


def picture(judged: JudgedDeal) -> dict[str, object]:
    """Returns the deal as an alert shows it; amounts in minor units, times in Unix ms."""
    deal, profit = judged.deal, judged.verdict.profit
    return {
        "domain_id": deal.domain_id,
        "asin": deal.asin,
        "price_type": deal.price_type,
        "title": deal.title,
        "state": judged.verdict.state,
        "value": deal.value,
        "price_minor": deal.price_minor,
        "average_minor": deal.average_minor,
        "drop_percent": deal.drop_percent,
        "date_range": deal.date_range,
        "rank": deal.rank,
        "rating": deal.rating,
        "reviews": deal.reviews,
        "profit_minor": None if profit is None else profit.profit_minor,
        "roi_percent": None if profit is None else profit.roi_percent,
        "served_ms": judged.reply_time_ms,
    }
