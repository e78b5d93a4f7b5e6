"""Measurement of the real order of Keepa's sort types."""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from fetcher.broker_client import BrokerClient, Priority
from fetcher.commands.output import (
    EXIT_FAILED,
    EXIT_OK,
    Format,
    print_json,
    print_line,
    print_rows,
)
from fetcher.errors import FetcherError
from fetcher.keepa import Keepa, Reply
from fetcher.queries.query import DealQuery
from fetcher.query_folder import QueryFolder
from fetcher.replies.deals import Deal, parse_deal_page
from fetcher.replies.record import MalformedReplyError
from fetcher.replies.units import TOKENS_PER_DEAL_PAGE
from fetcher.scans.order import SortFinding, judge_sort
from fetcher.settings import Settings
from fetcher.work.paid_call import leased_call
from protos.process.environment import SettingsError
from protos.process.settings import key_fingerprint

BROKER_TIMEOUT_S: Final = 5.0
SORT_TYPES: Final = (0, 1, 2, 3, 4)

Fetch = Callable[[dict[str, object]], Reply]


@dataclass(frozen=True, slots=True)
class Finding:
    """The measured order of one sort type, and the cost of measuring it."""

    sort: SortFinding
    tokens: int


def verify_live(
    settings: Settings, *, query: str | None, pages: int, direct: bool, output: Format
) -> int:
    """Fetches the first *pages* pages of each sort type; returns the exit code.

    Each call has a lease. With *direct* none has, and the calls may take tokens that the
    broker has granted to others.
    """
    api_key = settings.require_api_key()
    asked = _query(settings.queries, query)
    with ExitStack() as stack:
        keepa = stack.enter_context(
            Keepa(
                api_key,
                base_url=settings.keepa_base_url,
                connect_timeout_s=settings.keepa_connect_timeout_s,
                read_timeout_s=settings.keepa_read_timeout_s,
                reply_bytes_max=settings.keepa_reply_max_bytes,
            )
        )
        fetch: Fetch = keepa.deals
        if not direct:
            broker = stack.enter_context(
                BrokerClient(
                    settings.broker_address,
                    key_fingerprint=key_fingerprint(api_key),
                    access=settings.require_access(),
                )
            )
            # A person waits for the command; a lease would wait for the broker for ever.
            broker.get_bucket(timeout_s=BROKER_TIMEOUT_S)

            def fetch(selection: dict[str, object]) -> Reply:
                with broker.lease(
                    "deal", tokens_per_unit=TOKENS_PER_DEAL_PAGE, priority=Priority.HIGH
                ) as lease:
                    return leased_call(lease, partial(keepa.deals, selection))

        findings = [_verify(asked, sort, pages, fetch) for sort in SORT_TYPES]
    _show(asked.name, findings, output)
    return _exit_code(findings)


def verify_files(
    paths: Iterable[Path],
    *,
    query: str | None,
    sort_type: int | None,
    queries: Path,
    output: Format,
) -> int:
    """Judges the saved replies to one *sort_type*, page by page.

    None means the query's own. A reply does not name the price type of its drops: if
    several queries could have sent the request, one must be named.
    """
    asked = _query(queries, query, only=True)
    pages = [_deals(asked, _load(path)) for path in paths]
    sort = asked.sort_type if sort_type is None else sort_type
    findings = [Finding(judge_sort(sort, pages), 0)]
    _show(asked.name, findings, output)
    return _exit_code(findings)


def _verify(query: DealQuery, sort_type: int, pages: int, fetch: Fetch) -> Finding:
    found: list[Sequence[Deal]] = []
    tokens = 0
    for page in range(pages):
        reply = fetch({**query.page_selection(page), "sortType": sort_type})
        tokens += 0 if reply.envelope is None else reply.envelope.tokens_consumed
        found.append(_deals(query, reply.body))
    return Finding(judge_sort(sort_type, found), tokens)


def _deals(query: DealQuery, body: dict[str, Any]) -> Sequence[Deal]:
    try:
        return parse_deal_page(
            body,
            domain_id=query.domain_id,
            price_type=query.price_type,
            date_range=query.date_range,
        ).deals
    except MalformedReplyError as exc:
        problem = f"no page of deals: {exc}"
    raise FetcherError(problem)


def _load(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError) as exc:
        problem = f"{path}: {exc}"
    else:
        if isinstance(body, dict):
            return body
        problem = f"{path}: not a saved reply, which is a JSON object"
    raise FetcherError(problem)


def _query(folder: Path, name: str | None, *, only: bool = False) -> DealQuery:
    """Returns the query called *name*, else the first; with *only*, the only one."""
    reader = QueryFolder(folder)
    reader.refresh()
    queries = reader.book.queries
    known = ", ".join(query.name for query in queries) or "none"
    if only and name is None and len(queries) > 1:
        raise SettingsError([f"--query: name the query that got the replies: {known}"])
    found = queries[0] if queries and name is None else reader.find(name or "")
    if found is None:
        raise SettingsError(
            [f"QUERIES: no query {name or ''} in {folder.absolute()} (usable there: {known})"]
        )
    return found


def _show(query: str, findings: Sequence[Finding], output: Format) -> None:
    rows = [_row(finding) for finding in findings]
    if output is Format.JSON:
        print_json({"query": query, "sorts": rows, "tokens": sum(f.tokens for f in findings)})
        return
    print_rows(f"Sort types, measured with {query}", rows, output)
    print_line(f"{sum(finding.tokens for finding in findings)} tokens spent")


def _row(finding: Finding) -> dict[str, object]:
    sort = finding.sort
    return {
        "sort": sort.sort_type,
        "documented as": sort.meaning,
        "rows": sort.rows,
        "newest update": _time(sort.newest_update_ms),
        "oldest update": _time(sort.oldest_update_ms),
        "newest creation": _time(sort.newest_creation_ms),
        "oldest creation": _time(sort.oldest_creation_ms),
        "really ordered by": sort.order.words(),
        "verdict": sort.verdict,
        "tokens": finding.tokens,
    }


def _time(unix_ms: int | None) -> datetime | None:
    return None if unix_ms is None else datetime.fromtimestamp(unix_ms / 1000, UTC)


def _exit_code(findings: Iterable[Finding]) -> int:
    wrong = any(finding.sort.verdict == "not as documented" for finding in findings)
    return EXIT_FAILED if wrong else EXIT_OK
