"""A Postgres that refuses, for a while or for want of rights: fetchers outlive it unharmed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from urllib.parse import urlsplit

import psycopg
import pytest

from deploy.local.postgres import PostgresServer
from deploy.local.program import Program
from tests.fetcher.fetcher_log import assert_no_traceback, logged, output
from tests.fix_fetcher import SELECTION, StartWorld, World
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

_roles = count(1)

AWAY = "Postgres is away: waiting for it"
BACK = "Postgres is back"

# Scans without end, so that there is always something to write.
BUSY = {"deals": 300, "cache_seconds": 0, "deal_speed": 200}


@contextmanager
def plain_role(server: PostgresServer, database_url: str) -> Iterator[tuple[str, str]]:
    """A role that may do what a fetcher must, and no more: its name, and a URL with it."""
    role = f"plain_{next(_roles)}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN".encode())
        connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}".encode())
        connection.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}".encode())
    url = urlsplit(database_url)
    yield role, url._replace(netloc=f"{role}@127.0.0.1:{url.port}").geturl()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            b"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (role,)
        )
        connection.execute(f"DROP OWNED BY {role}".encode())
        connection.execute(f"DROP ROLE {role}".encode())


def administer(server: PostgresServer, *statements: str) -> None:
    """Runs statements that concern the whole server."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def test_a_fetcher_without_rights_logs_it_and_begins_when_it_gets_them(
    start_world: StartWorld, postgres_server: PostgresServer, database_url: str
) -> None:
    """One line names the table and the remedy; it is not alive; later grants are enough."""
    world = start_world()
    world.write_query("used")
    with plain_role(postgres_server, database_url) as (role, url):
        world.execute(f"REVOKE ALL ON _yoyo_migration FROM {role}")
        fetcher = world.start_fetcher(database_url=url, claim_ttl_s=2)
        wait_until(lambda: logged(fetcher, "waiting for the database"), "a complaint")
        reported = "SELECT doing FROM workers WHERE strpos(doing, 'permission denied') > 0"
        wait_until(lambda: world.rows(reported), "a report")
        alive = world.command("alive", claim_ttl_s=2)
        doctor = world.command("doctor")
        world.execute(f"GRANT SELECT ON _yoyo_migration TO {role}")
        wait_until(world.scans_completed, "a scan after the grant")
        wait_until(lambda: world.command("alive", claim_ttl_s=2).returncode == 0, "life")
        complaints = logged(fetcher, "waiting for the database")
        fetcher.stop()

    assert len(complaints) == 1
    assert "permission denied for table _yoyo_migration" in complaints[0]["problem"]
    assert "grant" in complaints[0]["problem"]
    assert alive.returncode == 1
    assert "permission denied" in alive.stderr
    assert "permission denied" in doctor.stdout
    assert_no_traceback(fetcher)


@dataclass(frozen=True)
class Trouble:
    """Something that goes wrong in the midst of work, and its end.

    *problem* is what the log must name.
    """

    name: str
    begin: str
    end: str
    problem: str


def raising(code: str) -> tuple[str, str]:
    """Statements that have every claim of a page fail with an SQLSTATE, and no more."""
    begin = f"""
        CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'as told: {code}' USING ERRCODE = '{code}'; END $$;
        CREATE TRIGGER fail BEFORE UPDATE ON scan_pages
            FOR EACH STATEMENT EXECUTE FUNCTION fail()"""
    return begin, "DROP TRIGGER fail ON scan_pages"


TROUBLES = [
    Trouble("disk full", *raising("53100"), "as told: 53100"),
    Trouble("serialization failure", *raising("40001"), "as told: 40001"),
    Trouble("deadlock", *raising("40P01"), "as told: 40P01"),
    Trouble("lock timeout", *raising("55P03"), "as told: 55P03"),
    Trouble("statement timeout", *raising("57014"), "as told: 57014"),
    Trouble("idle in transaction", *raising("25P03"), "as told: 25P03"),
    Trouble(
        "no such column",
        "ALTER TABLE scan_pages RENAME claim_expires TO claim_expired",
        "ALTER TABLE scan_pages RENAME claim_expired TO claim_expires",
        "run dealfetcher migrate",
    ),
    Trouble(
        "no such table",
        "ALTER TABLE scan_pages RENAME TO scan_leaves",
        "ALTER TABLE scan_leaves RENAME TO scan_pages",
        "run dealfetcher migrate",
    ),
    Trouble(
        "rights revoked",
        "REVOKE UPDATE ON scan_pages FROM {role}",
        "GRANT UPDATE ON scan_pages TO {role}",
        "permission denied for table scan_pages",
    ),
]


def begin_and_end(world: World, fetcher: Program, trouble: Trouble, role: str) -> None:
    """Causes *trouble*, waits until it is logged, ends it, and waits for the next scan."""
    aways, backs = logged(fetcher, AWAY), logged(fetcher, BACK)
    world.execute(trouble.begin.replace("{role}", role))
    wait_until(lambda: len(logged(fetcher, AWAY)) > len(aways), f"a word about {trouble.name}")
    world.execute(trouble.end.replace("{role}", role))
    scans = world.scans_completed()
    wait_until(lambda: world.scans_completed() > scans, f"a scan after {trouble.name}")
    wait_until(lambda: len(logged(fetcher, BACK)) > len(backs), f"the end of {trouble.name}")
    assert trouble.problem in logged(fetcher, AWAY)[-1]["problem"]


def test_a_fetcher_outlives_whatever_postgres_refuses(
    start_world: StartWorld, postgres_server: PostgresServer, database_url: str
) -> None:
    """Each trouble is logged once, and the work goes on when it has passed."""
    world = start_world(**BUSY)
    world.write_query("used")
    with plain_role(postgres_server, database_url) as (role, url):
        fetcher = world.start_fetcher(database_url=url, claim_ttl_s=3, poll_speed=1000)
        wait_until(world.scans_completed, "a scan")
        for trouble in TROUBLES:
            begin_and_end(world, fetcher, trouble, role)
        words = output(fetcher)
        code = fetcher.stop()

    assert "unexpected" not in words
    assert code in (None, 0)
    assert_no_traceback(fetcher)


def test_a_fetcher_outlives_a_database_that_is_renamed_or_full(
    start_world: StartWorld, postgres_server: PostgresServer, database_url: str
) -> None:
    """No database of that name, and no connection left: both end with a try that succeeds."""
    world = start_world(**BUSY)
    world.write_query("used")
    name = urlsplit(database_url).path[1:]
    kick = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    with plain_role(postgres_server, database_url) as (_, url):
        fetcher = world.start_fetcher(database_url=url, claim_ttl_s=3, poll_speed=1000)
        wait_until(world.scans_completed, "a scan")
        administer(
            postgres_server,
            f"ALTER DATABASE {name} CONNECTION LIMIT 0",
            kick,
        )
        wait_until(lambda: "too many connections" in output(fetcher), "a word about the limit")
        administer(postgres_server, f"ALTER DATABASE {name} CONNECTION LIMIT -1")
        scans = world.scans_completed()
        wait_until(lambda: world.scans_completed() > scans, "a scan with connections")
        wait_until(lambda: logged(fetcher, BACK), "Postgres being back")
        administer(
            postgres_server,
            f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false",
            kick,
            f"ALTER DATABASE {name} RENAME TO {name}_away",
        )
        wait_until(
            lambda: f'"{name}" does not exist' in output(fetcher).replace("\\", ""), "3D000"
        )
        administer(
            postgres_server,
            f"ALTER DATABASE {name}_away RENAME TO {name}",
            f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true",
        )
        scans = world.scans_completed()
        wait_until(lambda: world.scans_completed() > scans, "a scan of the database's new name")
        fetcher.stop()

    assert_no_traceback(fetcher)


@contextmanager
def read_only(server: PostgresServer) -> Iterator[None]:
    """A server that takes no writes, as managed ones with a full disk."""
    administer(
        server, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"
    )
    try:
        yield
    finally:
        administer(
            server, "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"
        )


@pytest.mark.slow
def test_pages_are_paid_once_although_claims_could_not_be_renewed(
    start_world: StartWorld, postgres_server: PostgresServer
) -> None:
    """Keepa takes 6 s, claims last 3 s, and for 8 s Postgres takes no renewal of them.

    The holders write what they have paid for, and the others leave their claims alone.
    """
    world = start_world(rate=200, deals=700)
    world.simulator.set_fault("latency:ms=6000,path=/deal")
    for number in range(3):
        world.write_query(f"q{number}", {"selection": {**SELECTION, "priceTypes": [number]}})
    fleet = [world.start_fetcher(claim_ttl_s=3) for _ in range(3)]
    wait_until(lambda: len(world.calls()) >= 2, "calls under way")
    with read_only(postgres_server):
        # The time is the experiment: claims expire, and expired they stay for a while.
        time.sleep(8)
    wait_until(lambda: world.scans_completed() == 3, "three completed scans", 150)
    paid, reads = len(world.calls()), world.value("SELECT sum(reads) FROM scan_pages")
    wait_until(
        lambda: (
            world.value("SELECT count(*) FROM workers WHERE seen_at > now() - interval '5 s'") == 3
        ),
        "a heartbeat of each",
    )
    words = "".join(output(fetcher) for fetcher in fleet)

    assert paid == reads
    assert words.count("Postgres is away") >= 2
    assert "Traceback" not in words
    assert world.stored_deals() == world.served_deals()
