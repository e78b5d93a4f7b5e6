"""A real PgBouncer in transaction mode before the tests' Postgres."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from deploy.local.ports import free_port
from deploy.local.postgres import PostgresServer
from deploy.local.program import Program

READY_TIMEOUT_S = 90.0


@pytest.fixture
def pooled_url(postgres_server: PostgresServer, empty_database_url: str) -> Iterator[str]:
    """URL of an empty database behind a PgBouncer that has two server connections for it.

    Two are fewer than a fetcher's threads, so that every transaction may land on another.
    """
    pgbouncer = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if pgbouncer is None:
        pytest.skip("needs PgBouncer: apt-get install pgbouncer")
    name, port = urlsplit(empty_database_url).path[1:], free_port()
    folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
    folder.chmod(0o755)
    (folder / "users.txt").write_text('"postgres" ""\n')
    (folder / "pgbouncer.ini").write_text(
        f"""[databases]
{name} = host=127.0.0.1 port={postgres_server.port} dbname={name} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
auth_file = {folder}/users.txt
pool_mode = transaction
default_pool_size = 2
"""
    )
    arguments = [pgbouncer, str(folder / "pgbouncer.ini")]
    if os.geteuid() == 0:
        # It refuses to run as root.
        arguments = [pgbouncer, "-u", "nobody", str(folder / "pgbouncer.ini")]
    program = Program(
        "pgbouncer", arguments, environment={}, log_path=folder / "log", folder=folder
    )
    url = f"postgresql://postgres@127.0.0.1:{port}/{name}"
    try:
        program.start()
        program.await_ready(lambda: _answers(url), READY_TIMEOUT_S)
        yield url
    finally:
        program.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _answers(url: str) -> bool:
    try:
        with psycopg.connect(url, connect_timeout=2, prepare_threshold=None) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False
