"""The plan of intervals is one log line, written once."""

from collections.abc import Sequence

from structlog.testing import capture_logs

from fetcher.broker_client import BrokerClient
from fetcher.postgres.database import connect
from fetcher.postgres.progress import standings
from fetcher.queries.query import DealQuery, parse_query
from fetcher.work.pace import PLAN_EVENT, Pace
from protos.process.settings import key_fingerprint
from tests.fetcher.keepa_pages import query_text
from tests.fix_fetcher import StartWorld, World


def plans(world: World, queries: Sequence[DealQuery], times: int) -> list[dict[str, object]]:
    """The log lines of *times* plans in *world*, without the waits between them."""
    fingerprint = key_fingerprint(world.simulator.api_key)
    with (
        BrokerClient(world.broker.address, key_fingerprint=fingerprint) as broker,
        connect(world.database_url) as connection,
        capture_logs() as lines,
    ):
        pace = Pace(broker)
        for _ in range(times):
            pace._planned_at_s = float("-inf")
            pace.replan(queries, standings(connection, queries))
    return [dict(line) for line in lines if line["event"] == PLAN_EVENT]


def test_a_plan_is_logged_once_in_words(start_world: StartWorld) -> None:
    """The second plan confirms the first, and further equal plans log nothing."""
    queries = [
        parse_query("fixed", query_text(interval="45m")),
        parse_query("adaptive", query_text()),
    ]
    world = start_world()
    unconfirmed = plans(world, queries, 1)
    [line] = plans(world, queries, 5)

    assert unconfirmed == []
    assert line["event"] == "how often each query is read"
    assert line["log_level"] == "info"
    assert str(line["fixed"]).startswith("every 45 min, as its file ")
    assert str(line["adaptive"]).startswith("every 2 min, as the tokens allow")
