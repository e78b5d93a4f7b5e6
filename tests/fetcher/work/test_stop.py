"""A stop: what was paid for is written, whatever the moment; the rest is given back."""

from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from structlog.testing import capture_logs

from deploy.local.ports import free_port
from fetcher.broker_client import BrokerClient
from fetcher.errors import DatabaseAwayError
from fetcher.postgres import Database
from fetcher.postgres.database import Connection
from fetcher.query_folder import QueryFolder
from fetcher.work.shared import Limits, StoppedError, Workplace
from fetcher.work.worker import Worker
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from tests.fetcher.fetcher_log import logged
from tests.fix_fetcher import SELECTION, Log, StartWorld, World
from tests.waiting import DEADLINE_S, wait_until

# Long enough for a write on a busy machine: the tests end it by themselves.
LIMITS: dict[str, float] = {"finish_s": 0.1, "write_s": DEADLINE_S}
WAITS = "the end waits for replies to be written"
# Without a call after the first page of each: they are too short for a second one.
PAGES = "SELECT state, attempts, tokens FROM scan_pages ORDER BY scan_id"


@dataclass(frozen=True)
class Run:
    """A worker in a thread; *done* is its run."""

    worker: Worker
    done: Future[None]
    log: Log

    def end(self) -> None:
        """Stops it; returns once it waits for a reply to be written, or has ended."""
        self.worker.end()
        wait_until(lambda: logged(self.log, WAITS) or self.done.done(), "the stop")


@contextmanager
def running(world: World, **options: Any) -> Iterator[Run]:
    """A worker with options in a thread of its own, ended at the latest with the context."""
    with (
        world.worker(**{**LIMITS, **options}) as worker,
        capture_logs() as log,
        ThreadPoolExecutor(1) as pool,
    ):
        run = Run(worker, pool.submit(worker.run), log)
        try:
            yield run
        finally:
            worker.end()
            run.done.result(DEADLINE_S)
    assert [line for line in log if "unexpected" in line["event"]] == []


@contextmanager
def locked(world: World, table: str) -> Iterator[Callable[[], None]]:
    """A table that takes no writes; yields what unlocks it before the context's end."""
    with psycopg.connect(world.database_url) as connection:
        connection.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE".encode())
        yield connection.commit


def write_queries(world: World, count: int) -> None:
    """Writes *count* queries with pages of their own."""
    for number in range(count):
        world.write_query(f"q{number}", {"selection": {**SELECTION, "dateRange": number}})


def served(world: World) -> list[MutableMapping[str, Any]]:
    """The calls with replies that have been sent."""
    return [call for call in world.calls() if call["delivered"]]


@pytest.mark.parametrize("calls_in_flight", [1, 3])
def test_a_stop_between_a_reply_and_its_commit_loses_nothing(
    start_world: StartWorld, calls_in_flight: int
) -> None:
    """The commits are held up beyond the time for calls; the process waits for them."""
    world = start_world()
    write_queries(world, calls_in_flight)
    with (
        locked(world, "deals") as unlock,
        running(world, calls_in_flight=calls_in_flight) as run,
    ):
        wait_until(lambda: len(served(world)) == calls_in_flight, "a reply to every call")
        run.end()
        has_waited = not run.done.done()
        unlock()
        run.done.result(DEADLINE_S)

    assert has_waited
    assert world.stored_deals() == world.served_deals() != set()
    assert world.value("SELECT sum(tokens) FROM scan_pages") == world.spent()
    assert len(world.calls()) == calls_in_flight
    world.assert_every_token_is_accounted_for()


def test_a_stop_while_a_commit_is_repeated_loses_nothing(start_world: StartWorld) -> None:
    """Postgres refuses the first tries with an error that passes."""
    world = start_world()
    write_queries(world, 1)
    world.execute(
        """
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'as told' USING ERRCODE = '40P01'; END $$;
        CREATE TRIGGER fail BEFORE INSERT ON deals EXECUTE FUNCTION fail()"""
    )
    with running(world) as run:
        wait_until(lambda: logged(run.log, "Postgres is away: waiting for it"), "a failure")
        run.end()
        has_waited = not run.done.done()
        world.execute("DROP TRIGGER fail ON deals")
        run.done.result(DEADLINE_S)

    assert has_waited
    assert world.stored_deals() == world.served_deals() != set()
    assert world.value("SELECT sum(tokens) FROM scan_pages") == world.spent()


def test_a_stop_writes_one_call_and_gives_back_another(start_world: StartWorld) -> None:
    """A call without an answer does not hold up the stop, nor the reply of another thread."""
    world = start_world(rough=True)
    world.simulator.set_fault("latency:ms=60000,path=/deal,count=1")
    write_queries(world, 2)
    with locked(world, "deals") as unlock, running(world, calls_in_flight=2) as run:
        wait_until(lambda: len(world.calls()) == 2 and served(world), "a reply, and a call")
        run.end()
        given_back = world.value("SELECT count(*) FROM scan_pages WHERE state = 'ready'")
        unlock()
        run.done.result(DEADLINE_S)
    states = [state for state, _, _ in world.rows(PAGES)]

    assert given_back == 1
    assert states.count("done") == 1
    assert "claimed" not in states
    assert world.value("SELECT max(attempts) FROM scan_pages") == 0
    assert world.stored_deals() == world.served_deals() != set()


def test_no_call_begins_after_a_stop(start_world: StartWorld) -> None:
    """A stop between the grant and the call: the page is given back, the lease is not sent."""
    world = start_world(rough=True)
    write_queries(world, 1)
    with grpc.insecure_channel(world.broker.address) as channel:
        stub = pb_grpc.TokenBrokerServiceStub(channel)
        stub.PauseGrants(pb.PauseGrantsRequest())
        with running(world, finish_s=DEADLINE_S) as run:
            wait_until(lambda: world.broker.bucket().waiting == 1, "a wait for tokens")
            with locked(world, "scan_pages"):
                stub.ResumeGrants(pb.ResumeGrantsRequest())
                wait_until(lambda: world.broker.bucket().open_leases == 1, "a lease")
                run.worker.end()
                wait_until(lambda: logged(run.log, "fetcher is stopping"), "the stop")
            run.done.result(DEADLINE_S)

    assert world.calls() == []
    assert world.rows(PAGES) == [("ready", 0, 0)]
    assert world.broker.bucket().open_leases == 0


def test_each_change_has_its_own_grace_after_a_stop(database_url: str, tmp_path: Path) -> None:
    """A change that was given up takes no time from the next one, which succeeds when repeated."""
    tries: list[int] = []

    def away(connection: Connection) -> None:
        raise DatabaseAwayError("as told", "wait")

    def away_once(connection: Connection) -> int:
        tries.append(1)
        if len(tries) == 1:
            raise DatabaseAwayError("as told", "wait")
        return 7

    with (
        Database(database_url) as database,
        BrokerClient(f"127.0.0.1:{free_port()}") as broker,
    ):
        limits = Limits(claim_ttl_s=30, attempts_max=3, retry_delay_s=1)
        workplace = Workplace("me", database, broker, QueryFolder(tmp_path), limits)
        workplace.stop.set()
        with pytest.raises(StoppedError):
            workplace.persist(away, grace_s=0.01)
        result = workplace.persist(away_once, grace_s=0.2)

    assert result == 7
