"""A query file: what to ask Keepa, how often, and which answers are wanted.

A file is JSON: either a selection exactly as Keepa's site shows it, or an object with
that selection under "selection" and these keys beside it:

    name             name of the query; otherwise the file's name
    sort             Keepa's sort type; otherwise the selection's own, otherwise 1
    interval         time between scans, such as "5m"; otherwise adapted to the budget
    priority         high, normal (default) or low: its share while tokens are short
    max_pages        most pages of one scan; otherwise as many as there are
    full_scan_every  "24h" (default), or "never": finds deals that enter a filter with an old date
    rules            see conditions.py
    enrichment       true, or which details to buy of the products behind accepted deals
    alerts           which deals are reported to which channel; see alerts.py
    costs            {"inbound_per_kg": …, "other": …}, minor units, for the profit rules
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast

from fetcher.queries import selection as keepa_selection
from fetcher.queries.alerts import Alert, read_alerts
from fetcher.queries.enrichment import Enrichment, read_enrichment
from fetcher.queries.profit import ProfitCosts
from fetcher.queries.reader import (
    DURATION_UNITS_MS,
    BadKeyError,
    Section,
    duration_words,
    read_json,
)
from fetcher.queries.rules import RuleSet, check_price_rules, read_rules
from fetcher.replies.record import INT32_MAX
from fetcher.replies.units import (
    CACHE_MS,
    NEWEST_FIRST,
    PAGES_MAX,
    ROWS_PER_PAGE,
    SORT_MEANINGS,
    TOKENS_PER_DEAL_PAGE,
)

Priority = Literal["high", "normal", "low"]

PRIORITIES: Final = ("high", "normal", "low")
HEAD_KEYS: Final = (
    "name",
    "sort",
    "interval",
    "priority",
    "max_pages",
    "full_scan_every",
    "rules",
    "enrichment",
    "alerts",
    "costs",
    "selection",
)
DAY_MS: Final = DURATION_UNITS_MS["d"]
INTERVAL_LEAST_MS: Final = DURATION_UNITS_MS["s"]
FULL_SCAN_EVERY_MS: Final = DAY_MS
FULL_SCAN_LEAST_MS: Final = DURATION_UNITS_MS["h"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")


class QueryError(ValueError):
    """A query file can't be used; the error names the query, the key and the remedy."""

    def __init__(self, query: str, key: str, reason: str) -> None:
        super().__init__(f"query {query}: {key}: {reason}")
        self.query = query
        self.key = key
        self.reason = reason


@dataclass(frozen=True, slots=True)
class DealQuery:
    """One deal query, ready to be scanned; durations in milliseconds.

    ``interval_ms`` is None if the budget decides, ``max_pages`` if only Keepa's own limit
    holds, ``full_scan_every_ms`` if no full scan is wanted.
    """

    name: str
    selection: Mapping[str, object]
    domain_id: int
    price_type: int
    date_range: int
    sort_type: int
    interval_ms: int | None
    priority: Priority
    max_pages: int | None
    full_scan_every_ms: int | None
    rules: RuleSet
    enrichment: Enrichment | None
    alerts: tuple[Alert, ...]
    selection_hash: str
    warnings: tuple[str, ...]

    def page_selection(self, page: int) -> dict[str, object]:
        """Returns the selection for *page* (from 0): as pasted, except page and sort."""
        return {**self.selection, "page": page, "sortType": self.sort_type}

    @property
    def sort_words(self) -> str:
        """The sort type with its meaning: "1 (deal age, newest first)"."""
        return f"{self.sort_type} ({SORT_MEANINGS[self.sort_type]})"

    @property
    def pages_per_scan(self) -> int:
        """Most pages that one scan reads."""
        return min(self.max_pages or PAGES_MAX, PAGES_MAX)

    @property
    def cost_per_scan(self) -> str:
        """The cost of a scan, in words."""
        most = self.pages_per_scan
        tokens = most * TOKENS_PER_DEAL_PAGE
        if self.sort_type != NEWEST_FIRST:
            return f"{TOKENS_PER_DEAL_PAGE} tokens a page, every page each time, at most {tokens}"
        return (
            f"{TOKENS_PER_DEAL_PAGE} tokens while fewer than {ROWS_PER_PAGE} deals are new, "
            f"at most {tokens} ({most} pages)"
        )

    def explain(self) -> str:
        """Returns the whole query in words, one line per part."""
        interval = "as often as the budget allows"
        if self.interval_ms is not None:
            interval = f"every {duration_words(self.interval_ms)}"
        full_scan = "never"
        if self.full_scan_every_ms is not None:
            full_scan = f"every {duration_words(self.full_scan_every_ms)}"
        parts = [
            f"asks: {'; '.join(keepa_selection.selection_words(self.selection))}",
            f"sort: {self.sort_words}",
            f"when: {interval}, {self.priority} priority",
            f"full scan: {full_scan}",
            f"cost: {self.cost_per_scan}",
            *(f"rule: {rule}" for rule in self.rules.words(self.domain_id)),
        ]
        if self.enrichment is not None:
            tokens = self.enrichment.tokens_per_product
            parts.append(f"details: of deals no rule is against, about {tokens} tokens each")
        parts += [f"alert: {alert.words()}" for alert in self.alerts]
        parts += [f"note: {warning}" for warning in self.warnings]
        return "\n".join((f"{self.name} [{self.selection_hash}]", *map("  ".__add__, parts)))


@dataclass(frozen=True, slots=True)
class QueryBook:
    """The query files of a folder: the usable queries, and the errors of the other files."""

    queries: tuple[DealQuery, ...]
    errors: tuple[QueryError, ...]


def read_queries(files: Mapping[str, str]) -> QueryBook:
    """Reads *files*, texts by file stem; a bad one does not stop the others."""
    queries: dict[str, DealQuery] = {}
    errors: list[QueryError] = []
    for stem in sorted(files):
        try:
            query = parse_query(stem, files[stem])
        except QueryError as error:
            errors.append(error)
            continue
        if query.name in queries:
            errors.append(QueryError(stem, "name", f"{query.name!r} is taken; choose another"))
        else:
            queries[query.name] = query
    return QueryBook(tuple(queries.values()), tuple(errors))


def parse_query(name: str, text: str) -> DealQuery:
    """Reads the *text* of a query file; *name* is the file's stem.

    Raises:
        QueryError: naming the key and what to write instead.
    """
    try:
        return _read(name, read_json(text))
    except BadKeyError as error:
        raise QueryError(name, error.key, error.reason) from error


def _read(stem: str, written: Mapping[str, object]) -> DealQuery:
    if "selection" not in written:
        if strays := [key for key in written if key in HEAD_KEYS]:
            raise BadKeyError(strays[0], 'put Keepa\'s own JSON under "selection" beside this key')
        written = {"selection": written}
    head = Section(written)
    head.allow_only(HEAD_KEYS)
    selection = Section(head.value("selection"), "selection")
    asked = _asked(head, cast("Mapping[str, object]", head.value("selection")))
    try:
        keepa_selection.check_selection(asked)
    except BadKeyError as error:
        raise BadKeyError(selection.key(error.key), error.reason) from error
    enrichment = read_enrichment(head.value("enrichment"))
    rules = read_rules(head.value("rules"), enrichment=enrichment, costs=_costs(head))
    check_price_rules(rules, keepa_selection.price_type(asked))
    alerts = read_alerts(
        head.value("alerts"),
        enrichment=enrichment,
        price_type=keepa_selection.price_type(asked),
    )
    name = head.value("name") if head.has("name") else stem
    if not isinstance(name, str) or not _NAME.match(name):
        raise BadKeyError("name", "write up to 63 letters, digits, dots, dashes or underscores")
    interval_ms = None
    if head.value("interval") != "adaptive":
        interval_ms = head.duration_ms("interval", least_ms=INTERVAL_LEAST_MS, most_ms=7 * DAY_MS)
    full_scan_every_ms = None
    if head.value("full_scan_every") != "never":
        full_scan_every_ms = FULL_SCAN_EVERY_MS
        if head.has("full_scan_every"):
            full_scan_every_ms = head.duration_ms(
                "full_scan_every", least_ms=FULL_SCAN_LEAST_MS, most_ms=30 * DAY_MS
            )
    warnings = keepa_selection.selection_warnings(asked)
    if (interval_ms or CACHE_MS) < CACHE_MS:
        words = duration_words(CACHE_MS)
        note = f"interval below {words}: Keepa repeats an answer that long, so {words} it will be"
        warnings = (*warnings, note)
    return DealQuery(
        name=name,
        selection=asked,
        domain_id=keepa_selection.domain_id(asked),
        price_type=keepa_selection.price_type(asked),
        date_range=keepa_selection.date_range(asked),
        sort_type=keepa_selection.sort_type(asked),
        interval_ms=interval_ms,
        priority=cast("Priority", head.choice("priority", PRIORITIES) or "normal"),
        max_pages=head.whole("max_pages", least=1, most=PAGES_MAX),
        full_scan_every_ms=full_scan_every_ms,
        rules=rules,
        enrichment=enrichment,
        alerts=alerts,
        selection_hash=keepa_selection.selection_hash(asked),
        warnings=warnings,
    )


def _asked(head: Section, selection: Mapping[str, object]) -> dict[str, object]:
    """Returns the selection with the head's sort, which replaces a pasted one."""
    sort = head.whole("sort", least=min(SORT_MEANINGS), most=max(SORT_MEANINGS))
    if sort is None:
        return dict(selection)
    if sort not in SORT_MEANINGS:
        raise BadKeyError("sort", f"write one of {', '.join(map(str, SORT_MEANINGS))}")
    return {**selection, "sortType": sort}


def _costs(head: Section) -> ProfitCosts:
    section = Section(head.value("costs") or {}, "costs")
    section.allow_only(("inbound_per_kg", "other"))
    return ProfitCosts(
        inbound_per_kg_minor=section.whole("inbound_per_kg", least=0, most=INT32_MAX) or 0,
        other_minor=section.whole("other", least=0, most=INT32_MAX) or 0,
    )
