"""Messages and exit codes of commands that the broker rejects."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import broker.__main__ as tokenbroker
import fetcher.__main__ as dealfetcher
from deploy.local.ports import free_port
from tests.fix_broker import RunningBroker, environment, launch_broker
from tests.fix_certificates import Company, table
from tests.fix_simulator import RunningSimulator
from tests.in_process import run_here

ROOT = Path(__file__).parents[2]
MAINS = {"broker": tokenbroker.main, "fetcher": dealfetcher.main}


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Company:
    """The issuer of the broker's certificates and tokens."""
    return Company(tmp_path_factory.mktemp("office"))


@pytest.fixture(scope="module")
def broker(
    simulator: RunningSimulator, office: Company, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningBroker]:
    """A broker with TLS and a viewer's token."""
    server, token = office.issue("broker", "127.0.0.1"), office.token("viewer")
    broker = launch_broker(
        simulator.base_url,
        simulator.api_key,
        folder=tmp_path_factory.mktemp("broker"),
        name="broker",
        access=office.access(token=token),
        broker_tls_cert_file=server.cert,
        broker_tls_key_file=server.key,
        broker_identities_file=office.identities(
            [table("viewers", "viewer", token=token.read_text())]
        ),
    )
    yield broker
    broker.program.stop()


def run(command: str, folder: Path, **settings: object) -> tuple[int, str]:
    """Exit code and error output of a command such as "broker status"."""
    program, *words = command.split()
    given = environment(queries=ROOT / "deploy/queries", **settings)
    done = run_here(MAINS[program], program, tuple(words), environment=given, folder=folder)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("broker pause", "viewers has the role viewer, but PauseGrants needs operator"),
        ("fetcher verify-sort", "viewers has the role viewer, but AcquireLease needs fetcher"),
    ],
    ids=["operator", "fetcher"],
)
def test_a_wrong_role_ends_a_command(
    broker: RunningBroker, simulator: RunningSimulator, office: Company, tmp_path: Path,
    command: str, message: str,
) -> None:  # fmt: skip
    """The command exits 1 at once, with one line that names the remedy."""
    code, output = run(
        command,
        tmp_path,
        broker_address=broker.address,
        broker_tls_ca_file=office.ca,
        broker_token_file=office.token("viewer"),
        keepa_api_key=simulator.api_key,
        keepa_base_url=simulator.base_url,
    )

    assert code == 1
    assert message in output
    assert output.count("\n") == 1


def test_a_wrong_token_is_not_shown(
    broker: RunningBroker, office: Company, tmp_path: Path
) -> None:
    """The line names the token's source instead."""
    stranger = office.token("stranger")
    code, output = run(
        "broker status",
        tmp_path,
        broker_address=broker.address,
        broker_tls_ca_file=office.ca,
        broker_token_file=stranger,
    )

    assert code == 1
    assert "has no such token: check BROKER_TOKEN_FILE" in output
    assert stranger.read_text().strip() not in output
    assert output.count("\n") == 1


def test_a_failed_handshake_is_explained_in_one_line(
    broker: RunningBroker, tmp_path: Path
) -> None:
    """The lines of gRPC's core do not appear beside it."""
    strangers = Company(tmp_path / "strangers")
    plain = run("broker status", tmp_path, broker_address=broker.address)
    distrust = run(
        "broker status", tmp_path, broker_address=broker.address, broker_tls_ca_file=strangers.ca
    )

    assert [code for code, _ in (plain, distrust)] == [1, 1]
    assert "if it uses TLS, set BROKER_TLS_CA_FILE" in plain[1]
    assert "not from the CA in BROKER_TLS_CA_FILE" in distrust[1]
    assert [output.count("\n") for _, output in (plain, distrust)] == [1, 1]


@pytest.mark.parametrize(
    ("command", "setting"),
    [
        ("broker serve", "BROKER_TLS_CERT_FILE"),
        ("broker serve", "BROKER_IDENTITIES_FILE"),
        ("broker status", "BROKER_TLS_CA_FILE"),
        ("broker status", "BROKER_TOKEN_FILE"),
        ("fetcher run", "BROKER_TLS_CA_FILE"),
        ("fetcher run", "BROKER_TOKEN_FILE"),
    ],
)
def test_a_missing_file_is_a_wrong_setting(command: str, setting: str, tmp_path: Path) -> None:
    """One line names the file, and the exit code is 2."""
    missing = tmp_path / "missing"
    code, output = run(
        command,
        tmp_path,
        keepa_api_key="k" * 64,
        broker_listen=f"127.0.0.1:{free_port()}",
        broker_http_listen=f"127.0.0.1:{free_port()}",
        database_url="postgresql://127.0.0.1:1/deals",
        **{setting.lower(): missing},
        **({"broker_tls_key_file": missing} if "CERT" in setting else {}),
    )

    assert code == 2
    assert f"{setting}: {missing} can't be read (No such file or directory)" in output
    assert output.count("\n") == 1


def test_a_token_in_plaintext_to_another_machine_is_a_wrong_setting(
    office: Company, tmp_path: Path
) -> None:
    """The command refuses it before it sends anything."""
    token = office.token("careless")
    endings = [
        run(command, tmp_path, broker_address="broker.example:50051", broker_token_file=token,
            keepa_api_key="k" * 64, database_url="postgresql://127.0.0.1:1/deals")
        for command in ("broker status", "fetcher run")
    ]  # fmt: skip

    assert [code for code, _ in endings] == [2, 2]
    assert all(
        "must not travel to broker.example:50051 in plaintext" in output for _, output in endings
    )
