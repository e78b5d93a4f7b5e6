"""What a run came to."""

from deploy.local.summary import RunTotals
from deploy.local.survey import SimulatorStats, Survey
from protos.tokenbroker.v1 import token_broker_pb2 as pb


def bucket(epoch: int, spent: int) -> pb.Bucket:
    """A bucket of the broker's start *epoch*."""
    return pb.Bucket(epoch=epoch, totals=pb.Totals(spent_tokens=spent, settles=spent // 5))


def test_spending_adds_up_over_restarts_of_the_broker() -> None:
    """Each start counts anew, so the last sums of every epoch are added."""
    totals = RunTotals()
    for survey in (bucket(1, 5), bucket(1, 35), bucket(2, 10)):
        totals.note(Survey(bucket=survey))

    assert totals.broker.spent_tokens == 45


def test_silence_changes_nothing() -> None:
    """A part that doesn't answer at the end leaves what was known of it."""
    totals = RunTotals()
    totals.note(Survey(bucket(1, 20), deals=10, simulator=SimulatorStats(4, 0, 20)))
    totals.note(Survey(deals=160))
    totals.note(Survey())

    assert list(totals.closing_lines()) == [
        "deals   160 stored, 150 new",
        "tokens  20 spent says the broker, 20 Keepa",
        "calls   4 to Keepa, 0 refused (429)",
        "drift   0 tokens, 0 spent by others",
    ]


def test_without_a_simulator_the_broker_is_the_witness() -> None:
    """The real Keepa keeps no journal for us."""
    totals = RunTotals()
    totals.note(Survey(bucket(1, 20)))

    assert "tokens  20 spent" in list(totals.closing_lines())
