"""Troubles of the collection that operators are alerted to, without Prometheus.

Law:
1. A trouble is reported once it has lasted for its time, and once more when it is over.
2. What can't be judged now (too little history, the broker or Postgres away) neither begins
   nor ends a trouble.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from fetcher.postgres.measures import PageCounts, QueryProgress
from fetcher.queries.query import DealQuery
from fetcher.replies.units import span_words
from fetcher.scans.intervals import LONGEST_INTERVAL_MS


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of trouble: how long it lasts before it is reported, and what to do about it."""

    title: str
    for_s: float
    remedy: str


# The same limits as those of deploy/prometheus/alerts.yml.
TROUBLES: Final[Mapping[str, Kind]] = {
    "stale": Kind(
        "stale data", 300, "dealfetcher scans; causes are too few tokens, or no fetcher"
    ),
    "old": Kind("old deals", 1_800, "look at the query's sort type and filters"),
    "no_fetchers": Kind("no fetcher", 300, "dealfetcher run; the logs show why they ended"),
    "dead_pages": Kind("dead pages", 60, "dealfetcher pages dead, then dealfetcher pages requeue"),
    "starved": Kind("token starvation", 300, "tokenbroker status"),
    "foreign": Kind(
        "foreign spending", 0, "let it lease from the broker, or set BROKER_FLOOR_TOKENS"
    ),
    "broker_away": Kind("no broker", 120, "look at its log; tokenbroker serve starts one"),
}
OLD_DEALS_S: Final = 86_400
SCAN_SLACK_S: Final = 600
STARVED_S: Final = 900
FOREIGN_WINDOW_S: Final = 3_600
FOREIGN_TOKENS: Final = 10


@dataclass(frozen=True, slots=True)
class Trouble:
    """A trouble that exists now; *subject* distinguishes those of one kind."""

    kind: str
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Findings:
    """The troubles of this moment, and the kinds that could be judged at all."""

    present: tuple[Trouble, ...]
    judged: frozenset[str]


def judge_collection(
    queries: Sequence[DealQuery],
    progress: Sequence[QueryProgress],
    pages: PageCounts,
    fetchers: int,
    *,
    poll_speed: float = 1.0,
) -> Findings:
    """Judges what Postgres holds about the collection."""
    found = [
        *_stale(queries, progress, poll_speed),
        *(
            Trouble(
                "old", one.query, f"The newest deal of {one.query} is {span_words(age_s)} old."
            )
            for one in progress
            if (age_s := one.newest_deal_age_s) is not None and age_s > OLD_DEALS_S
        ),
    ]
    if queries and not fetchers:
        found.append(Trouble("no_fetchers", "", "No fetcher is alive."))
    if pages.dead:
        text = f"Fetchers gave up {pages.dead} pages after repeated failures."
        found.append(Trouble("dead_pages", "", text))
    return Findings(tuple(found), frozenset({"stale", "old", "no_fetchers", "dead_pages"}))


def _stale(
    queries: Sequence[DealQuery], progress: Sequence[QueryProgress], poll_speed: float
) -> Iterator[Trouble]:
    intervals_s = {
        query.name: (query.interval_ms or LONGEST_INTERVAL_MS) / 1000 / poll_speed
        for query in queries
    }
    for one in progress:
        limit_s = 2 * intervals_s[one.query] + SCAN_SLACK_S
        if one.scan_age_s is None:
            yield Trouble("stale", one.query, f"{one.query} has never been scanned.")
        elif one.scan_age_s > limit_s:
            text = f"{one.query} has had no scan for {span_words(one.scan_age_s)}."
            yield Trouble("stale", one.query, text)


@dataclass(frozen=True, slots=True)
class BrokerLook:
    """What the broker showed at *now_s* on this process's monotonic clock."""

    now_s: float
    waiting: int
    spent_tokens: int
    foreign_tokens: int


@dataclass(slots=True)
class BrokerHistory:
    """The last hour of looks at the broker; one epoch of it."""

    _epoch: int | None = None
    _looks: deque[BrokerLook] = field(default_factory=deque)

    def judge(self, look: BrokerLook, *, epoch: int) -> Findings:
        """Judges *look* beside those before; a broker that restarted begins its history anew."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._looks.clear()
        self._looks.append(look)
        while look.now_s - self._looks[0].now_s > FOREIGN_WINDOW_S:
            self._looks.popleft()
        found: list[Trouble] = []
        judged = {"broker_away"}
        lately = [one for one in self._looks if look.now_s - one.now_s <= STARVED_S]
        spends = look.spent_tokens > lately[0].spent_tokens
        waits = all(one.waiting for one in lately)
        if spends or not waits:
            judged.add("starved")
        elif look.now_s - self._looks[0].now_s >= STARVED_S:
            judged.add("starved")
            text = f"{look.waiting} requests wait; the broker spent nothing for 15 minutes."
            found.append(Trouble("starved", "", text))
        foreign = look.foreign_tokens - self._looks[0].foreign_tokens
        if foreign > FOREIGN_TOKENS:
            judged.add("foreign")
            text = f"Another user of this key spent {foreign} tokens within an hour."
            found.append(Trouble("foreign", "", text))
        elif look.now_s - self._looks[0].now_s >= FOREIGN_WINDOW_S / 2:
            judged.add("foreign")
        return Findings(tuple(found), frozenset(judged))


def broker_is_away() -> Findings:
    """Returns the finding for a broker that gives no answer."""
    away = Trouble("broker_away", "", "The broker gives no answer, so nothing is collected.")
    return Findings((away,), frozenset({"broker_away"}))
