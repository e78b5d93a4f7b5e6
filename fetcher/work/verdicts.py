"""Verdicts, from judging to storing: on a page's deals, and again on stored ones.

Stored deals are judged again, without spending a token, after details have arrived and
after the rules or the date range of a query have changed.
"""

from collections import ChainMap
from collections.abc import Iterable, Sequence
from typing import Final

from fetcher.postgres.database import Connection
from fetcher.postgres.deals import lock_listings
from fetcher.postgres.products import known_products, want_products
from fetcher.postgres.stored_deals import StoredDeal, deals_judged_by, outdated_deals
from fetcher.postgres.verdicts import delete_outdated, delete_strays, upsert_verdicts
from fetcher.queries.judging import Judgement, judge_deals, request_of
from fetcher.queries.query import DealQuery
from fetcher.replies.deals import Deal, parse_deal
from fetcher.work.alerts import alert_about

BATCH: Final = 500


def judge_and_store(
    connection: Connection,
    query: DealQuery,
    deals: Sequence[Deal],
    *,
    reply_time_ms: int,
    scan_id: int | None,
    fills_gap: bool = False,
) -> None:
    """Judges *deals* as served at *reply_time_ms*; stores verdicts, wanted products, alerts."""
    known = known_products(connection, query, [deal.asin for deal in deals])
    judgement = judge_deals(query, deals, known, reply_time_ms=reply_time_ms)
    _store(connection, query, [judgement], scan_id=scan_id, is_news=True, fills_gap=fills_gap)


def judge_again(
    connection: Connection, queries: Iterable[DealQuery], domain_id: int, asins: Sequence[str]
) -> None:
    """Judges stored deals again for every query that has a verdict on them."""
    for query in queries:
        if query.domain_id == domain_id and query.enrichment is not None:
            stored = deals_judged_by(connection, query, asins)
            _judge_stored(connection, query, stored, is_news=True)


def judge_outdated(connection: Connection, query: DealQuery) -> int:
    """Judges up to BATCH deals again that an older version of *query* judged; returns how many.

    When none is left, it deletes the query's verdicts on price types and sites that the
    query no longer asks for.
    """
    stored = outdated_deals(connection, query, limit=BATCH)
    _judge_stored(connection, query, stored, is_news=False)
    if not stored:
        delete_strays(connection, query)
    return len(stored)


def _judge_stored(
    connection: Connection, query: DealQuery, stored: Sequence[StoredDeal], *, is_news: bool
) -> None:
    asins = [row.asin for row in stored]
    lock_listings(connection, query.domain_id, asins)
    known = known_products(connection, query, asins)
    judgements = [
        judge_deals(
            query,
            # Only rows that name a product were ever stored, so that each parses.
            [
                parse_deal(
                    row.raw,
                    domain_id=query.domain_id,
                    price_type=query.price_type,
                    date_range=query.date_range,
                )
            ],
            known,
            reply_time_ms=row.reply_time_ms,
        )
        for row in stored
    ]
    _store(connection, query, judgements, scan_id=None, is_news=is_news)
    delete_outdated(connection, query, asins)


def _store(
    connection: Connection,
    query: DealQuery,
    judgements: Sequence[Judgement],
    *,
    scan_id: int | None,
    is_news: bool,
    fills_gap: bool = False,
) -> None:
    # All products before all verdicts, everywhere: writers never wait in a circle.
    request = request_of(query)
    if request is not None:
        wanted = ChainMap(*(dict(judgement.wanted) for judgement in judgements))
        want_products(connection, request, wanted)
    verdicts = [verdict for judgement in judgements for verdict in judgement.verdicts]
    upsert_verdicts(connection, query.name, verdicts, scan_id=scan_id)
    alert_about(connection, query, verdicts, is_news=is_news, fills_gap=fills_gap)
