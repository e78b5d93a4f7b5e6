"""`tokenbroker status` reads the environment without pydantic, and reads the same."""

import os
from pathlib import Path

import pytest

from protos.channel.access import Access
from protos.process.environment import SettingsError, broker_access
from protos.process.settings import ClientSettings

FILES = {
    "BROKER_TLS_CA_FILE": "ca.pem",
    "BROKER_TLS_CLIENT_CERT_FILE": "/certs/cert.pem",
    "BROKER_TLS_CLIENT_KEY_FILE": "key.pem",
    "BROKER_TLS_SERVER_NAME": "broker.example",
    "BROKER_TOKEN_FILE": "token",
}
ENVIRONMENTS: list[tuple[dict[str, str], bytes | None]] = [
    ({}, None),
    ({**FILES, "BROKER_ADDRESS": "a:1,b:2"}, None),
    ({"broker_address": "unix:/run/broker"}, None),
    ({"BROKER_ADDRESS": ""}, b"BROKER_ADDRESS=b:2\n"),
    ({"BROKER_ADDRESS": "a:1"}, b"BROKER_ADDRESS=b:2\nBROKER_TOKEN_FILE='a b'\n"),
    ({}, b"\xef\xbb\xbfBROKER_ADDRESS=b:2 # with a mark\nBROKER_TLS_CA_FILE=\nODD\n"),
    ({"HOST": "c"}, b"export BROKER_ADDRESS=${HOST}:3\n"),
    ({"BROKER_ADDRESS": "nowhere"}, None),
    ({"BROKER_ADDRESS": "a:1,b:0"}, None),
    ({"BROKER_ADDRESS": " a:1"}, None),
    ({}, "BROKER_ADDRESS=b:2".encode("utf-16")),
    ({}, b"BROKER_ADDRESS=\xff\n"),
]


def read_quickly() -> tuple[str, Access] | list[str]:
    """What the command reads, or its errors."""
    try:
        return broker_access()
    except SettingsError as exc:
        return exc.problems


def read_as_a_server() -> tuple[str, Access] | list[str]:
    """What the settings class reads."""
    try:
        settings = ClientSettings.load()
    except SettingsError as exc:
        return exc.problems
    return settings.broker_address, settings.access


@pytest.mark.parametrize(("variables", "env_file"), ENVIRONMENTS)
def test_both_ways_read_the_same(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variables: dict[str, str],
    env_file: bytes | None,
) -> None:
    """Values, precedence, empty ones, capitals, quotes, marks, and every error."""
    for name in list(os.environ):
        if name.upper() in {*FILES, "BROKER_ADDRESS", "HOST"}:
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    if env_file is not None:
        Path(".env").write_bytes(env_file)

    assert read_quickly() == read_as_a_server()


def test_a_folder_in_its_place_is_no_env_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both ways ignore it."""
    monkeypatch.delenv("BROKER_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    Path(".env").mkdir()

    assert read_quickly() == read_as_a_server()
