"""The outbox: messages to be delivered, and the troubles of operators.

Law:
1. A message is claimed by one sender at a time, delivered at least once, and keeps its id.
2. A channel's rate is counted in the database: it holds for all senders together.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString

from psycopg.rows import class_row

from fetcher.alerts.channels import Rate
from fetcher.alerts.messages import DealReport, Message
from fetcher.postgres.claims import WorkTable, claim_statement
from fetcher.postgres.database import Connection, Row, fetch_dicts

MESSAGES: Final = WorkTable("alert_messages", ("channel", "id"), ("text", "bigint"), "waiting")
# A webhook shows at most 500 deals, a text 20.
DEALS_READ_MAX: Final = 500

CANDIDATE: Final[LiteralString] = f"""
SELECT w.channel, w.id FROM alert_messages w
 WHERE {MESSAGES.is_open} AND w.channel = %(channel)s
 ORDER BY w.not_before, w.id LIMIT 1
"""  # noqa: S608 - every part is a constant

CLAIM: Final = claim_statement(
    MESSAGES, CANDIDATE, "w.channel, w.id, w.fence, w.attempts, w.created_at"
)

ADD_CHANNEL: Final[LiteralString] = """
INSERT INTO alert_channels (channel) VALUES (%s) ON CONFLICT DO NOTHING
"""

# The generic cell rate algorithm: a channel may be ahead of its rate by all but one message.
TAKE_RATE: Final[LiteralString] = """
UPDATE alert_channels
   SET next_at = greatest(next_at, now()) + %(interval_s)s * interval '1 second'
 WHERE channel = %(channel)s AND next_at <= now() + %(ahead_s)s * interval '1 second'
RETURNING channel
"""

RATE_WAIT: Final[LiteralString] = """
SELECT extract(epoch FROM next_at - now())::float8 - %s FROM alert_channels WHERE channel = %s
"""

CONTENT: Final[LiteralString] = """
SELECT message_id::text, kind, query, coalesce(content, '{}'), created_at,
       (SELECT count(*) FROM alerts a WHERE a.message = m.id)
  FROM alert_messages m WHERE channel = %s AND id = %s
"""

DEALS: Final[LiteralString] = """
SELECT id, occasion, deal FROM alerts WHERE message = %s ORDER BY id LIMIT %s
"""

# A delivery is a fact, also when another sender holds the claim by now.
DELIVERED: Final[LiteralString] = """
UPDATE alert_messages
   SET state = 'delivered', delivered_at = now(), holder = NULL, claim_expires = NULL, error = NULL
 WHERE channel = %s AND id = %s AND state <> 'delivered'
"""

LIST: Final[LiteralString] = """
SELECT m.id, m.channel, m.kind, m.query, m.state, m.attempts, m.created_at, m.not_before,
       m.delivered_at, m.error, (SELECT count(*) FROM alerts a WHERE a.message = m.id) AS deals
  FROM alert_messages m
 WHERE (%(channel)s::text IS NULL OR m.channel = %(channel)s)
   AND (%(state)s::text IS NULL OR m.state = %(state)s)
 ORDER BY m.id DESC LIMIT %(limit)s
"""

RETRY: Final[LiteralString] = """
UPDATE alert_messages SET state = 'waiting', attempts = 0, not_before = now()
 WHERE (state = 'dead' OR (state = 'waiting' AND attempts > 0))
   AND (%(channel)s::text IS NULL OR channel = %(channel)s)
   AND (%(id)s::bigint IS NULL OR id = %(id)s)
"""

STATE: Final[LiteralString] = "SELECT state, error FROM alert_messages WHERE id = %s"

WAITING_CHANNELS: Final[LiteralString] = """
SELECT DISTINCT channel FROM alert_messages WHERE state IN ('waiting', 'claimed') ORDER BY channel
"""

COUNTS: Final[LiteralString] = """
SELECT channel, count(*) FILTER (WHERE state IN ('waiting', 'claimed')) AS waiting,
       count(*) FILTER (WHERE state = 'dead') AS dead,
       count(*) FILTER (WHERE state = 'delivered' AND delivered_at > now() - interval '1 hour')
           AS delivered,
       coalesce(extract(epoch FROM now() - min(not_before) FILTER (
           WHERE state IN ('waiting', 'claimed') AND not_before <= now())), 0)::float8 AS late_s,
       percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM delivered_at
           - greatest(created_at, not_before))::float8) FILTER (
           WHERE state = 'delivered' AND attempts = 0
             AND delivered_at > now() - interval '1 hour') AS lag_s
  FROM alert_messages
 WHERE state <> 'delivered' OR delivered_at > now() - interval '1 hour'
 GROUP BY channel ORDER BY channel
"""

BEAT: Final[LiteralString] = """
INSERT INTO alert_senders (holder, version, doing) VALUES (%s, %s, %s)
ON CONFLICT (holder) DO UPDATE SET seen_at = now(), doing = EXCLUDED.doing
"""
LEAVE: Final[LiteralString] = "DELETE FROM alert_senders WHERE holder = %s"
FORGET: Final[LiteralString] = """
DELETE FROM alert_senders WHERE seen_at < now() - interval '1 day'
"""
SENDERS: Final[LiteralString] = """
SELECT holder, doing, extract(epoch FROM now() - seen_at)::float8 AS silent_s
  FROM alert_senders WHERE starts_with(holder, %s) ORDER BY seen_at DESC
"""

BEGIN_TROUBLE: Final[LiteralString] = """
INSERT INTO alert_troubles (trouble, subject) VALUES (%s, %s) ON CONFLICT DO NOTHING
"""
# Of several senders one reports it: the others find it reported.
REPORT_TROUBLE: Final[LiteralString] = """
UPDATE alert_troubles SET reported = now()
 WHERE trouble = %s AND subject = %s AND reported IS NULL
   AND since <= now() - %s * interval '1 second'
RETURNING since
"""
END_TROUBLES: Final[LiteralString] = """
DELETE FROM alert_troubles
 WHERE trouble = ANY(%(judged)s)
   AND NOT EXISTS (SELECT FROM unnest(%(kinds)s::text[], %(subjects)s::text[]) AS p (k, s)
                    WHERE p.k = trouble AND p.s = subject)
RETURNING trouble, subject, since, reported
"""


@dataclass(frozen=True, slots=True)
class MessageClaim:
    """The right to deliver one message; see `claims`."""

    channel: str
    id: int
    fence: int
    attempts: int
    created_at: datetime

    @property
    def key(self) -> tuple[str, int]:
        """Its row in the outbox."""
        return self.channel, self.id


@dataclass(frozen=True, slots=True)
class MustWait:
    """The channel's rate allows the next message in *delay_s* seconds."""

    delay_s: float


def claim_message(
    connection: Connection, channel: str, rate: Rate, *, holder: str, ttl_s: float
) -> MessageClaim | MustWait | None:
    """Claims the next message to *channel* within its *rate*; None if none is due."""
    values = {"channel": channel, "holder": holder, "ttl_s": ttl_s, "take_over": True}
    with connection.cursor(row_factory=class_row(MessageClaim)) as cursor:
        claim = cursor.execute(CLAIM, values).fetchone()
    if claim is None:
        return None
    interval_s = rate.period_s / rate.messages
    ahead_s = interval_s * (rate.messages - 1)
    connection.execute(ADD_CHANNEL, (channel,))
    taken = {"channel": channel, "interval_s": interval_s, "ahead_s": ahead_s}
    if connection.execute(TAKE_RATE, taken).fetchone() is not None:
        return claim
    connection.rollback()
    row = connection.execute(RATE_WAIT, (ahead_s, channel)).fetchone()
    return MustWait(interval_s if row is None else max(0.0, float(row[0])))


def read_message(connection: Connection, claim: MessageClaim) -> Message:
    """Returns the whole message."""
    row = connection.execute(CONTENT, claim.key).fetchone()
    assert row is not None
    message_id, kind, query, content, created_at, total = row
    deals = [DealReport(*deal) for deal in connection.execute(DEALS, (claim.id, DEALS_READ_MAX))]
    return Message(f"msg_{message_id}", kind, query, content, created_at, deals, total)


def note_delivery(connection: Connection, claim: MessageClaim) -> None:
    """Records that the receiver has accepted the message."""
    connection.execute(DELIVERED, claim.key)


def list_messages(
    connection: Connection, *, channel: str | None, state: str | None, limit: int
) -> list[Row]:
    """Returns the newest messages; none of their texts."""
    return fetch_dicts(connection, LIST, {"channel": channel, "state": state, "limit": limit})


def retry_messages(
    connection: Connection, *, channel: str | None = None, message: int | None = None
) -> int:
    """Makes failed messages due now, with all their tries; returns how many."""
    return connection.execute(RETRY, {"channel": channel, "id": message}).rowcount


def message_state(connection: Connection, message: int) -> tuple[str, str | None]:
    """Returns the state of a message, and its last error."""
    row = connection.execute(STATE, (message,)).fetchone()
    assert row is not None
    return str(row[0]), row[1]


def channels_with_mail(connection: Connection) -> list[str]:
    """Returns the channels for which messages wait."""
    return [str(name) for (name,) in connection.execute(WAITING_CHANNELS)]


@dataclass(frozen=True, slots=True)
class ChannelCounts:
    """The messages of a channel: waiting and dead now, delivered within the last hour.

    ``late_s`` is for how long the oldest due one has waited; ``lag_s`` is the 95th percentile
    of the time from due to delivered, of messages that their first try delivered.
    """

    channel: str
    waiting: int
    dead: int
    delivered: int
    late_s: float
    lag_s: float | None


def count_messages(connection: Connection) -> list[ChannelCounts]:
    """Counts the messages of each channel."""
    with connection.cursor(row_factory=class_row(ChannelCounts)) as cursor:
        return cursor.execute(COUNTS).fetchall()


def beat_sender(connection: Connection, *, holder: str, version: str, doing: str) -> None:
    """Reports that the sender *holder* works."""
    connection.execute(BEAT, (holder, version, doing))
    connection.execute(FORGET)


def leave_senders(connection: Connection, *, holder: str) -> None:
    """Removes a sender that has stopped."""
    connection.execute(LEAVE, (holder,))


def senders_of(connection: Connection, host: str) -> list[Row]:
    """Returns the senders of *host* that have not left, the one seen last first."""
    with connection.cursor() as cursor:
        rows = cursor.execute(SENDERS, (f"{host}-",)).fetchall()
    return [{"holder": row[0], "doing": row[1], "silent_s": row[2]} for row in rows]


@dataclass(frozen=True, slots=True)
class EndedTrouble:
    """A trouble that is over, since when it lasted, and whether it had been reported."""

    kind: str
    subject: str
    since: datetime
    was_reported: bool


def follow_troubles(
    connection: Connection, present: Sequence[tuple[str, str]], judged: Iterable[str]
) -> list[EndedTrouble]:
    """Stores the troubles that are *present*; returns those of *judged* kinds that are over."""
    values: Mapping[str, Any] = {
        "judged": list(judged),
        "kinds": [kind for kind, _ in present],
        "subjects": [subject for _, subject in present],
    }
    ended = [
        EndedTrouble(kind, subject, since, reported is not None)
        for kind, subject, since, reported in connection.execute(END_TROUBLES, values)
    ]
    for key in sorted(present):
        connection.execute(BEGIN_TROUBLE, key)
    return ended


def take_trouble_report(connection: Connection, kind: str, subject: str, *, for_s: float) -> bool:
    """Returns whether the caller must report it: it has lasted for *for_s*, and none has yet."""
    return connection.execute(REPORT_TROUBLE, (kind, subject, for_s)).fetchone() is not None
