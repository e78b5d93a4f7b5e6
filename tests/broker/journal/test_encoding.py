"""A record read back is the record written."""

import random

from broker.core import records
from broker.core.budgets import Budget
from broker.core.leases import Outcome
from broker.core.replay import Replay
from broker.journal.encoding import KINDS, decode, encode
from tests.broker.builders import envelope, request, settlement
from tests.broker.core.test_replay import History, books


def some_history(seed: int, steps: int = 120) -> History:
    """A history of arbitrary events."""
    dice, history = random.Random(seed), History()
    history.step(4, 0, 0)
    for _ in range(steps):
        history.step(dice.randrange(5), dice.randrange(51), dice.randrange(10_000))
    return history


def test_every_record_of_a_history_survives() -> None:
    """The replay of the rows ends at the same books."""
    history = some_history(1)
    replay = Replay()
    for number, record in enumerate(history.allocator.take_records()):
        row = encode(record, epoch=7, seq=number, offset_ms=1_000, signed=False)
        back = decode(row.kind, row.body)
        assert back == record
        replay.take(back)

    assert books(replay.ledger) == books(history.allocator.ledger)


def test_records_without_a_history_survive_too() -> None:
    """Those of operators, of leadership and of the edge."""
    budget = Budget("b", tokens_per_hour=5)
    for record in (
        records.BudgetsChanged(1, (budget,)),
        records.Led(1, 8, "host/1"),
        records.Conceded(2, 8, "handed over"),
        records.Lost(3, 10, 1, 2),
        records.Paused(4, "anna at ipv4:127.0.0.1"),
        records.Carried(5, "a", "h", "deal", 1, 5, 2, -10, 20, False, request("a")),
    ):
        row = encode(record, epoch=8, seq=1, offset_ms=0, signed=True)
        assert decode(row.kind, row.body) == record


def test_columns_hold_what_is_searched_and_summed() -> None:
    """Lease, holder with its identity, cost, and what budgets are charged when."""
    call = settlement("a", said=envelope(95, consumed=7), holder="ann/host-1")
    settled = records.Settled(200, call, late=False, cost=7, doubt=None, granted_ms=100, charged=5)
    row = encode(settled, epoch=7, seq=3, offset_ms=1_000, signed=True)
    unsigned = encode(settled, epoch=7, seq=3, offset_ms=1_000, signed=False)

    assert (row.kind, row.time_ms, row.lease_id) == ("settled", 1_200, "a")
    assert (row.holder, row.identity, row.operation) == ("ann/host-1", "ann", "deal")
    assert (row.cost, row.charged, row.charged_ms) == (7, 2, 1_100)
    assert unsigned.identity == ""
    assert Outcome.REPLIED.value in row.body


def test_kinds_are_words() -> None:
    """As they stand in the database, whatever the classes are called."""
    assert KINDS[records.WrittenOff] == "written_off"
    assert len(set(KINDS.values())) == len(KINDS) == 21
