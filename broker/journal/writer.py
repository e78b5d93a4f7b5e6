"""Appends records to Postgres from a thread of its own, in batches.

Rule 1: `put` never waits. A grant does not depend on the journal.
Rule 2: a batch is one statement. It checks the leader row, adds the records and the sums,
        or nothing: a deposed leader writes nothing, and a batch sent twice counts once.
Rule 3: what can't be kept is counted, and becomes a record itself when Postgres is back.
Rule 4: what a term leaves unwritten is written by the next one only if that continues it.
        Otherwise another broker has led since, and clients have repeated there what no
        answer had confirmed: written now, it would count twice.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final

import structlog
from msgspec.structs import replace

from broker.core.records import Lost, Record, Started
from broker.journal.encoding import Row, encode
from broker.journal.schema import ADVICE, PROGRAM, keep_partitions
from broker.journal.status import JournalState, JournalStatus
from protos.postgres.connections import Connection, connect, explaining
from protos.postgres.errors import DatabaseError, DatabaseRefusedError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# A batch gathers for so long; a commit takes a few milliseconds more.
LINGER_S: Final = 0.02
BATCH_MAX: Final = 2_000
# While Postgres is away: about a kilobyte each, and an hour of ten calls a second.
BUFFER_MAX: Final = 100_000
RETRY_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
# So often a writer looks whether its process has begun the term that it has taken.
TERM_POLL_S: Final = 0.05
PARTITIONS_EVERY_MS: Final = 6 * 3_600_000

SERVER_MS: Final = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"
APPEND: Final = """
WITH leads AS MATERIALIZED (
    SELECT FROM tokenbroker.leader
    WHERE account = %(account)s AND epoch = %(leader)s
    FOR KEY SHARE
), fresh AS (
    INSERT INTO tokenbroker.records (
        account, epoch, seq, time, kind, lease_id, holder, identity, operation,
        cost, charged, charged_at, body
    )
    SELECT
        %(account)s, epoch, seq, timestamptz 'epoch' + time_ms * interval '1 ms', kind,
        lease_id, holder, identity, operation, cost, charged,
        timestamptz 'epoch' + charged_ms * interval '1 ms', body
    FROM leads, unnest(
        %(epoch)s::bigint[], %(seq)s::bigint[], %(time_ms)s::bigint[], %(kind)s::text[],
        %(lease_id)s::text[], %(holder)s::text[], %(identity)s::text[], %(operation)s::text[],
        %(cost)s::bigint[], %(charged)s::bigint[], %(charged_ms)s::bigint[], %(body)s::jsonb[]
    ) AS given (
        epoch, seq, time_ms, kind, lease_id, holder, identity, operation,
        cost, charged, charged_ms, body
    )
    ON CONFLICT DO NOTHING
    RETURNING time, kind, holder, identity, operation, cost, charged, charged_at, body
), parts AS (
    SELECT
        date_bin('15 minutes', time, 'epoch') AS slot, coalesce(holder, '') AS holder,
        coalesce(identity, '') AS identity, coalesce(operation, '') AS operation,
        CASE kind WHEN 'corrected' THEN -1 WHEN 'denied' THEN 0 WHEN 'unrecorded' THEN 0 ELSE 1
        END AS calls,
        (body -> 'settlement' ->> 'outcome' = 'refused') IS TRUE AS refused,
        kind = 'denied' AS denied,
        coalesce(cost, 0) AS tokens,
        CASE WHEN kind IN ('written_off', 'corrected') THEN cost ELSE 0 END AS written_off,
        0 AS charged
    FROM fresh
    WHERE cost IS NOT NULL OR kind = 'denied'
    UNION ALL
    SELECT
        date_bin('15 minutes', charged_at, 'epoch'), holder, identity, operation,
        0, false, false, 0, 0, charged
    FROM fresh
    WHERE charged <> 0
), sums AS (
    INSERT INTO tokenbroker.spend AS known (
        account, slot, holder, identity, operation,
        calls, refusals, denials, tokens, written_off_tokens, charged_tokens
    )
    SELECT
        %(account)s, slot, holder, identity, operation,
        sum(calls), count(*) FILTER (WHERE refused), count(*) FILTER (WHERE denied),
        sum(tokens), sum(written_off), sum(charged)
    FROM parts
    GROUP BY 2, 3, 4, 5
    ON CONFLICT (account, slot, holder, operation) DO UPDATE SET
        calls = known.calls + excluded.calls,
        refusals = known.refusals + excluded.refusals,
        denials = known.denials + excluded.denials,
        tokens = known.tokens + excluded.tokens,
        written_off_tokens = known.written_off_tokens + excluded.written_off_tokens,
        charged_tokens = known.charged_tokens + excluded.charged_tokens
)
SELECT (SELECT count(*) FROM leads),
    (SELECT holder FROM tokenbroker.leader WHERE account = %(account)s)
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A record that waits to be written."""

    epoch: int
    seq: int
    record: Record


class JournalWriter:
    """The journal of one process; the event loop puts, the thread writes.

    Args:
        database_url: The database.
        account: Fingerprint of the Keepa key.
        now_ms: The broker's clock.
        leader: How the leader row names this process.
        signed: Whether holders begin with an identity.
        months_kept: Age at which records are dropped.
    """

    def __init__(
        self,
        database_url: str,
        account: str,
        now_ms: Callable[[], int],
        *,
        leader: str = "",
        signed: bool = False,
        months_kept: int = 12,
        buffer_max: int = BUFFER_MAX,
    ) -> None:
        self._url, self._account, self._now_ms = database_url, account, now_ms
        self._signed, self._months_kept, self._buffer_max = signed, months_kept, buffer_max
        self._buffer: deque[Entry] = deque()
        # The first records of the buffer, while they are being written.
        self._batch: list[Entry] = []
        self._seq = self._done_seq = 0
        # Up to here records are of terms that no later one continues.
        self._void_seq = 0
        self._leader, self._name = 0, leader
        # What waits for records to be written: the last of them, and the one to inform.
        self._waiting: deque[tuple[int, Callable[[bool], None]]] = deque()
        self._offset_ms: int | None = None
        # Records that found no place since the last one that did.
        self._missed: Lost | None = None
        self._written = self._lost = 0
        self._trouble = ""
        self._failures = 0
        self._fenced = False
        self._partitions_ms: int | None = None
        self._lock = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    # --- the event loop's side ---------------------------------------------

    def start(self) -> None:
        """Begins to write."""
        self._thread.start()

    def put(self, epoch: int, made: Iterable[Record]) -> None:
        """Takes records, in their order; those that find no place are counted as lost.

        From now on the leader row must hold *epoch* for anything to be written.
        """
        with self._lock:
            self._leader = epoch
            for record in made:
                if isinstance(record, Started) and not record.continues:
                    self._void_seq = self._seq
                if len(self._buffer) >= self._buffer_max:
                    self._miss(record)
                    continue
                if self._missed is not None:
                    self._append(epoch, self._missed)
                    self._missed = None
                self._append(epoch, record)
            self._lock.notify()

    def _append(self, epoch: int, record: Record) -> None:
        self._seq += 1
        self._buffer.append(Entry(epoch, self._seq, record))

    def _miss(self, record: Record) -> None:
        self._lost += 1
        missed = self._missed or Lost(record.at_ms, 0, record.at_ms, record.at_ms)
        self._missed = replace(
            missed, at_ms=record.at_ms, number=missed.number + 1, last_ms=record.at_ms
        )

    def when_written(self, report: Callable[[bool], None]) -> None:
        """Calls *report*, from any thread, once all that has been put is written.

        Its argument is False if that was dropped instead, because another broker leads.
        """
        with self._lock:
            if self._done_seq < self._seq:
                self._waiting.append((self._seq, report))
                self._lock.notify()
                return
            written = not self._fenced
        report(written)

    def stop(self, timeout_s: float) -> bool:
        """Writes what is left, for *timeout_s* seconds at most; returns whether all is written."""
        with self._lock:
            self._stopping = True
            self._lock.notify()
        self._thread.join(timeout_s)
        with self._lock:
            return not self._buffer

    def flushed(self, timeout_s: float) -> bool:
        """Waits until all that has been put is written; for a thread, not for the loop."""
        with self._lock:
            last = self._seq
            return self._lock.wait_for(lambda: self._done_seq >= last, timeout_s)

    @property
    def status(self) -> JournalStatus:
        """The journal now."""
        with self._lock:
            oldest_ms = self._buffer[0].record.at_ms if self._buffer else None
            state = JournalState.BUFFERING if self._trouble else JournalState.WRITING
            return JournalStatus(
                JournalState.FENCED if self._fenced else state,
                self._written,
                self._lost,
                len(self._buffer),
                0 if oldest_ms is None else max(0, self._now_ms() - oldest_ms),
                self._trouble,
            )

    # --- the thread's side --------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                with connect(self._url, ADVICE, PROGRAM, autocommit=True) as connection:
                    self._read_clock(connection)
                    while self._await_records():
                        self._keep_partitions(connection)
                        self._write(connection)
                    return
            except DatabaseError as exc:
                self._failed(exc)
            with self._lock:
                pause_s = RETRY_S[min(self._failures, len(RETRY_S) - 1)]
                if self._lock.wait_for(lambda: self._stopping, pause_s) and self._failures > 1:
                    return

    def _read_clock(self, connection: Connection) -> None:
        """Reads the server's clock once: times of one process keep their distances."""
        if self._offset_ms is None:
            row = connection.execute(SERVER_MS).fetchone()
            assert row is not None
            self._offset_ms = int(row[0]) - self._now_ms()

    def _await_records(self) -> bool:
        """Waits for records, and a moment for more; returns False at the end of the journal.

        With a caller that waits, what gathers during one commit is the next batch.
        """
        with self._lock:
            self._lock.wait_for(lambda: self._buffer or self._stopping)
            if not self._batch:
                self._lock.wait_for(
                    lambda: self._stopping or self._waiting or len(self._buffer) >= BATCH_MAX,
                    LINGER_S,
                )
            return bool(self._buffer)

    def _write(self, connection: Connection) -> None:
        """Writes the first records of the buffer; the same ones again after a failure."""
        if (void := self._void_seq - self._done_seq) > 0:
            self._done(void, written=False, deposed=True)
        with self._lock:
            if not self._batch:
                self._batch = list(islice(self._buffer, BATCH_MAX))
            batch, leader = self._batch, self._leader
        if not batch:
            return
        assert self._offset_ms is not None
        rows = [
            encode(
                entry.record,
                epoch=entry.epoch,
                seq=entry.seq,
                offset_ms=self._offset_ms,
                signed=self._signed,
            )
            for entry in batch
        ]
        columns: dict[str, object] = dict(
            zip(Row._fields, map(list, zip(*rows, strict=True)), strict=True)
        )
        try:
            with explaining(ADVICE):
                found = connection.execute(
                    APPEND, {**columns, "account": self._account, "leader": leader}
                ).fetchone()
        except DatabaseRefusedError as exc:
            # It would be refused for ever, and all later records would wait behind it.
            log.exception("journal: records refused", records=len(rows), reason=str(exc))
            self._done(len(batch), written=False)
            return
        assert found is not None
        leads, name = found
        if not leads and self._name and name == self._name:
            # This process has taken the row again, and is about to begin that term.
            with self._lock:
                self._lock.wait_for(lambda: self._leader != leader, TERM_POLL_S)
            return
        self._done(len(batch), written=bool(leads), deposed=not leads)

    def _done(self, number: int, *, written: bool, deposed: bool = False) -> None:
        """Takes the first *number* records out of the buffer, and informs what waits for them."""
        with self._lock:
            for _ in range(number):
                self._done_seq = self._buffer.popleft().seq
            self._batch = []
            if written:
                self._written += number
            else:
                self._lost += number
            back, self._trouble, self._failures = self._trouble, "", 0
            newly_deposed = deposed and not self._fenced
            self._fenced = deposed
            reports = []
            while self._waiting and self._waiting[0][0] <= self._done_seq:
                reports.append(self._waiting.popleft()[1])
            self._lock.notify_all()
        for report in reports:
            report(not deposed)
        if back:
            log.info("journal: Postgres answers again")
        if newly_deposed:
            log.warning("journal: another broker leads; records are dropped", lost=number)

    def _failed(self, exc: DatabaseError) -> None:
        with self._lock:
            repeated, self._trouble = self._trouble == str(exc), str(exc)
            self._failures += 1
        if not repeated:
            log.warning("journal: cannot write; records are kept for later", reason=str(exc))

    def _keep_partitions(self, connection: Connection) -> None:
        """Makes partitions ahead now and then; without them, rows go to the default one."""
        now_ms = self._now_ms()
        last_ms = self._partitions_ms
        if last_ms is None or now_ms - last_ms >= PARTITIONS_EVERY_MS:
            self._partitions_ms = now_ms
            try:
                with explaining(ADVICE):
                    keep_partitions(connection, self._months_kept)
            except DatabaseError as exc:
                log.warning("journal: no partition made", reason=str(exc))
                raise
