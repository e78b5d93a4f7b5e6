"""`dealfetcher migrate --roles`: each role may do its work, and nothing else."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from broker.journal.schema import SCHEMA
from deploy.local.postgres import PostgresServer, find_installation
from fetcher.errors import DatabaseNotSetUpError
from fetcher.postgres import migrate
from fetcher.postgres.roles import RoleUrls, grant_roles
from tests.fetcher.postgres.released_statements import present_statements, refused
from tests.fix_broker import StartProgram
from tests.waiting import DEADLINE_S

ROLES = ("k_owner", "k_fetcher", "k_reader", "k_broker")
DENIED = psycopg.errors.InsufficientPrivilege


@pytest.fixture
def owner_url(postgres_server: PostgresServer) -> Iterator[str]:
    """An empty database; its owner may create roles, but is no superuser."""
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute("CREATE ROLE k_owner LOGIN CREATEROLE PASSWORD 'o'")
        connection.execute("CREATE DATABASE roles OWNER k_owner")
        yield role_url(postgres_server.url("roles"), "k_owner")
        connection.execute("DROP DATABASE roles WITH (FORCE)")
        for role in reversed(ROLES):
            connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


def role_url(url: str, role: str, password: str = "p") -> str:
    """*url* for another role."""
    return url.replace("://postgres@", f"://{role}:{password}@").replace(
        "://k_owner:p@", f"://{role}:{password}@"
    )


def urls_of(owner_url: str) -> RoleUrls:
    """One role for each purpose."""
    return RoleUrls(*(role_url(owner_url, role) for role in ROLES[1:]))


def test_the_broker_makes_its_journal_with_its_own_role(
    owner_url: str, start_program: StartProgram
) -> None:
    """In the schema that is there for it, though it may create none; the reader reads it."""
    migrate(owner_url)
    grant_roles(owner_url, urls_of(owner_url))
    journal = start_program(
        "broker", "migrate", broker_database_url=role_url(owner_url, "k_broker")
    )
    code = journal.wait(60)
    assert (code, "applied" in journal.output()) == (0, True), journal.output()
    with psycopg.connect(role_url(owner_url, "k_reader")) as reader:
        records = reader.execute("SELECT count(*) FROM tokenbroker.records").fetchone()

    assert records == (0,)


def test_a_backup_restores_collection_and_journal(
    owner_url: str, start_program: StartProgram, tmp_path: Path
) -> None:
    """The documents' way, with the owner's role: dump, drop the journal's schema, restore."""
    migrate(owner_url)
    grant_roles(owner_url, urls_of(owner_url))
    journal = start_program(
        "broker", "migrate", broker_database_url=role_url(owner_url, "k_broker")
    )
    assert journal.wait(60) == 0, journal.output()
    with psycopg.connect(role_url(owner_url, "k_broker")) as connection:
        connection.execute(LEADER)
    dump = tmp_path / "deals.dump"
    programs = find_installation()
    run(programs.program("pg_dump"), "--format=custom", f"--file={dump}", owner_url)
    with psycopg.connect(owner_url) as connection:
        connection.execute("DROP SCHEMA tokenbroker CASCADE")
    restore = (programs.program("pg_restore"), "--single-transaction", str(dump))
    run(*restore, "--clean", "--if-exists", f"--exclude-schema={SCHEMA}", f"--dbname={owner_url}")
    run(*restore, f"--schema={SCHEMA}", f"--dbname={role_url(owner_url, 'k_broker')}")
    with psycopg.connect(role_url(owner_url, "k_broker")) as connection:
        leaders = connection.execute("SELECT epoch FROM tokenbroker.leader").fetchall()
        renewed = connection.execute("UPDATE tokenbroker.leader SET renewals = 1").rowcount
    with psycopg.connect(role_url(owner_url, "k_reader")) as connection:
        read = connection.execute("SELECT count(*) FROM tokenbroker.records").fetchone()

    assert (leaders, renewed, read) == ([(7,)], 1, (0,))


def run(*command: str) -> None:
    """Runs a program of Postgres."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


LEADER = """
INSERT INTO tokenbroker.leader (account, epoch, holder, renewals, address, taken_at, renewed_at)
VALUES ('a', 7, 'h', 0, 'x', now(), now())
"""


def test_each_role_does_its_work_and_no_more(owner_url: str) -> None:
    """Fetchers write rows, readers read them, the broker has its own schema."""
    migrate(owner_url)
    grant_roles(owner_url, urls_of(owner_url))
    fetcher, reader, broker = (
        psycopg.connect(role_url(owner_url, role), autocommit=True) for role in ROLES[1:]
    )
    try:
        row = "INSERT INTO workers (holder, version, doing) VALUES ('a', '1', 'x')"
        fetcher.execute(row)
        broker.execute("CREATE TABLE tokenbroker.leader (epoch bigint)")

        assert refused(fetcher, present_statements()) == {}
        assert reader.execute("SELECT count(*) FROM workers").fetchone() == (1,)
        assert reader.execute("SELECT count(*) FROM tokenbroker.leader").fetchone() == (0,)
        for connection, statement in (
            (fetcher, "CREATE TABLE mine (n int)"),
            (fetcher, "DROP TABLE workers"),
            (fetcher, "TRUNCATE workers"),
            (fetcher, "DELETE FROM _yoyo_migration"),
            (fetcher, "SELECT * FROM tokenbroker.leader"),
            (reader, "DELETE FROM workers"),
            (reader, row),
            (reader, "CREATE TABLE mine (n int)"),
            (broker, "SELECT count(*) FROM deals"),
            (broker, "CREATE SCHEMA other"),
        ):
            with pytest.raises(DENIED):
                connection.execute(statement.encode())
    finally:
        for connection in (fetcher, reader, broker):
            connection.close()


def test_tables_of_later_migrations_are_granted_too(owner_url: str) -> None:
    """Fetchers and readers need no second grant after the next release's migration."""
    migrate(owner_url)
    grant_roles(owner_url, urls_of(owner_url))
    with psycopg.connect(owner_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE later (n bigint GENERATED ALWAYS AS IDENTITY, m int)")
    with psycopg.connect(role_url(owner_url, "k_fetcher"), autocommit=True) as connection:
        connection.execute("INSERT INTO later (m) VALUES (1)")
    with psycopg.connect(role_url(owner_url, "k_reader"), autocommit=True) as connection:
        assert connection.execute("SELECT m FROM later").fetchone() == (1,)


def test_granting_again_changes_nothing_and_keeps_the_password(owner_url: str) -> None:
    """Repeats are safe; a role that an administrator gave keeps its password."""
    migrate(owner_url)
    first = grant_roles(owner_url, urls_of(owner_url))
    other = RoleUrls(fetcher=role_url(owner_url, "k_fetcher", "another"))
    second = grant_roles(owner_url, other)
    with psycopg.connect(owner_url) as connection:
        row = connection.execute("SELECT count(*) FROM pg_roles WHERE rolname = 'k_fetcher'")

        assert row.fetchone() == (1,)
    assert first == [
        "fetcher: k_fetcher created",
        "broker: k_broker created",
        "reader: k_reader created",
    ]
    assert second == ["fetcher: rights granted to k_fetcher"]


def test_one_role_may_serve_for_all(owner_url: str) -> None:
    """With the owner's own URL, there is nothing to grant."""
    migrate(owner_url)

    assert grant_roles(owner_url, RoleUrls(fetcher=owner_url, reader=owner_url)) == [
        "fetcher: k_owner is the owner",
        "reader: k_owner is the owner",
    ]


def test_an_owner_that_may_create_no_role_gets_the_remedy(owner_url: str) -> None:
    """The message has the statement for an administrator, and no password."""
    migrate(owner_url)
    with psycopg.connect(owner_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE k_fetcher LOGIN PASSWORD 'p'")
        connection.execute("GRANT CREATE ON DATABASE roles TO k_fetcher")
    weak = role_url(owner_url, "k_fetcher")
    with pytest.raises(DatabaseNotSetUpError, match="CREATE ROLE k_reader LOGIN") as caught:
        grant_roles(weak, RoleUrls(reader=role_url(owner_url, "k_reader", "secret")))

    assert "secret" not in str(caught.value)


def test_a_name_of_any_letters_is_a_name(owner_url: str) -> None:
    """A role name that looks like SQL is quoted."""
    migrate(owner_url)
    name = 'k"; DROP TABLE deals; --'
    url = make_conninfo(owner_url, user=name, password="p'")
    grant_roles(owner_url, RoleUrls(reader=url))
    try:
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT count(*) FROM deals").fetchone() == (0,)
    finally:
        with psycopg.connect(owner_url, autocommit=True) as connection:
            quoted = sql.Identifier(name)
            connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(quoted))
            connection.execute(sql.SQL("DROP OWNED BY {}").format(quoted))
            connection.execute(sql.SQL("DROP ROLE {}").format(quoted))


def test_the_command_names_what_it_lacks_and_what_it_did(
    owner_url: str, start_program: StartProgram, tmp_path: Path
) -> None:
    """`migrate --roles` needs a file with a URL; files that don't exist are left out."""
    bare = start_program("fetcher", "migrate", "--roles", database_url=owner_url)
    code = bare.wait(DEADLINE_S)
    (tmp_path / "url").write_text(role_url(owner_url, "k_reader") + "\n")
    given = start_program(
        "fetcher",
        "migrate",
        "--roles",
        database_url=owner_url,
        database_reader_url_file=tmp_path / "url",
        database_fetcher_url_file=tmp_path / "missing",
    )

    assert (code, given.wait(DEADLINE_S)) == (2, 0)
    assert "DATABASE_FETCHER_URL_FILE" in bare.last_message
    assert "reader: k_reader created" in given.output()
    assert json.dumps(given.output()).count("p@") == 0
