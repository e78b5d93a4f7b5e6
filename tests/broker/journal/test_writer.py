"""The journal's writer with a real Postgres."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from broker.core import records
from broker.core.leases import Outcome
from broker.core.records import Record
from broker.journal.schema import LOCK_KEY, keep_partitions, migrate
from broker.journal.status import JournalState
from broker.journal.writer import JournalWriter
from protos.postgres import migrating
from protos.postgres.errors import DatabaseNotSetUpError
from tests.broker.builders import envelope, request, settlement
from tests.fix_journal import ACCOUNT, EPOCH, lead, now_ms
from tests.waiting import DEADLINE_S, wait_until

HOLDER = "ann/host-1"


def call(lease_id: str, cost: int, outcome: Outcome = Outcome.REPLIED) -> list[Record]:
    """The records of one call."""
    moment = now_ms()
    wanted = request(lease_id, holder=HOLDER)
    said = envelope(95, consumed=cost)
    done = settlement(lease_id, outcome, said, holder=HOLDER)
    return [
        records.Granted(moment, wanted, 1, 5, 0, moment + 15_000, 0),
        records.Settled(
            moment, done, late=False, cost=cost, doubt=None, granted_ms=moment, charged=5
        ),
    ]


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    """The rows of a query."""
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def test_records_and_sums_are_written_in_one_statement(
    writer: JournalWriter, journal_url: str
) -> None:
    """Every record as a row, and the tokens of the quarter of an hour by holder."""
    writer.put(EPOCH, [*call("a", 7), *call("b", 0, Outcome.REFUSED)])
    assert writer.flushed(DEADLINE_S)

    found = rows(journal_url, "SELECT seq, kind, lease_id FROM tokenbroker.records ORDER BY seq")
    assert found == [(1, "granted", "a"), (2, "settled", "a"), (3, "granted", "b"),
                     (4, "settled", "b")]  # fmt: skip
    sums = rows(
        journal_url,
        "SELECT holder, identity, operation, calls, refusals, tokens FROM tokenbroker.spend",
    )
    assert sums == [(HOLDER, "ann", "deal", 2, 1, 7)]
    assert writer.status.written == 4
    assert writer.status.state is JournalState.WRITING


def test_tokens_without_a_call_are_in_the_sums(writer: JournalWriter, journal_url: str) -> None:
    """They belong to no holder and no operation, and are no call."""
    writer.put(EPOCH, [*call("a", 7), records.Unrecorded(now_ms(), 5)])
    assert writer.flushed(DEADLINE_S)

    assert rows(
        journal_url, "SELECT holder, operation, calls, tokens FROM tokenbroker.spend ORDER BY 1"
    ) == [("", "", 0, 5), (HOLDER, "deal", 1, 7)]


def test_a_batch_that_is_sent_twice_counts_once(journal_url: str) -> None:
    """The connection broke before the answer: nothing is doubled, neither rows nor sums."""
    batch = call("a", 7)
    offset_ms = time.time_ns() // 1_000_000 - now_ms()
    for _ in range(2):
        journal = JournalWriter(journal_url, ACCOUNT, lambda: 5_000, signed=True)
        journal._offset_ms = offset_ms
        journal.put(EPOCH, batch)
        journal.start()
        assert journal.flushed(DEADLINE_S)
        journal.stop(DEADLINE_S)

    assert rows(journal_url, "SELECT count(*) FROM tokenbroker.records") == [(2,)]
    assert rows(journal_url, "SELECT sum(calls), sum(tokens) FROM tokenbroker.spend") == [(1, 7)]


def test_a_deposed_leader_writes_nothing(writer: JournalWriter, journal_url: str) -> None:
    """The loss is counted; under a new epoch the process writes again."""
    lead(journal_url, EPOCH + 1)
    writer.put(EPOCH, call("a", 7))
    wait_until(lambda: writer.status.state is JournalState.FENCED, "the writer is fenced off")
    assert writer.status.lost == 2
    lead(journal_url, EPOCH + 2)
    writer.put(EPOCH + 2, call("b", 3))
    assert writer.flushed(DEADLINE_S)

    assert rows(journal_url, "SELECT epoch, lease_id FROM tokenbroker.records") == [
        (EPOCH + 2, "b"), (EPOCH + 2, "b"),
    ]  # fmt: skip
    assert writer.status.state is JournalState.WRITING


def started(epoch: int, *, continues: bool) -> Record:
    """The first record of a term."""
    return records.Started(now_ms(), epoch, 600_000, continues=continues)


def reported(writer: JournalWriter) -> bool:
    """What the writer reports of all that has been put so far."""
    reports: list[bool] = []
    writer.when_written(reports.append)
    wait_until(lambda: reports, "the records are written or dropped")
    return reports[0]


def test_a_caller_learns_whether_its_records_are_written(
    writer: JournalWriter, journal_url: str
) -> None:
    """True once they are committed, False if another leader's epoch keeps them out."""
    writer.put(EPOCH, call("a", 7))
    assert reported(writer)
    assert rows(journal_url, "SELECT count(*) FROM tokenbroker.records") == [(2,)]
    assert reported(writer), "nothing new is to be written"
    lead(journal_url, EPOCH + 1)
    writer.put(EPOCH, call("b", 3))

    assert not reported(writer)


def test_a_term_that_is_not_continued_leaves_nothing_to_the_next(
    writer: JournalWriter, journal_url: str
) -> None:
    """Another broker led in between, and clients repeated there what was not confirmed."""
    lead(journal_url, EPOCH + 2)
    with psycopg.connect(journal_url) as connection:
        # Nothing can be written until the next term has begun.
        connection.execute("SELECT FROM tokenbroker.leader FOR UPDATE")
        writer.put(EPOCH, call("a", 7))
        time.sleep(0.1)
        writer.put(EPOCH + 2, [started(EPOCH + 2, continues=False), *call("b", 3)])
    assert writer.flushed(DEADLINE_S)

    assert rows(journal_url, "SELECT kind, lease_id FROM tokenbroker.records ORDER BY seq") == [
        ("started", None), ("granted", "b"), ("settled", "b"),
    ]  # fmt: skip
    assert rows(journal_url, "SELECT sum(tokens) FROM tokenbroker.spend") == [(3,)]
    assert writer.status.lost == 2


def test_a_process_that_takes_its_row_again_keeps_its_records(journal_url: str) -> None:
    """Between the take and the term's begin, the row's epoch is not the records'."""
    journal = JournalWriter(journal_url, ACCOUNT, now_ms, leader="test")
    lead(journal_url, EPOCH + 1)
    journal.put(EPOCH, call("a", 7))
    journal.start()
    wait_until(lambda: journal._batch, "the writer has met the new epoch")
    time.sleep(0.1)
    assert journal.status.lost == 0
    journal.put(EPOCH + 1, [started(EPOCH + 1, continues=True)])
    assert reported(journal)
    journal.stop(DEADLINE_S)

    assert rows(journal_url, "SELECT epoch, kind FROM tokenbroker.records ORDER BY seq") == [
        (EPOCH, "granted"), (EPOCH, "settled"), (EPOCH + 1, "started"),
    ]  # fmt: skip


def test_a_take_waits_for_a_batch_that_is_being_written(journal_url: str) -> None:
    """So the next leader reads everything that the one before it has written."""
    take = "UPDATE tokenbroker.leader SET epoch = epoch + 1"
    with psycopg.connect(journal_url) as writing, psycopg.connect(journal_url) as taking:
        writing.execute("SELECT FROM tokenbroker.leader FOR KEY SHARE")
        taking.execute("SET lock_timeout = '100ms'")
        taking.execute("UPDATE tokenbroker.leader SET renewals = renewals + 1")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            taking.execute(take.encode())


def test_while_postgres_is_away_records_gather_and_the_loss_is_recorded(
    journal_url: str,
) -> None:
    """Nothing waits; what finds no place is counted, and is a record once Postgres is back."""
    journal = JournalWriter(journal_url, ACCOUNT, now_ms, buffer_max=3)
    name = str(conninfo_to_dict(journal_url)["dbname"])
    admin = make_conninfo(journal_url, dbname="postgres")
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(allow.format(sql.Identifier(name), sql.SQL("false")))
        journal.start()
        journal.put(EPOCH, [*call("a", 7), *call("b", 5), *call("c", 5)])
        wait_until(lambda: journal.status.state is JournalState.BUFFERING, "it is away")
        away = journal.status
        connection.execute(allow.format(sql.Identifier(name), sql.SQL("true")))
    assert journal.flushed(DEADLINE_S)
    journal.put(EPOCH, call("d", 2))
    assert journal.flushed(DEADLINE_S)
    journal.stop(DEADLINE_S)

    assert (away.lost, away.buffered) == (3, 3)
    assert "not currently accepting connections" in away.trouble
    kinds = rows(
        journal_url, "SELECT kind, body ->> 'number' FROM tokenbroker.records ORDER BY seq"
    )
    assert kinds == [
        ("granted", None), ("settled", None), ("granted", None),
        ("lost", "3"), ("granted", None), ("settled", None),
    ]  # fmt: skip
    assert journal.status.lost == 3


def test_a_lost_connection_is_replaced(writer: JournalWriter, journal_url: str) -> None:
    """A restarted Postgres loses no record."""
    writer.put(EPOCH, call("a", 7))
    assert writer.flushed(DEADLINE_S)
    with psycopg.connect(journal_url) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'tokenbroker' AND datname = current_database()"
        )
    writer.put(EPOCH, call("b", 3))
    assert writer.flushed(DEADLINE_S)

    assert rows(journal_url, "SELECT sum(tokens) FROM tokenbroker.spend") == [(10,)]
    assert writer.status.lost == 0


def test_stopping_writes_what_is_left(journal_url: str) -> None:
    """SIGTERM loses nothing."""
    journal = JournalWriter(journal_url, ACCOUNT, now_ms)
    journal.start()
    journal.put(EPOCH, call("a", 7))

    assert journal.stop(DEADLINE_S)
    assert rows(journal_url, "SELECT count(*) FROM tokenbroker.records") == [(2,)]


def test_a_role_without_rights_is_answered_with_the_remedy(empty_database_url: str) -> None:
    """An empty database needs a role that may create; one that is set up does not."""
    role = sql.Identifier("journal_stranger")
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        poor = make_conninfo(empty_database_url, user="journal_stranger")
        try:
            with pytest.raises(DatabaseNotSetUpError, match="tokenbroker migrate"):
                migrate(poor, 12)
            assert migrate(empty_database_url, 12) == ["0001.leader", "0002.journal"]
            with pytest.raises(DatabaseNotSetUpError, match="GRANT USAGE ON SCHEMA tokenbroker"):
                migrate(poor, 12)
            for right in (
                "USAGE ON SCHEMA", "SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA",
                "EXECUTE ON ALL FUNCTIONS IN SCHEMA",
            ):  # fmt: skip
                connection.execute(
                    sql.SQL("GRANT {} tokenbroker TO {}").format(sql.SQL(right), role)
                )
            assert migrate(poor, 12) == []
        finally:
            connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
            connection.execute(sql.SQL("DROP ROLE {}").format(role))


def test_brokers_that_start_together_make_the_schema_once(empty_database_url: str) -> None:
    """The second one waits for the first, and finds nothing to do."""
    with ThreadPoolExecutor() as threads:
        with psycopg.connect(empty_database_url) as first:
            first.execute(migrating.LOCK.encode(), (LOCK_KEY,))
            first.execute("CREATE SCHEMA tokenbroker")
            second = threads.submit(migrate, empty_database_url, 12)
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            wait_until(lambda: rows(empty_database_url, waits) != [(0,)], "the second waits")

        assert second.result(DEADLINE_S) == ["0001.leader", "0002.journal"]


def test_months_are_partitions_and_old_ones_are_dropped(journal_url: str) -> None:
    """Those of this month and the next two stand ready; the sums outlive the records."""
    with psycopg.connect(journal_url) as connection:
        connection.execute(
            "CREATE TABLE tokenbroker.records_2020_01 PARTITION OF tokenbroker.records"
            " FOR VALUES FROM ('2020-01-01+00') TO ('2020-02-01+00')"
        )
        keep_partitions(connection, 12)
    names = [
        name
        for (name,) in rows(
            journal_url,
            "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid"
            " WHERE inhparent = 'tokenbroker.records'::regclass AND relname ~ '\\d'",
        )
    ]

    assert len(names) == 3
    assert "records_2020_01" not in names
