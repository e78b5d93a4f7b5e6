"""A new epoch takes over what the old one wrote."""

import pytest

from broker.calendar import present
from broker.core.allocator import Allocator, AllocatorConfig
from broker.core.budgets import Budget
from broker.core.leases import LeaseState, Outcome, Renewal
from broker.core.ledger import LEASE_AGE_MS_MAX
from broker.core.recovery import Recovered
from broker.journal.restart import load
from broker.journal.writer import JournalWriter
from tests.broker.builders import envelope, request, settlement
from tests.fix_journal import ACCOUNT, EPOCH, now_ms
from tests.waiting import DEADLINE_S


def running() -> tuple[Allocator, int]:
    """An allocator of the real clock that serves, and the time."""
    moment = now_ms()
    allocator = Allocator(AllocatorConfig(recovery_grace_ms=0), epoch=EPOCH, started_ms=moment)
    allocator.probe_started(moment)
    allocator.probe_answered(envelope(300, at=0), moment, moment)
    return allocator, moment


def written(allocator: Allocator, writer: JournalWriter, url: str) -> Recovered:
    """What a new broker reads after the old one has written."""
    writer.put(EPOCH, allocator.take_records())
    assert writer.flushed(DEADLINE_S)
    return load(url, ACCOUNT, now_ms, lease_age_ms_max=LEASE_AGE_MS_MAX)


def test_open_leases_come_back_with_their_ends(writer: JournalWriter, journal_url: str) -> None:
    """Granted, renewed, lapsed, adopted ones; not those that ended."""
    allocator, moment = running()
    for lease_id in ("open", "renewed", "settled", "revoked", "unknown", "abandoned"):
        allocator.acquire(request(lease_id, ttl_ms=60_000), moment)
    allocator.renew(Renewal("renewed", EPOCH, "h", "deal", 1, 5, 90_000), moment + 1)
    allocator.settle(settlement("settled", said=envelope(295, consumed=5)), moment + 2)
    allocator.cancel("revoked", moment + 3)
    allocator.settle(settlement("unknown", Outcome.UNKNOWN), moment + 4)
    allocator.settle(settlement("abandoned", Outcome.NOT_SENT), moment + 5)
    allocator.renew(Renewal("old", EPOCH - 1, "h", "deal", 1, 7, 60_000), moment + 6)
    allocator.acquire(request("short", ttl_ms=1), moment + 7)
    recovered = written(allocator, writer, journal_url)
    holds = {hold.lease_id: hold for hold in recovered.leases}

    assert set(holds) == {"open", "renewed", "unknown", "old", "short"}
    assert holds["open"].expires_ms == pytest.approx(moment + 60_000, abs=10_000)
    assert holds["renewed"].expires_ms == pytest.approx(moment + 90_001, abs=10_000)
    assert holds["open"].granted_ms == pytest.approx(moment, abs=10_000)
    assert {name for name, hold in holds.items() if hold.lapsed} == {"unknown", "short"}
    assert holds["open"].request == request("open", ttl_ms=60_000)
    assert holds["old"].request is None
    assert {lease_id for lease_id, _ in recovered.ended} == {"settled", "abandoned"}


def test_the_new_epoch_reserves_as_much_as_the_old_one(
    writer: JournalWriter, journal_url: str
) -> None:
    """And a second restart finds the holds again that the first one has carried over."""
    allocator, moment = running()
    for number in range(4):
        allocator.acquire(request(f"lease-{number}", ttl_ms=60_000), moment)
    reserved = allocator.ledger.reserved
    for epoch in (EPOCH + 1, EPOCH + 2):
        recovered = written(allocator, writer, journal_url)
        allocator = Allocator(AllocatorConfig(), epoch=epoch, started_ms=now_ms())
        allocator.restore(recovered, now_ms())

        assert allocator.ledger.reserved == reserved
        assert allocator.ledger.open_leases == 4
        assert len(allocator.ledger.holds.leases(LeaseState.LAPSED)) == 0


def test_the_old_books_come_back_for_the_first_count(
    writer: JournalWriter, journal_url: str
) -> None:
    """On the clock of the new broker, with what was open before the first of their records."""
    allocator, moment = running()
    allocator.acquire(request("a", ttl_ms=60_000), moment)
    for second in range(1, 40):
        allocator.probe_started(moment + second)
        allocator.probe_answered(envelope(300, at=second), moment + second, moment + second)
    books = written(allocator, writer, journal_url).books

    assert books is not None
    assert books.sums.probes == 30
    assert books.differences == []
    assert [hold.lease_id for hold in books.ledger] == ["a"]
    assert books.ledger.bucket.observation is not None
    assert books.ledger.bucket.observation.arrived_ms == pytest.approx(moment + 39, abs=500)


def test_costs_and_a_pause_come_back(writer: JournalWriter, journal_url: str) -> None:
    """What calls have cost is known from the start, and an operator's pause stands."""
    allocator, moment = running()
    left = 300
    for number in range(8):
        left -= 7
        allocator.acquire(request(f"lease-{number}", ttl_ms=60_000), moment)
        said = envelope(left, at=number, consumed=7)
        allocator.settle(settlement(f"lease-{number}", said=said), moment + number)
    allocator.pause(moment + 10, by="anna")
    learned = allocator.costs.estimate("deal", 1, 5.0)
    recovered = written(allocator, writer, journal_url)
    after = Allocator(AllocatorConfig(), epoch=EPOCH + 1, started_ms=now_ms())
    after.restore(recovered, now_ms())

    assert (learned, after.costs.estimate("deal", 1, 5.0)) == (7, 7)
    assert after.paused
    allocator.resume(moment + 11)
    assert not written(allocator, writer, journal_url).paused


def test_the_use_of_budgets_comes_back(writer: JournalWriter, journal_url: str) -> None:
    """Settled, open and given-back calls of the hour and the day, to the token."""
    budgets = (Budget("hour", tokens_per_hour=500), Budget("day", tokens_per_day=900))
    config = AllocatorConfig(recovery_grace_ms=0, budgets=budgets)
    moment = now_ms()
    before = Allocator(config, epoch=EPOCH, started_ms=moment)
    periods = present(before.budgets.time_zones, moment)
    before.budgets.set_periods(periods)
    before.probe_started(moment)
    before.probe_answered(envelope(300, at=0), moment, moment)
    for lease_id in ("settled", "open", "given back", "revoked"):
        before.acquire(request(lease_id, ttl_ms=60_000), moment)
    before.settle(settlement("settled", said=envelope(288, consumed=12)), moment + 1)
    before.settle(settlement("given back", Outcome.NOT_SENT), moment + 2)
    before.cancel("revoked", moment + 3)
    recovered = written(before, writer, journal_url)
    after = Allocator(config, epoch=EPOCH + 1, started_ms=now_ms())
    after.budgets.set_periods(periods)
    after.restore(recovered, now_ms())

    used = [standing.used for standing in before.budgets.standings(300, now_ms())]
    assert [s.used for s in after.budgets.standings(300, now_ms())] == used == [17, 17]
    after.settle(settlement("open", Outcome.NOT_SENT), now_ms())
    assert [s.used for s in after.budgets.standings(300, now_ms())] == [12, 12]


def test_a_written_off_call_that_settles_in_the_next_epoch_counts_once(
    writer: JournalWriter, journal_url: str
) -> None:
    """Its write-off is taken back by a correction."""
    allocator, moment = running()
    allocator.acquire(request("a", ttl_ms=1), moment)
    later = moment + 200_000
    allocator.probe_started(later)
    allocator.probe_answered(envelope(295, at=200_000), later, later)
    recovered = written(allocator, writer, journal_url)
    ((lease_id, ended),) = recovered.ended

    assert (lease_id, ended.holder, ended.late) == ("a", "h", True)
    assert ended.written_off == allocator.ledger.totals.written_off_tokens == 5


def test_an_empty_journal_gives_nothing(journal_url: str) -> None:
    """The first broker of an account starts with empty books."""
    assert load(journal_url, ACCOUNT, now_ms, lease_age_ms_max=1_000) == Recovered()
