"""The check of query files before tokens are spent on them."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from fetcher.alerts.channels import read_channels
from fetcher.broker_client import BrokerClient, BrokerClientError
from fetcher.commands.output import (
    EXIT_FAILED,
    EXIT_OK,
    Format,
    print_json,
    print_line,
    print_rows,
)
from fetcher.queries.query import QueryBook, QueryError
from fetcher.query_folder import QueryFolder
from fetcher.replies.units import currency_code, span_words
from fetcher.scans.forecast import HOUR_MS, HOURS_PER_DAY, PlanForecast, forecast
from fetcher.settings import Settings
from protos.process.environment import SettingsError

# The forecast is useful without a broker: it is not awaited for long.
BROKER_TIMEOUT_S: Final = 3.0
MINUTES_PER_HOUR: Final = 60


def check_queries(folder: Path, *, channels: Path | None, output: Format) -> int:
    """Explains every query and names every mistake; returns the exit code.

    Args:
        folder: The query files.
        channels: The file of channels, which must have those that alerts name; None: any.
        output: The format.

    Raises:
        ChannelsError: The file of channels is unusable.
    """
    book = _read(folder)
    if channels is not None:
        book = replace(book, errors=(*book.errors, *_unknown_channels(book, channels)))
    if output is Format.JSON:
        print_json(
            {
                "queries": [
                    {
                        "name": query.name,
                        "selection_hash": query.selection_hash,
                        "sort": query.sort_words,
                        "priority": query.priority,
                        "interval_ms": query.interval_ms,
                        "max_pages": query.max_pages,
                        "cost_per_scan": query.cost_per_scan,
                        "rules": query.rules.words(query.domain_id),
                        "currency": currency_code(query.domain_id),
                        "warnings": query.warnings,
                        "words": query.explain(),
                    }
                    for query in book.queries
                ],
                "errors": [
                    {"query": error.query, "key": error.key, "reason": error.reason}
                    for error in book.errors
                ],
            }
        )
    else:
        for query in book.queries:
            for line in (*query.explain().split("\n"), ""):
                print_line(line)
        for error in book.errors:
            print_line(f"REFUSED {error}")
        print_line(f"{len(book.queries)} queries are fine, {len(book.errors)} files refused")
    return EXIT_FAILED if book.errors else EXIT_OK


def _unknown_channels(book: QueryBook, channels: Path) -> Iterator[QueryError]:
    """Yields the channels that alerts name and the file lacks, with the nearest that it has."""
    known = read_channels(channels).by_name
    for query in book.queries:
        for number, alert in enumerate(query.alerts):
            if alert.channel not in known:
                nearest = get_close_matches(alert.channel, known, n=1)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(known)}"
                reason = f"ALERTS_FILE has no channel {alert.channel!r}; {hint}"
                yield QueryError(query.name, f"alerts[{number}].channel", reason)


@dataclass(frozen=True, slots=True)
class BrokerNews:
    """Plan and costs as the broker reports them; `trouble` is why it could not be asked."""

    refill_per_hour: float | None = None
    costs: Mapping[str, float] = field(default_factory=dict)
    trouble: str = ""


def forecast_queries(
    settings: Settings,
    folder: Path,
    *,
    refill_rate: float | None,
    deals_per_hour: float,
    output: Format,
) -> int:
    """Prints what the queries will cost, and whether the plan covers it.

    Returns the exit code: 1 if a file was refused.

    Args:
        settings: How to reach the broker.
        folder: The query files.
        refill_rate: Tokens a minute of the plan; None: the broker is asked.
        deals_per_hour: New deals an hour that each query is assumed to yield.
        output: The format.
    """
    book = _read(folder)
    news = _ask_broker(settings)
    refill_per_hour = news.refill_per_hour
    if refill_rate is not None:
        refill_per_hour = refill_rate * MINUTES_PER_HOUR
    plan = forecast(
        book.queries,
        costs=news.costs,
        refill_per_hour=refill_per_hour,
        deals_per_hour=deals_per_hour,
    )
    if output is Format.JSON:
        print_json(_forecast_json(plan, news))
    else:
        _print_forecast(plan, news)
    for error in book.errors:
        sys.stderr.write(f"REFUSED {error}\n")
    return EXIT_FAILED if book.errors else EXIT_OK


def _read(folder: Path) -> QueryBook:
    if not folder.is_dir():
        raise SettingsError([f"QUERIES: {folder.absolute()} is no folder: name the one to check"])
    reader = QueryFolder(folder)
    reader.refresh()
    if not reader.book.queries and not reader.book.errors:
        raise SettingsError([f"QUERIES: {folder.absolute()} holds no *.json file"])
    return reader.book


def _ask_broker(settings: Settings) -> BrokerNews:
    """Reads plan and costs; a forecast is made without them, too."""
    news = BrokerNews()
    try:
        access = settings.require_access()
        with BrokerClient(settings.broker_address, access=access) as broker:
            bucket = broker.get_bucket(timeout_s=BROKER_TIMEOUT_S)
            if bucket.refill_rate > 0 and bucket.refill_period_s > 0:
                refills_per_hour = HOUR_MS / 1000 / bucket.refill_period_s
                news = BrokerNews(bucket.refill_rate * refills_per_hour)
            else:
                news = BrokerNews(trouble="the broker has read no refill rate yet")
            return replace(news, costs=broker.get_costs(timeout_s=BROKER_TIMEOUT_S))
    except (SettingsError, BrokerClientError) as exc:
        return replace(news, trouble=str(exc))


def _forecast_json(plan: PlanForecast, news: BrokerNews) -> dict[str, Any]:
    return {
        "queries": [
            {
                "name": query.name,
                "interval_ms": query.interval_ms,
                "interval_fixed": query.fixed,
                "pages_per_hour": round(query.pages, 2),
                "page_tokens_per_hour": round(query.page_tokens, 1),
                "full_scan_tokens_per_hour": round(query.full_tokens, 1),
                "details_per_hour": round(query.details, 2),
                "detail_tokens_per_hour": round(query.detail_tokens, 1),
                "tokens_per_hour": round(query.tokens_per_hour, 1),
                "tokens_per_day": round(query.tokens_per_hour * HOURS_PER_DAY),
            }
            for query in plan.queries
        ],
        "tokens_per_hour": round(plan.tokens_per_hour, 1),
        "tokens_per_day": round(plan.tokens_per_hour * HOURS_PER_DAY),
        "refill_tokens_per_hour": plan.refill_per_hour,
        "carried": plan.carried,
        "learned_costs": dict(news.costs),
        "assumptions": plan.assumptions,
        "broker_trouble": news.trouble or None,
    }


def _print_forecast(plan: PlanForecast, news: BrokerNews) -> None:
    print_rows(
        "Tokens an hour",
        [
            {
                "query": query.name,
                "every": span_words(query.interval_ms / 1000) + ("" if query.fixed else " *"),
                "pages": round(query.pages, 1),
                "for_pages": round(query.page_tokens),
                "full_scans": round(query.full_tokens),
                "details": round(query.detail_tokens),
                "tokens_an_hour": round(query.tokens_per_hour),
                "tokens_a_day": round(query.tokens_per_hour * HOURS_PER_DAY),
            }
            for query in plan.queries
        ],
        Format.TABLE,
    )
    if not all(query.fixed for query in plan.queries):
        print_line("* as the tokens allow")
    day = plan.tokens_per_hour * HOURS_PER_DAY
    total = f"{plan.tokens_per_hour:.0f} tokens an hour, {day:.0f} a day"
    if plan.refill_per_hour is None:
        print_line(
            f"All queries: {total}. Whether the plan covers it is not known: start the broker"
            " (BROKER_ADDRESS), or give --refill-rate"
        )
    else:
        verdict = "covers it" if plan.carried else "does NOT cover it"
        print_line(
            f"All queries: {total}. The plan refills {plan.refill_per_hour:.0f} an hour"
            f" and {verdict}"
        )
    for assumption in plan.assumptions:
        print_line(f"Assumed: {assumption}")
    if news.trouble:
        print_line(f"Not asked: the broker: {news.trouble}")
