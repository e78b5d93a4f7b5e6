"""`dealfetcher ready`: the startup check of a container."""

from tests.fix_fetcher import StartWorld
from tests.waiting import wait_until


def test_a_fetcher_is_ready_once_it_works(start_world: StartWorld) -> None:
    """Settings read, broker and schema seen: without one of them a fetcher is not ready."""
    world = start_world()
    world.write_query("used")
    before = world.command("ready")
    world.start_fetcher()
    wait_until(lambda: world.command("ready").returncode == 0, "a fetcher that is ready")
    no_broker = world.command("ready", broker_address="127.0.0.1:1")
    other_key = world.command("ready", keepa_api_key="x" * 64)
    no_database = world.command("ready", database_url="postgresql://127.0.0.1:1/deals")
    no_key = world.command("ready", keepa_api_key="")

    assert (before.returncode, "no fetcher of this host" in before.stderr) == (1, True)
    assert no_broker.returncode == 1
    assert (other_key.returncode, "another key" in other_key.stderr) == (1, True)
    assert no_database.returncode == 1
    assert (no_key.returncode, "KEEPA_API_KEY" in no_key.stderr) == (2, True)


def test_a_fetcher_that_lacks_tables_is_not_ready(start_world: StartWorld) -> None:
    """A release never counts as started before its migration has run."""
    world = start_world()
    world.write_query("used")
    world.execute("DELETE FROM _yoyo_migration WHERE migration_id LIKE '0005%%'")
    world.start_fetcher()

    def waiting() -> bool:
        return "lacks 0005" in world.command("ready").stderr

    wait_until(waiting, "a fetcher that waits for its tables")

    assert world.command("ready").returncode == 1
