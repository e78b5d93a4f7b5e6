"""Behind PgBouncer in transaction mode every transaction may run on another server connection."""

import threading

import psycopg
import pytest

from fetcher.postgres import Database, migrate
from fetcher.postgres.schema import known_migrations, missing_migrations
from tests.fetcher.fetcher_log import assert_no_traceback, stop_in_time
from tests.fix_fetcher import StartWorld
from tests.waiting import wait_until

REPEATS = 20


def test_migrations_take_turns_and_leave_no_lock(pooled_url: str) -> None:
    """A second one finds nothing to do at once, also while others run."""
    first = migrate(pooled_url)
    applied: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: applied.append(migrate(pooled_url)), daemon=True)
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with psycopg.connect(pooled_url, prepare_threshold=None) as connection:
        locks = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        left = locks.fetchone()

    assert set(first) == known_migrations()
    assert applied == [[], [], []]
    assert left == (0,)


def test_statements_that_are_often_repeated_go_on(pooled_url: str) -> None:
    """None is prepared, alone or in a pipeline, on more clients than server connections."""
    migrate(pooled_url)
    beat = "INSERT INTO workers (holder, version, doing) VALUES (%s, '1', 'x')"
    with Database(pooled_url) as database:

        def work(name: str) -> None:
            for number in range(REPEATS):
                with database.connection() as connection:
                    assert missing_migrations(connection) == set()
                    with connection.pipeline(), connection.cursor() as cursor:
                        cursor.executemany(beat, [(f"{name}-{number}-{n}",) for n in range(3)])

        threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with database.connection() as connection:
            row = connection.execute("SELECT count(*) FROM workers").fetchone()

    assert row == (3 * REPEATS * 3,)


@pytest.mark.slow
def test_deals_are_collected_through_it(start_world: StartWorld, pooled_url: str) -> None:
    """Claims, commits and heartbeats of two fetchers, without one error."""
    world = start_world()
    migrate(pooled_url)
    world.database_url = pooled_url
    world.write_query("used")
    fetchers = [world.start_fetcher(claim_ttl_s=3) for _ in range(2)]
    wait_until(lambda: world.scans_completed() >= 1, "a completed scan")
    wait_until(lambda: len(world.rows("SELECT FROM workers")) == 2, "two heartbeats")
    codes = [stop_in_time(fetcher) for fetcher in fetchers]

    assert codes == [0, 0]
    assert world.stored_deals() == world.served_deals()
    for fetcher in fetchers:
        assert_no_traceback(fetcher)
        assert "prepared statement" not in fetcher.output()
        assert "Postgres is away" not in fetcher.output()
