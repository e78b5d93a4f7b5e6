"""A new epoch compares Keepa's first count with the books of the one before."""

import pytest

from broker.core import records
from broker.core.allocator import Allocator, AllocatorConfig
from broker.core.ledger import CALL_MS_MAX
from broker.core.records import Carried, Record
from broker.core.recovery import Opening, Recovered
from broker.core.replay import Replay
from tests.broker.builders import EPOCH, envelope, request, settlement

CONFIG = AllocatorConfig(recovery_grace_ms=0)


def counted(allocator: Allocator, tokens: int, at_ms: int) -> None:
    """Keepa's count at a time."""
    allocator.probe_started(at_ms)
    allocator.probe_answered(envelope(tokens, at=at_ms), at_ms, at_ms)


def first_epoch() -> Allocator:
    """A leader that has seen 100 tokens."""
    allocator = Allocator(CONFIG, epoch=EPOCH, started_ms=0)
    counted(allocator, 100, 0)
    return allocator


class Successor:
    """The epoch after, with what the journal has kept; *kept* are its records."""

    def __init__(self, kept: list[Record], *carried: Carried, at_ms: int) -> None:
        books = Replay()
        for record in kept:
            books.take(record)
        self.allocator = Allocator(CONFIG, epoch=EPOCH + 1, started_ms=at_ms)
        self.allocator.restore(Recovered(leases=carried, books=books), at_ms)
        self.opening = Opening(books, self.allocator.ledger)

    def recorded(self) -> list[Record]:
        """What the journal takes since the last time."""
        made = self.allocator.take_records()
        return made if self.opening.is_over else list(self.opening.follow(made))

    def unrecorded(self) -> list[int]:
        """The tokens of it that no other record explains."""
        made = self.recorded()
        return [record.tokens for record in made if isinstance(record, records.Unrecorded)]


def carried(lease_id: str) -> Carried:
    """A hold of five tokens that lapsed as its epoch ended."""
    wanted = request(lease_id, ttl_ms=20)
    return Carried(30, lease_id, "h", "deal", 1, 5, 0, 10, 30, lapsed=True, request=wanted)


@pytest.mark.parametrize(("kept", "missing"), [(True, []), (False, [5])])
def test_tokens_without_a_record_get_one(*, kept: bool, missing: list[int]) -> None:
    """Whatever is lost, the sum over the journal is what Keepa has counted."""
    before = first_epoch()
    made = before.take_records()
    before.acquire(request("a"), 10)
    before.settle(settlement("a", said=envelope(95, at=15, consumed=5)), 20)
    made += before.take_records() if kept else []
    after = Successor(made, at_ms=1_000)
    counted(after.allocator, 95, 1_000)

    assert after.unrecorded() == missing
    assert after.opening.is_over is kept


@pytest.mark.parametrize("settled_first", [False, True])
def test_a_client_that_repeats_its_settle_explains_them(*, settled_first: bool) -> None:
    """No answer had confirmed it: the call is booked once, before the count or after it."""
    before = first_epoch()
    after = Successor(before.take_records(), at_ms=1_000)
    repeated = settlement("a", said=envelope(95, at=15, consumed=5))
    total = 0
    for settles in (settled_first, not settled_first):
        if settles:
            after.allocator.settle(repeated, 1_000)
        else:
            counted(after.allocator, 95, 1_100)
        total += sum(after.unrecorded())

    assert total == 0
    assert after.allocator.ledger.totals.spent_tokens == 5
    assert after.opening.is_over


def test_a_call_of_the_new_epoch_explains_nothing_of_the_old() -> None:
    """Only what the first count includes can be part of it."""
    after = Successor(first_epoch().take_records(), at_ms=1_000)
    counted(after.allocator, 95, 1_000)
    after.allocator.acquire(request("b"), 1_010)
    after.allocator.settle(settlement("b", said=envelope(90, at=1_015, consumed=5)), 1_020)

    assert after.unrecorded() == [5]
    assert not after.opening.is_over


@pytest.mark.parametrize("first_ms", [1_000, CALL_MS_MAX + 100])
def test_a_lost_call_is_written_off_at_what_it_has_cost(first_ms: int) -> None:
    """Its client died in the old epoch; the new one's first count includes the charge."""
    before = first_epoch()
    before.acquire(request("a", ttl_ms=20), 10)
    after = Successor(before.take_records(), carried("a"), at_ms=900)
    booked = 0
    for at_ms in (first_ms, CALL_MS_MAX + 200):
        counted(after.allocator, 95, at_ms)
        for record in after.recorded():
            match record:
                case records.WrittenOff(cost=tokens) | records.Unrecorded(tokens=tokens):
                    booked += tokens

    assert booked == 5
    assert after.allocator.ledger.reserved == 0
