"""A whole stack with mutual TLS, from the script's certificates to deals in Postgres."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local.ports import free_port
from deploy.local.program import Program
from tests.e2e.collection import stored_deals
from tests.fix_broker import StartProgram, environment
from tests.fix_simulator import StartSimulator
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy/tls/make-certificates.sh"
KEY = "k3y" + "0f1e2d3c4b5a6978" * 4

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl is missing: make-certificates.sh needs it"
)


def make_certificates(folder: Path) -> None:
    """Runs the script; a second run renews the certificates in *folder*."""
    subprocess.run([SCRIPT, folder], check=True, capture_output=True, timeout=30)


def server_settings(folder: Path) -> dict[str, object]:
    """The broker's settings."""
    return {
        "broker_tls_cert_file": folder / "broker.crt",
        "broker_tls_key_file": folder / "broker.key",
        "broker_tls_client_ca_file": folder / "ca.crt",
        "broker_identities_file": folder / "identities.toml",
    }


def client_settings(folder: Path, name: str) -> dict[str, object]:
    """The settings of the client *name*."""
    return {
        "broker_tls_ca_file": folder / "ca.crt",
        "broker_tls_client_cert_file": folder / f"{name}.crt",
        "broker_tls_client_key_file": folder / f"{name}.key",
    }


def operate(command: str, name: str, folder: Path, address: str) -> tuple[int, str]:
    """Exit code and output of a `tokenbroker` command of the client *name*."""
    done = subprocess.run(
        [sys.executable, "-m", "broker", command, "--address", address],
        env=environment(**client_settings(folder, name)),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def has_read(stack: Program, pages: int) -> bool:
    """Whether the fetchers have logged so many pages."""
    return stack.output().count("page read") >= pages


def test_a_stack_with_mutual_tls_collects_deals(
    start_simulator: StartSimulator,
    start_program: StartProgram,
    empty_database_url: str,
    tmp_path: Path,
) -> None:
    """Fetchers, operator and viewer work before and after the certificates are renewed."""
    folder = tmp_path / "certificates"
    make_certificates(folder)
    simulator = start_simulator(
        api_key=KEY, rate=20, tick_seconds=1, cache_seconds=1, deal_speed=60
    )
    address = f"127.0.0.1:{free_port()}"
    stack = start_program(
        "deploy.local",
        broker_listen=address,
        broker_http_listen="127.0.0.1:0",
        gateway_listen="127.0.0.1:0",
        gateway_http_listen="127.0.0.1:0",
        console_listen="127.0.0.1:0",
        keepa_base_url=simulator.base_url,
        keepa_api_key=KEY,
        database_url=empty_database_url,
        queries=ROOT / "deploy/queries",
        data_dir=tmp_path / "data",
        fetchers=2,
        poll_speed=60,
        **server_settings(folder),
        **client_settings(folder, "fetcher"),
    )
    wait_until(lambda: has_read(stack, 1), "a page that was read")
    before = {path: path.read_bytes() for path in folder.glob("*.crt")}
    make_certificates(folder)
    done = {
        name: [operate(command, name, folder, address) for command in ("status", "sync")]
        for name in ("operator", "viewer")
    }
    wait_until(lambda: has_read(stack, 3), "pages read after the renewal")
    stack.stop()
    output = stack.output()
    keys = [line for path in folder.glob("*.key") for line in path.read_text().splitlines()[1:-1]]

    assert stack.returncode == 0, output
    assert stored_deals(empty_database_url) == simulator.served_deals() != {}
    assert all(before[path] != path.read_bytes() for path in before if path.stem != "ca")
    assert [code for code, _ in done["operator"]] == [0, 0]
    assert [code for code, _ in done["viewer"]] == [0, 1]
    assert "viewers has the role viewer, but SyncBucket needs operator" in done["viewer"][1][1]
    assert [line for line in keys if line in output] == []


def test_a_stack_names_a_wrong_certificate_at_once(tmp_path: Path) -> None:
    """One line names the setting, the exit code is 2, and nothing starts."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy.local"],
        env=environment(
            broker_listen="127.0.0.1:0",
            broker_http_listen="127.0.0.1:0",
            gateway_listen="127.0.0.1:0",
            gateway_http_listen="127.0.0.1:0",
            console_listen="127.0.0.1:0",
            queries=ROOT / "deploy/queries",
            data_dir=tmp_path / "data",
            broker_tls_ca_file=tmp_path / "missing.crt",
        ),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"BROKER_TLS_CA_FILE: {tmp_path}/missing.crt can't be read ({os.strerror(2)})"
    ]
