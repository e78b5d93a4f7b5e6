"""The closing figures of a run."""

from deploy.local.summary import RunTotals
from deploy.local.survey import SimulatorStats, Survey
from protos.tokenbroker.v1 import token_broker_pb2 as pb


def bucket(epoch: int, spent: int) -> pb.Bucket:
    """A bucket of the broker's start *epoch*."""
    return pb.Bucket(epoch=epoch, totals=pb.Totals(spent_tokens=spent, settles=spent // 5))


def test_spending_adds_up_over_restarts_of_the_broker() -> None:
    """Totals restart with the broker, so the last ones of every epoch are added."""
    totals = RunTotals()
    for survey in (bucket(1, 5), bucket(1, 35), bucket(2, 10)):
        totals.note(Survey(bucket=survey))

    assert totals.broker.spent_tokens == 45


def test_silence_changes_nothing() -> None:
    """A part that doesn't answer at the end keeps its last figures."""
    totals = RunTotals()
    totals.note(Survey(bucket(1, 20), deals=10, simulator=SimulatorStats(4, 0, 20)))
    totals.note(Survey(deals=160))
    totals.note(Survey())

    assert list(totals.closing_lines()) == [
        "deals   160 stored, 150 new",
        "tokens  20 spent per broker, 20 per Keepa",
        "calls   4 to Keepa, 0 refused (429)",
        "drift   0 tokens, 0 spent by others",
    ]


def test_without_a_simulator_the_broker_is_the_witness() -> None:
    """With the real Keepa, the broker's figures stand alone."""
    totals = RunTotals()
    totals.note(Survey(bucket(1, 20)))

    assert "tokens  20 spent" in list(totals.closing_lines())
