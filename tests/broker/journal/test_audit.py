"""The audit replays what the journal holds, with Keepa's count as the witness."""

import json
from collections.abc import Iterable
from datetime import timedelta

import psycopg
import pytest
from typer.testing import CliRunner

from broker.__main__ import app
from broker.core import records
from broker.core.allocator import Allocator, AllocatorConfig
from broker.core.records import Record
from broker.core.replay import Gap
from broker.journal.audit import UnknownAccountError, audit
from broker.journal.writer import JournalWriter
from tests.broker.builders import envelope, request, settlement
from tests.fix_journal import ACCOUNT, EPOCH, lead, now_ms
from tests.waiting import DEADLINE_S


def two_calls() -> list[Record]:
    """The records of two calls between two probes; Keepa's count fits them."""
    moment = now_ms()
    allocator = Allocator(AllocatorConfig(recovery_grace_ms=0), epoch=EPOCH, started_ms=moment)
    allocator.probe_started(moment)
    allocator.probe_answered(envelope(100, at=0), moment, moment)
    for number, lease_id in enumerate("ab", 1):
        allocator.acquire(request(lease_id, ttl_ms=60_000), moment + number * 10)
        said = envelope(100 - 5 * number, at=number * 10 + 5, consumed=5)
        allocator.settle(settlement(lease_id, said=said), moment + number * 10 + 6)
    allocator.probe_started(moment + 50)
    allocator.probe_answered(envelope(90, at=55), moment + 50, moment + 60)
    return allocator.take_records()


def write(writer: JournalWriter, made: Iterable[Record]) -> None:
    """Puts *made* into the database."""
    writer.put(EPOCH, made)
    assert writer.flushed(DEADLINE_S)


def test_a_complete_journal_is_explained_to_the_token(
    writer: JournalWriter, journal_url: str
) -> None:
    """The opening and the closing count are Keepa's own."""
    write(writer, two_calls())
    replay = audit(journal_url, account=None, since=None).replay

    assert replay.differences == []
    assert replay.sums.first is not None
    assert replay.sums.last is not None
    assert replay.sums.first.envelope.tokens_left == 100
    assert replay.sums.last.envelope.tokens_left == 90
    assert sum(spend.tokens for spend in replay.spend.values()) == 10


def test_what_the_journal_lacks_is_named_and_ends_with_1(
    writer: JournalWriter, journal_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call without a record; tolerated, if the operator tolerates as much."""
    made = two_calls()
    last = [r for r in made if isinstance(r, records.Granted | records.Settled)][2:]
    write(writer, [record for record in made if record not in last])
    monkeypatch.setenv("BROKER_DATABASE_URL", journal_url)
    strict = CliRunner().invoke(app, ["audit", "-o", "json"])
    lenient = CliRunner().invoke(app, ["audit", "--tolerance", "5"])
    report = json.loads(strict.stdout)

    assert (strict.exit_code, lenient.exit_code) == (1, 0)
    assert report["unexplained_tokens"] == 5
    assert [(d["gap"], d["tokens"]) for d in report["differences"]] == [("unexplained", 5)]
    assert "5 tokens unexplained, 5 tolerated: explained" in lenient.stdout


def test_an_audit_may_begin_in_the_middle(writer: JournalWriter, journal_url: str) -> None:
    """Leases that were open then are part of the opening, and no difference."""
    moment = now_ms()
    wanted = request("a", ttl_ms=60_000)
    old: list[Record] = [
        records.Started(moment - 90_000, EPOCH, 600_000),
        records.Granted(moment - 80_000, wanted, 1, 5, 0, moment + 60_000, 0),
    ]
    said = envelope(95, at=10, consumed=5)
    new: list[Record] = [
        records.Observed(moment, moment, envelope(100, at=0), taken=True),
        records.Settled(
            moment + 20, settlement("a", said=said), late=False, cost=5, doubt=None,
            granted_ms=moment - 80_000, charged=5,
        ),
        records.Observed(moment + 40, moment + 30, envelope(95, at=35), taken=True),
    ]  # fmt: skip
    write(writer, [*old, *new])
    replay = audit(journal_url, account=ACCOUNT, since=timedelta(minutes=1)).replay

    assert replay.differences == []
    assert replay.sums.unexplained_tokens == 0
    assert [spend.tokens for spend in replay.spend.values()] == [5]


def test_lost_records_are_named(writer: JournalWriter, journal_url: str) -> None:
    """With the number that the broker counted."""
    write(writer, [*two_calls(), records.Lost(now_ms(), 7, 1, 2)])
    differences = audit(journal_url, account=None, since=None).replay.differences

    assert [(d.gap, d.tokens) for d in differences] == [(Gap.LOST, 7)]


def test_several_accounts_are_named(journal_url: str) -> None:
    """One has to be chosen."""
    lead(journal_url)
    with psycopg.connect(journal_url) as connection:
        connection.execute(
            "INSERT INTO tokenbroker.leader VALUES ('other', 1, '', '', 0, now(), now())"
        )
    with pytest.raises(UnknownAccountError, match=r"0123456789ab, other.*--account"):
        audit(journal_url, account=None, since=None)
