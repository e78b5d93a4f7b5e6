"""The report of a day, from the simulator's journal, a second catalogue and Postgres.

A catalogue with equal seed and start has equal events at equal times, so it shows at no cost
which deals matched a selection at any time.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from deploy.keepa_simulator.catalogue import Catalogue
from deploy.keepa_simulator.deal_query import PAGE_ROWS, order_of, select
from deploy.keepa_simulator.keepa_time import even_keepa_minutes
from deploy.keepa_simulator.selection import Selection, parse_selection
from tests.e2e.collection import PAGE_TOKENS, Call, fetch, stored_deals
from tests.fix_simulator import RunningSimulator, price_type_of

# A killed process may hold a reply that it had no time to write.
IN_HAND_MS: Final = 2_000
OVERPAID_MAX: Final = 0.02

WHOLE_SCANS: Final = """
SELECT s.id, s.kind, s.selection::text, p.page, (p.facts ->> 'server_ms')::bigint,
       (extract(epoch FROM p.reply_time) * 1000)::bigint
  FROM scans s JOIN scan_pages p ON p.scan_id = s.id
 WHERE s.state = 'completed' AND s.end_reason IN ('short page', 'counted end')
   AND p.state = 'done' AND (s.plan ->> 'first_page')::int = 0
   AND NOT EXISTS (SELECT FROM scan_pages c WHERE c.scan_id = s.id AND c.state = 'done'
                      AND (c.facts ->> 'cached')::boolean)
 ORDER BY s.id, p.page
"""
# Necessary pages of a scan: each once, none beyond its end, none without a row.
NEEDED_PAGES: Final = """
SELECT count(*) FROM scan_pages p JOIN scans s ON s.id = p.scan_id
 WHERE p.state = 'done' AND p.row_count > 0 AND (s.end_page IS NULL OR p.page <= s.end_page)
"""
PAGES_READ: Final = """
SELECT coalesce(sum(reads), 0)::int, coalesce(sum(reads - 1) FILTER (WHERE reads > 0), 0)::int
  FROM scan_pages
"""
SCANS: Final = "SELECT kind, state, count(*) FROM scans GROUP BY 1, 2 ORDER BY 1, 2"
TWICE_IN_HISTORY: Final = """
SELECT count(*) FROM (SELECT 1 FROM deal_changes
                       GROUP BY domain_id, asin, price_type, reply_time HAVING count(*) > 1) t
"""
UNJUDGED: Final = """
SELECT count(*) FROM deals d WHERE NOT EXISTS (
    SELECT 1 FROM verdicts v WHERE v.domain_id = d.domain_id AND v.asin = d.asin
                               AND v.price_type = d.price_type)
"""

# More rows than these come or go only while a scan stands still: it proves nothing then.
SHIFT_MAX_ROWS: Final = PAGE_ROWS // 2

# Domain, ASIN, price type.
Key = tuple[int, str, int]
# What a row is ordered by.
Order = tuple[int, ...]


@dataclass(frozen=True, order=True, slots=True)
class Read:
    """The time at which a page of a scan was read, and whether it had been read before."""

    at_ms: int
    page: int
    is_again: bool


@dataclass(frozen=True, slots=True)
class View:
    """What a selection showed at one time: order and page of each deal, and what it counts."""

    places: dict[Key, tuple[Order, int]]
    category_counts: dict[int, int]

    @property
    def rows(self) -> int:
        """All rows, as Keepa counts them."""
        return sum(self.category_counts.values())

    def on(self, page: int) -> set[Key]:
        """The deals on one page."""
        return {key for key, (_, at) in self.places.items() if at == page}


@dataclass(frozen=True, slots=True)
class WholeScan:
    """A scan that read down to the last row, each page as it was at the time.

    Only full scans read a border again after rows have moved over it.
    """

    is_full: bool
    selection: Selection
    reads: tuple[Read, ...]


@dataclass(frozen=True, slots=True)
class DayReport:
    """The figures of a day.

    Args:
        lost: Rows that were served whole, and never stored.
        stale: Stored in an older state than the newest one served.
        in_hand: Lost or stale rows that only a process killed at that time had received.
        unseen: Deals that kept their place throughout a completed full scan, and aren't stored.
        slipped: The same of other scans that reached the last row. They leave rows that
            moved over a border to the next scan, which may come too late.
        doubled: Changes written twice into the history.
        unjudged: Deals without any verdict.
        pages_reread: Pages of full scans read again, as rows had moved over their border.
        pages_needed: Pages that a perfect reader would have read for the same scans.
        products_needed: Products with bought details, each once.
    """

    served: int
    stored: int
    lost: list[Key]
    stale: list[Key]
    in_hand: int
    kills: int
    full_scans: int
    unseen: list[Key]
    slipped: list[Key]
    doubled: int
    unjudged: int
    scans: dict[str, int]
    pages_read: int
    pages_reread: int
    pages_needed: int
    products_bought: int
    products_needed: int
    spent_tokens: int
    settled_tokens: int
    refused: int
    order_warnings: int
    tracebacks: int
    exit_codes: list[int | None]

    @property
    def needed_tokens(self) -> int:
        """What a perfect reader pays for the same scans and details."""
        return self.pages_needed * PAGE_TOKENS + self.products_needed

    @property
    def overpaid(self) -> float:
        """Share of the cost that a perfect reader would have saved."""
        return self.spent_tokens / self.needed_tokens - 1 if self.needed_tokens else 0.0

    def figures(self) -> dict[str, Any]:
        """The figures to print."""
        shown = {name: getattr(self, name) for name in self.__slots__}
        lists = {name: len(shown[name]) for name in ("lost", "stale", "unseen", "slipped")}
        return {
            **shown,
            **lists,
            "needed_tokens": self.needed_tokens,
            "overpaid": round(self.overpaid, 4),
        }

    def losses(self) -> list[str]:
        """Violations of guarantees that hold on every day."""
        checks = {
            "nothing was collected": self.stored > 0,
            f"served, but not stored: {self.lost[:5]}": not self.lost,
            f"stored in an older state than served: {self.stale[:5]}": not self.stale,
            f"in place throughout a full scan, but not stored: {self.unseen[:5]}": not self.unseen,
            "changes are in the history twice": not self.doubled,
            "deals have no verdict": not self.unjudged,
            "a fetcher complained of a bug": not self.tracebacks,
            f"fetchers ended with {self.exit_codes}": set(self.exit_codes) == {0},
        }
        return [text for text, fine in checks.items() if not fine]

    def problems(self, *, quiet: bool) -> list[str]:
        """Violations after a whole day; on a quiet one they include the cost."""
        checks = {
            "no full scan was followed by another": self.full_scans > 0,
            "an order without a watermark stop was not complained of": self.order_warnings > 0,
        }
        bill = {
            f"{self.refused} calls were refused": not self.refused,
            "broker and simulator count differently": self.settled_tokens == self.spent_tokens,
            f"{self.overpaid:.1%} overpaid": self.overpaid <= OVERPAID_MAX,
        }
        wanted = checks | (bill if quiet else {})
        return [*self.losses(), *(text for text, fine in wanted.items() if not fine)]


def report_on(
    *,
    database_url: str,
    simulator: RunningSimulator,
    options: dict[str, Any],
    settled_tokens: int,
    kills_ms: Sequence[int],
    exit_codes: list[int | None],
    output: str,
) -> DayReport:
    """Compares the deals of *simulator*, served or not, with the database."""
    calls, stats = simulator.calls(), simulator.stats()
    stored = stored_deals(database_url)
    everything, certain = newest_served(calls), newest_served(calls, without=kills_ms)
    scans = completed_scans(database_url)
    full_scans = [scan for scan in scans if scan.is_full]
    matched = in_place_throughout(full_scans, options, start_ms=stats["start_ms"])
    others = in_place_throughout(scans, options, start_ms=stats["start_ms"]) - matched
    pages_read, pages_reread = fetch(database_url, PAGES_READ)[0]
    pages_needed = fetch(database_url, NEEDED_PAGES)[0][0]
    return DayReport(
        served=len(everything),
        stored=len(stored),
        lost=sorted(certain.keys() - stored.keys()),
        stale=sorted(key for key in certain if stored.get(key, certain[key]) < certain[key]),
        in_hand=sum(stored.get(key, -1) < update for key, update in everything.items()),
        kills=len(kills_ms),
        full_scans=len(full_scans),
        unseen=sorted(matched - stored.keys()),
        slipped=sorted(others - stored.keys()),
        doubled=fetch(database_url, TWICE_IN_HISTORY)[0][0],
        unjudged=fetch(database_url, UNJUDGED)[0][0],
        scans={f"{kind} {state}": count for kind, state, count in fetch(database_url, SCANS)},
        pages_read=pages_read,
        pages_reread=pages_reread,
        pages_needed=pages_needed,
        products_bought=sum(len(call["asins"]) for call in calls),
        products_needed=len(products_served(calls)),
        spent_tokens=stats["spent"],
        settled_tokens=settled_tokens,
        refused=stats["throttled"],
        order_warnings=output.count("rows don't come newest first"),
        tracebacks=output.count("Traceback") + output.count("unexpected error"),
        exit_codes=exit_codes,
    )


def newest_served(calls: Iterable[Call], without: Sequence[int] = ()) -> dict[Key, int]:
    """The newest lastUpdate served of every deal, without calls that a kill hit."""
    newest: dict[Key, int] = {}
    for call in calls:
        begun_ms = call["time_ms"]
        latest_ms = begun_ms + call["duration_ms"] + IN_HAND_MS
        if call["delivered"] and not any(begun_ms <= at_ms <= latest_ms for at_ms in without):
            for domain, asin, last_update, _ in call["rows"]:
                key = (domain, asin, price_type_of(call))
                newest[key] = max(last_update, newest.get(key, 0))
    return newest


def products_served(calls: Iterable[Call]) -> set[str]:
    """The products with details bought at least once."""
    return {asin for call in calls for asin in call["asins"]}


def completed_scans(database_url: str) -> list[WholeScan]:
    """The scans that have read down to the last row, in the order of their start.

    Left out are those with a page from the cache: it shows an earlier time, and such scans
    prove nothing.
    """
    scans: dict[int, tuple[str, str, set[Read]]] = {}
    for scan, kind, selection, page, first_ms, last_ms in fetch(database_url, WHOLE_SCANS):
        reads = scans.setdefault(scan, (kind, selection, set()))[2]
        reads.add(Read(first_ms, page, is_again=False))
        if last_ms > first_ms:
            reads.add(Read(last_ms, page, is_again=True))
    return [
        WholeScan(kind == "full", parse_selection(text), tuple(sorted(reads)))
        for kind, text, reads in scans.values()
    ]


def in_place_throughout(
    scans: Sequence[WholeScan], options: dict[str, Any], *, start_ms: int
) -> set[Key]:
    """The deals that at least one of *scans* must have seen; see `certainly_seen`."""
    # Time in a catalogue only moves forward.
    moments = sorted((read, number) for number, scan in enumerate(scans) for read in scan.reads)
    catalogue = Catalogue(
        seed=options["seed"],
        domain=1,
        products=options["products"],
        deals=options["deals"],
        speed=options["deal_speed"],
        start_ms=start_ms,
    )
    views: dict[int, dict[Read, View]] = {}
    found: set[Key] = set()
    for read, number in moments:
        catalogue.advance(read.at_ms)
        seen = views.setdefault(number, {})
        seen[read] = view(catalogue, scans[number].selection, read.at_ms)
        if len(seen) == len(scans[number].reads):
            found |= certainly_seen(views.pop(number))
    return found


def certainly_seen(views: Mapping[Read, View]) -> set[Key]:
    """The deals that a scan must have seen, by what its selection showed at each of its reads.

    They matched all the time. Three events let a scan miss such a deal, and it may have ended
    before the next scan:

    1. What it is ordered by changes, such as its date. It leaves a page that is not read yet
       for one that has been.
    2. It has left a page before this page is read again.
    3. It moves over a border to the page that has been read, and no count of a category
       differs: as many rows have gone above the border as have come below it.

    A scan proves nothing if half a page of rows has gone between two of its pages.
    """
    reads = sorted(views)
    before = views[reads[0]].places
    steady = {
        key
        for key, (order, _) in before.items()
        if all(key in view.places and view.places[key][0] == order for view in views.values())
    }
    pages = sorted((read for read in reads if not read.is_again), key=lambda read: read.page)
    for border in pairwise(pages):
        earlier, later = sorted(border)
        then, now = views[earlier], views[later]
        if abs(now.rows - then.rows) > SHIFT_MAX_ROWS:
            return set()
        if now.category_counts == then.category_counts:
            steady -= then.on(later.page) & now.on(earlier.page)
    for again in (read for read in reads if read.is_again):
        stood = set().union(*(views[read].on(again.page) for read in reads if read < again))
        steady -= stood - views[again].on(again.page)
    return steady


def view(catalogue: Catalogue, wanted: Selection, at_ms: int) -> View:
    """What *wanted* selects, page by page."""
    order = order_of(wanted.sort_type, wanted.date_range)
    found = select(catalogue.deals, wanted, even_keepa_minutes(at_ms))
    places = {
        (wanted.domain, listing.facts.asin, wanted.price_type): (
            order((listing, listing.figures(wanted.price_type))),
            index // PAGE_ROWS,
        )
        for index, listing in enumerate(found.deals)
    }
    return View(places, found.category_counts)
