"""One process that delivers alerts: a thread per channel, one for troubles, one heartbeat.

Law:
1. A message is delivered at least once, under the same id at every try. A sender that dies
   between delivery and note leaves its claim to lapse: another one delivers again.
2. Channels don't wait for each other; a failing one delays its own messages only.
3. A message that has failed too often is set aside until an operator retries it.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import structlog

from fetcher.alerts.channels import Channel, Channels
from fetcher.alerts.delivery import DeliveryError, deliver, load_services
from fetcher.alerts.troubles import (
    TROUBLES,
    BrokerHistory,
    BrokerLook,
    Findings,
    broker_is_away,
    judge_collection,
)
from fetcher.broker_client import BrokerClient, BrokerClientError
from fetcher.errors import DatabaseAwayError, FetcherError
from fetcher.postgres import Database
from fetcher.postgres.alerts import post
from fetcher.postgres.claims import bury_claims, fail_claims
from fetcher.postgres.database import Connection
from fetcher.postgres.measures import count_fetchers, measure_pages, measure_progress
from fetcher.postgres.outbox import (
    MESSAGES,
    MessageClaim,
    MustWait,
    beat_sender,
    channels_with_mail,
    claim_message,
    follow_troubles,
    leave_senders,
    note_delivery,
    read_message,
    take_trouble_report,
)
from fetcher.query_folder import QueryFolder
from fetcher.work.shared import Troubles
from fetcher.work.threads import Activities, Threads
from protos.process.watched_files import Followed

log = structlog.get_logger(__name__)

Result = TypeVar("Result")

# Half of the delay from commit to delivery, at most.
POLL_S: Final = 0.5
AWAY_PAUSE_S: Final = 2.0
BEAT_EVERY_S: Final = 5.0
LOOK_EVERY_S: Final = 30.0
RETRY_LONGEST_S: Final = 3_600.0
# A send ends within the time limits of `delivery`.
SEND_AT_MOST_S: Final = 120.0
FINISH_S: Final = 2.5
BROKER_TIMEOUT_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class SendLimits:
    """How long a claim lasts, and how often and how soon a failed message is tried again."""

    claim_ttl_s: float
    attempts_max: int
    retry_delay_s: float

    def retry_delay(self, attempts: int) -> float:
        """Returns the seconds after *attempts* failed tries: doubles up to an hour, varies."""
        delay_s = min(self.retry_delay_s * 2 ** min(attempts - 1, 30), RETRY_LONGEST_S)
        return float(delay_s * random.uniform(0.8, 1.2))  # noqa: S311 - jitter


class Sender:
    """Delivers what the outbox holds until it is stopped.

    Args:
        holder: The name of this process.
        version: The program's version.
        database: Where the outbox is.
        channels: The channels, kept up to date.
        folder: The queries, for the troubles of operators.
        broker: Asked for its bucket, for the troubles of operators.
        limits: Claims and tries.
    """

    def __init__(
        self,
        *,
        holder: str,
        version: str,
        database: Database,
        channels: Followed[Channels],
        folder: QueryFolder,
        broker: BrokerClient,
        limits: SendLimits,
        fetcher_silent_s: float,
    ) -> None:
        self._holder, self._version = holder, version
        self._database, self._channels = database, channels
        self._folder, self._broker, self._limits = folder, broker, limits
        self._fetcher_silent_s = fetcher_silent_s
        self.stop = threading.Event()
        self._activities = Activities()
        self._fatal: Exception | None = None
        self._threads = Threads(self.stop, self._activities, fatal=(), end=self._end_by)
        self._troubles = Troubles()
        self._serving: set[str] = set()
        self._unknown: set[str] = set()
        self._history = BrokerHistory()

    def run(self) -> None:
        """Delivers until `stop` is set.

        Raises:
            FetcherError: A thread can't go on.
        """
        # Here, because warnings are filtered for all threads.
        load_services()
        try:
            self._threads.start("heartbeat", self._safely(self._beat))
            self._threads.start("troubles", self._safely(self._look))
            while not self.stop.wait(POLL_S):
                for name in self._channels.now().by_name.keys() - self._serving:
                    self._serving.add(name)
                    self._threads.start(f"channel {name}", self._safely(partial(self.serve, name)))
        finally:
            self.stop.set()
            self._threads.join(until_s=time.monotonic() + FINISH_S)
            self._leave()
        if self._fatal is not None:
            raise self._fatal

    def serve(self, name: str) -> float:
        """Delivers one message to the channel *name*; returns the seconds to rest."""
        channel = self._channels.now().by_name.get(name)
        if channel is None:
            return BEAT_EVERY_S
        claim = self._transact(
            lambda connection: claim_message(
                connection,
                name,
                channel.rate,
                holder=self._holder,
                ttl_s=self._limits.claim_ttl_s,
            )
        )
        if claim is None:
            return POLL_S
        if isinstance(claim, MustWait):
            return min(max(claim.delay_s, 0.01), BEAT_EVERY_S)
        self._deliver(channel, claim)
        return 0.0

    def _deliver(self, channel: Channel, claim: MessageClaim) -> None:
        about: dict[str, str | int] = {"channel": channel.name, "message": claim.id}
        if claim.attempts >= self._limits.attempts_max:
            # Each sender that claimed it has died.
            reason = f"given up after {claim.attempts} tries that did not end"
            self._transact(lambda connection: bury_claims(connection, MESSAGES, [claim], reason))
            log.error("alert set aside", **about, problem=reason)
            return
        message = self._transact(lambda connection: read_message(connection, claim))
        try:
            deliver(channel, message)
        except DeliveryError as exc:
            self._fail(claim, exc, about)
            return
        self._insist(lambda connection: note_delivery(connection, claim))
        log.info("alert delivered", **about, deals=message.total, tries=claim.attempts + 1)

    def _fail(self, claim: MessageClaim, exc: DeliveryError, about: dict[str, str | int]) -> None:
        attempts = claim.attempts + 1
        if exc.is_final or attempts >= self._limits.attempts_max:
            self._insist(lambda connection: bury_claims(connection, MESSAGES, [claim], str(exc)))
            log.error("alert set aside: dealfetcher alerts retry", **about, problem=str(exc))
            return
        delay_s = exc.pause_s or self._limits.retry_delay(attempts)
        self._insist(
            lambda connection: fail_claims(
                connection, MESSAGES, [claim], str(exc), delays_s=[delay_s]
            )
        )
        log.warning("alert not delivered", **about, problem=str(exc), retry_in_s=round(delay_s))

    def _transact(self, change: Callable[[Connection], Result]) -> Result:
        with self._database.connection() as connection:
            return change(connection)

    def _insist(self, change: Callable[[Connection], object]) -> None:
        """Runs *change*, also if Postgres is away for a moment: else a message goes twice."""
        give_up_s = time.monotonic() + self._limits.claim_ttl_s
        while True:
            try:
                self._transact(change)
            except DatabaseAwayError as exc:
                self._troubles.begin(exc)
                if time.monotonic() > give_up_s or self.stop.wait(POLL_S):
                    raise
            else:
                return

    def _safely(self, step: Callable[[], float]) -> Callable[[], float]:
        """Returns *step* for a thread: Postgres away is waited for, and logged once."""

        def run() -> float:
            self._activities.begin("working", at_most_s=SEND_AT_MOST_S)
            try:
                pause_s = step()
            except DatabaseAwayError as exc:
                self._troubles.begin(exc)
                return AWAY_PAUSE_S
            self._troubles.end()
            return pause_s

        return run

    def _beat(self) -> float:
        overdue = ", ".join(activity.thread for activity in self._activities.overdue())
        known = self._channels.now().by_name
        doing = f"stuck: {overdue}" if overdue else f"serving {len(known)} channels"

        def change(connection: Connection) -> list[str]:
            if not overdue:
                beat_sender(connection, holder=self._holder, version=self._version, doing=doing)
            return channels_with_mail(connection)

        unknown = set(self._transact(change)) - known.keys()
        for name in sorted(unknown - self._unknown):
            log.warning("alerts wait for a channel that ALERTS_FILE lacks", channel=name)
        self._unknown = unknown
        return BEAT_EVERY_S

    def _look(self) -> float:
        """Looks for troubles of operators."""
        channels = self._channels.now()
        if channels.operators is None:
            return LOOK_EVERY_S
        self._folder.refresh()
        of_broker = self._look_at_broker()
        self._transact(lambda connection: self._follow(connection, channels, of_broker))
        return LOOK_EVERY_S

    def _look_at_broker(self) -> Findings:
        try:
            bucket = self._broker.get_bucket(timeout_s=BROKER_TIMEOUT_S)
        except BrokerClientError:
            return broker_is_away()
        look = BrokerLook(
            time.monotonic(), bucket.waiting, bucket.spent_tokens, bucket.foreign_tokens
        )
        return self._history.judge(look, epoch=bucket.epoch)

    def _follow(self, connection: Connection, channels: Channels, of_broker: Findings) -> None:
        queries = self._folder.book.queries
        of_collection = judge_collection(
            queries,
            measure_progress(connection, queries),
            measure_pages(connection),
            count_fetchers(connection, silent_s=self._fetcher_silent_s),
        )
        present = {
            (one.kind, one.subject): one
            for one in (*of_collection.present, *of_broker.present)
            if one.kind in channels.troubles
        }
        judged = of_collection.judged | of_broker.judged | (TROUBLES.keys() - channels.troubles)
        assert channels.operators is not None
        for ended in follow_troubles(connection, list(present), judged):
            if ended.was_reported:
                about = f"{TROUBLES[ended.kind].title} {ended.subject}".strip()
                content = {"title": f"over: {about}", "text": f"It began {ended.since:%F %T} UTC."}
                post(connection, channel=channels.operators, kind="operators", content=content)
        for key, one in present.items():
            kind = TROUBLES[one.kind]
            if take_trouble_report(connection, *key, for_s=kind.for_s):
                content = {"title": kind.title, "text": one.text, "remedy": kind.remedy}
                post(connection, channel=channels.operators, kind="operators", content=content)
                log.warning("operators alerted", trouble=one.kind, subject=one.subject)

    def _leave(self) -> None:
        try:
            with self._database.connection(timeout_s=0.5) as connection:
                leave_senders(connection, holder=self._holder)
        except FetcherError as exc:
            log.debug("not signed off", problem=str(exc))

    def _end_by(self, exc: Exception) -> None:
        self._fatal = self._fatal or exc
        self.stop.set()
