"""Every command in every broken state: one clear line, an exit code, no secret, no traceback.

The applications list their commands, so the walk includes new ones.
"""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

import broker.__main__ as tokenbroker
import fetcher.__main__ as dealfetcher
from deploy.local.ports import free_port
from deploy.local.postgres import PostgresServer
from tests.e2e.walk import Ending, Step, leaves, walk
from tests.fix_fetcher import StartWorld, World

# These run until they are stopped, so each gets a process of its own.
LASTING = {"run", "metrics", "serve", "console", "alert"}
# These read the journal themselves, not through a broker.
OF_JOURNAL = {"audit", "migrate"}

# States of the database that matter to `run`, and those that matter to `metrics`.
OUTLIVED = ("no server", "wrong password", "no rights", "no tables", "read-only", "SQL_ASCII")
MEASURED = ("no server", "no tables", "SQL_ASCII")

PASSWORD, WRONG_PASSWORD, KEY = "passwordcore4711", "anothercore4711", "k3ycore0123456789"
SECRETS = {"the password": PASSWORD, "a wrong password": WRONG_PASSWORD, "a wrong key": KEY}
LATIN1 = "KEEPA_API_KEY=Schlüssel".encode("latin-1")


@dataclass(frozen=True, slots=True)
class Broken:
    """A broken state, and a word of the remedy that each affected command must name.

    Attributes:
        all_fail: Whether each command that uses the broken part fails; a read-only
            database still serves those that read.
    """

    settings: Mapping[str, object]
    word: str
    all_fail: bool = True


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """An empty working folder, so no command reads a stray `.env`."""
    with tempfile.TemporaryDirectory(prefix="walk-") as name:
        yield Path(name)


@pytest.fixture
def world(start_world: StartWorld) -> World:
    """The settings of a world without faults."""
    world = start_world()
    world.write_query("used")
    return world


@pytest.fixture
def databases(postgres_server: PostgresServer, database_url: str) -> Iterator[dict[str, Broken]]:
    """Databases in each broken state."""
    nowhere = f"postgresql://u:{PASSWORD}@127.0.0.1:{free_port()}/deals"
    locked = make_url(database_url, f"walker:{WRONG_PASSWORD}")
    with (
        asking_for_passwords(postgres_server, "walker"),
        psycopg.connect(database_url, autocommit=True) as connection,
    ):
        connection.execute(f"CREATE ROLE walker LOGIN PASSWORD '{PASSWORD}'")
        connection.execute("CREATE DATABASE walk_empty TEMPLATE template1")
        connection.execute(
            "CREATE DATABASE walk_ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0"
        )
        connection.execute(
            "CREATE DATABASE walk_latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
        )
        read_only = f"{database_url}?options=-c%20default_transaction_read_only%3Don"
        states = {
            "no server": Broken({"database_url": nowhere}, "DATABASE_URL"),
            "no such host": Broken(
                {"database_url": f"postgresql://u:{PASSWORD}@no-such-host.invalid/deals"},
                "correct the host",
            ),
            "no such database": Broken(
                {"database_url": postgres_server.url("nowhere")}, "create it"
            ),
            "wrong password": Broken({"database_url": locked}, "correct the password"),
            "no password": Broken(
                {"database_url": make_url(database_url, "walker")}, "put the password"
            ),
            "no rights": Broken(
                {"database_url": make_url(database_url, f"walker:{PASSWORD}")}, "grant"
            ),
            "no tables": Broken(
                {"database_url": postgres_server.url("walk_empty")}, "dealfetcher migrate"
            ),
            "read-only": Broken({"database_url": read_only}, "read-only", all_fail=False),
            "SQL_ASCII": Broken({"database_url": postgres_server.url("walk_ascii")}, "UTF8"),
            "LATIN1": Broken({"database_url": postgres_server.url("walk_latin")}, "UTF8"),
        }
        try:
            yield states
        finally:
            for name in ("walk_empty", "walk_ascii", "walk_latin"):
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
            connection.execute("DROP ROLE walker")


def make_url(database_url: str, user: str) -> str:
    """*database_url* for another *user*, optionally with a password."""
    return database_url.replace("//postgres@", f"//{user}@")


class asking_for_passwords:  # noqa: N801 - reads as what it does
    """In the block, the server requires a password of *role*; it trusts all others."""

    def __init__(self, server: PostgresServer, role: str) -> None:
        self._server, self._role = server, role
        self._file = server.data_dir / "pg_hba.conf"
        self._before = self._file.read_text()

    def __enter__(self) -> None:
        self._write(f"host all {self._role} 127.0.0.1/32 scram-sha-256\n{self._before}")

    def __exit__(self, *_: object) -> None:
        self._write(self._before)

    def _write(self, text: str) -> None:
        self._file.write_text(text)
        with psycopg.connect(self._server.url(), autocommit=True) as connection:
            connection.execute("SELECT pg_reload_conf()")


def unreadable(folder: Path) -> dict[str, Broken]:
    """Settings that name a missing file, or a file that is no text."""
    missing, binary = folder / "missing", folder / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    return {
        "key file": Broken(
            {"keepa_api_key": "", "keepa_api_key_file": binary}, "KEEPA_API_KEY_FILE"
        ),
        "URL file": Broken(
            {"database_url": "", "database_url_file": missing}, "DATABASE_URL_FILE"
        ),
        "token file": Broken({"broker_token_file": missing}, "BROKER_TOKEN_FILE"),
        "CA file": Broken({"broker_tls_ca_file": binary}, "BROKER_TLS_CA_FILE"),
        "queries": Broken({"queries": missing}, "QUERIES"),
    }


def step(
    module: str, words: list[str], folder: Path, settings: Mapping[str, object], until: str = ""
) -> Step:
    """A step of the walk."""
    texts = {name: str(value) for name, value in settings.items()}
    return Step(f"{module}.__main__", words, str(folder), texts, until)


def fetcher_commands() -> list[list[str]]:
    """The `dealfetcher` commands that end by themselves."""
    return [words for words in leaves(dealfetcher.app) if words[0] not in LASTING]


def walk_fetcher(
    states: Mapping[str, tuple[Path, Mapping[str, object]]],
) -> dict[str, dict[str, Ending]]:
    """The ending of each `dealfetcher` command in each state; migrations come last."""
    commands = fetcher_commands()
    others = [words for words in commands if words != ["migrate"]]
    endings: dict[str, dict[str, Ending]] = {state: {} for state in states}
    for group in (others, [["migrate"]]):
        steps = {
            f"{state}|{' '.join(words)}": step("fetcher", words, *place)
            for state, place in states.items()
            for words in group
        }
        for name, ending in walk(steps).items():
            state, _, command = name.partition("|")
            endings[state][command] = ending
    return endings


def faults_of(endings: Mapping[str, Ending]) -> list[str]:
    """Forbidden behaviour in *endings*."""
    return [
        f"{name}: {fault}" for name, ending in endings.items() for fault in ending.faults(SECRETS)
    ]


def flat(endings: Mapping[str, Mapping[str, Ending]]) -> dict[str, Ending]:
    """One mapping instead of one for each state."""
    return {
        f"{state}: {name}": ending
        for state, walked in endings.items()
        for name, ending in walked.items()
    }


def test_commands_without_a_usable_database(
    world: World, databases: dict[str, Broken], folder: Path
) -> None:
    """Each command that needs Postgres names the remedy, and so does doctor."""
    endings = walk_fetcher(
        {state: (folder, world.settings(**broken.settings)) for state, broken in databases.items()}
    )
    # Without channels there is nothing to test.
    users = {
        name
        for name, ending in endings["no server"].items()
        if ending.code and "ALERTS_FILE" not in ending.text
    }
    silent = [
        f"{state}: {name}: {endings[state][name].text}"
        for state, broken in databases.items()
        for name in users
        if broken.all_fail and (state, name) != ("no tables", "migrate")
        if not endings[state][name].code
        or broken.word.lower() not in endings[state][name].text.lower()
    ]

    assert faults_of(flat(endings)) == []
    assert silent == []
    assert len(users) > 5
    assert "read-only" in endings["read-only"]["pages requeue"].stderr
    assert "read-only" in endings["read-only"]["doctor"].stdout
    assert endings["no tables"]["migrate"].code == 0


def test_commands_without_a_broker_a_key_or_readable_files(world: World, folder: Path) -> None:
    """Each one that fails names the setting; each part has a command that needs it."""
    folder_with_env = folder / "env"
    folder_with_env.mkdir()
    (folder_with_env / ".env").write_bytes(LATIN1)
    states = {
        "no broker": Broken({"broker_address": f"127.0.0.1:{free_port()}"}, "BROKER_ADDRESS"),
        "wrong key": Broken({"keepa_api_key": KEY}, "KEEPA_API_KEY"),
        "no Keepa": Broken({"keepa_base_url": f"http://127.0.0.1:{free_port()}"}, "Keepa"),
        **unreadable(folder),
    }
    endings = walk_fetcher(
        {state: (folder, world.settings(**broken.settings)) for state, broken in states.items()}
        | {"no .env": (folder_with_env, world.settings())}
    )
    unnamed = [
        state
        for state, broken in states.items()
        if not any(
            ending.code and broken.word in ending.text for ending in endings[state].values()
        )
    ]
    unexplained = [
        f"{state}: {endings[state]['doctor'].text}"
        for state, broken in states.items()
        if broken.word not in endings[state]["doctor"].text
    ]

    assert faults_of(flat(endings)) == []
    assert unnamed == []
    assert unexplained == []
    assert {ending.code for ending in endings["no .env"].values()} == {2}
    assert all(".env" in ending.stderr for ending in endings["no .env"].values())


def test_lasting_commands_wait_in_a_clear_line_and_stop_on_a_signal(
    world: World, databases: dict[str, Broken], folder: Path
) -> None:
    """`run` and `metrics` outlive a broken database; a permanent fault ends them."""
    states = {
        **{state: databases[state] for state in OUTLIVED},
        "no broker": Broken({"broker_address": f"127.0.0.1:{free_port()}"}, "no broker answers"),
        "wrong key": Broken({"keepa_api_key": KEY}, "KEEPA_API_KEY"),
        "no key": Broken({"keepa_api_key": ""}, "KEEPA_API_KEY"),
    }
    steps = {
        f"{state}: {name}": step(
            "fetcher",
            [name],
            folder,
            world.settings(
                claim_ttl_s=1, metrics_listen=f"127.0.0.1:{free_port()}", **broken.settings
            ),
            until=broken.word,
        )
        for state, broken in states.items()
        for name in (("run", "metrics") if state in MEASURED else ("run",))
    }
    endings = walk(steps)
    silent = [
        f"{name}: {ending.text[-500:]}"
        for name, ending in endings.items()
        if steps[name].until not in ending.text
    ]
    ended = {name: ending.code for name, ending in endings.items() if ending.code}

    assert faults_of(endings) == []
    assert silent == []
    assert ended == {"wrong key: run": 1, "no key: run": 2}


def test_the_brokers_commands(world: World, folder: Path) -> None:
    """Commands without a broker, with unusable files, or with malformed addresses."""
    missing = folder / "missing"
    address = {"broker_address": world.broker.address}
    states = {
        "no broker": Broken({"broker_address": f"127.0.0.1:{free_port()}"}, "BROKER_ADDRESS"),
        "no address": Broken({"broker_address": "nowhere"}, "BROKER_ADDRESS"),
        "no token": Broken({**address, "broker_token_file": missing}, "BROKER_TOKEN_FILE"),
        "no CA": Broken({**address, "broker_tls_ca_file": missing}, "BROKER_TLS_CA_FILE"),
        "no PEM": Broken({**address, "broker_tls_ca_file": __file__}, "BROKER_TLS_CA_FILE"),
    }
    endings = walk(
        {
            f"{state}: {' '.join(words)}": step("broker", words, folder, broken.settings)
            for state, broken in states.items()
            for words in leaves(tokenbroker.app)
            if words[0] not in LASTING | OF_JOURNAL
        },
        processes=1,
    )
    silent = [
        f"{name}: {ending.text}"
        for name, ending in endings.items()
        if not ending.code or states[name.partition(":")[0]].word not in ending.stderr
    ]

    assert faults_of(endings) == []
    assert silent == []


def test_a_broker_that_can_not_serve_names_its_setting(world: World, folder: Path) -> None:
    """The broker names each wrong file and each wrong address by its setting."""
    missing, binary = folder / "missing", folder / "nothing"
    binary.write_bytes(b"\xff\xfe\x00")
    base = {
        "keepa_api_key": KEY,
        "keepa_base_url": world.simulator.base_url,
        "broker_listen": f"127.0.0.1:{free_port()}",
        "broker_http_listen": f"127.0.0.1:{free_port()}",
    }
    wrong: dict[str, Mapping[str, object]] = {
        "KEEPA_API_KEY ": {"keepa_api_key": ""},
        "KEEPA_API_KEY_FILE": {"keepa_api_key": "", "keepa_api_key_file": binary},
        "BROKER_BUDGETS_FILE": {"broker_budgets_file": binary},
        "BROKER_IDENTITIES_FILE": {"broker_identities_file": binary},
        "BROKER_TLS_CERT_FILE": {
            "broker_tls_cert_file": missing,
            "broker_tls_key_file": binary,
        },
        "BROKER_LISTEN": {"broker_listen": world.broker.address},
        "BROKER_HTTP_LISTEN": {"broker_http_listen": world.broker.address},
    }
    endings = walk(
        {
            word: step("broker", ["serve"], folder, {**base, **settings}, until=word)
            for word, settings in wrong.items()
        },
        processes=1,
    )

    assert faults_of(endings) == []
    assert [word for word, ending in endings.items() if word not in ending.text] == []
    assert [word for word, ending in endings.items() if not ending.code] == []


def test_the_simulators_commands(databases: dict[str, Broken], folder: Path) -> None:
    """The audit needs simulator or journal and a database; a server needs a free port."""
    nowhere = f"127.0.0.1:{free_port()}"
    journal, binary = folder / "journal.jsonl", folder / "noise"
    journal.write_text("")
    binary.write_bytes(b"\xff\xfe\x00")
    good = databases["no tables"].settings
    module = "deploy.keepa_simulator"
    steps = {
        state: step(module, ["audit", "--journal", str(journal)], folder, broken.settings)
        for state, broken in databases.items()
        if broken.all_fail
    } | {
        name: step(module, words, folder, good)
        for name, words in {
            "no simulator": ["audit", "--simulator-url", f"http://{nowhere}"],
            "no journal": ["audit", "--journal", str(folder / "none")],
            "no text": ["audit", "--journal", str(binary)],
            "neither": ["audit"],
            "no address": ["serve", "--listen", "nowhere"],
            "no such address": ["serve", "--listen", "192.0.2.1:80"],
            "no fault": ["serve", "--fault", "nonsense"],
            "no folder": ["serve", "--listen", nowhere, "--journal", "/nonexistent/x"],
        }.items()
    }
    endings = walk(steps, processes=1)

    assert faults_of(endings) == []
    assert [state for state, ending in endings.items() if not ending.stderr.strip()] == []
