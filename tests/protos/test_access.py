"""How clients connect to the broker: files, tokens, and the error when one is wrong."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from protos.channel.access import Access, is_local
from protos.channel.credential_files import CredentialError
from tests.fix_certificates import Company

AWAY = "broker.example:50051"


def refusal(access: Access, address: str = "127.0.0.1:50051") -> str:
    """Why a channel can't be opened."""
    with pytest.raises(CredentialError) as caught:
        access.channel(address)
    return str(caught.value)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:1", "localhost:1", "[::1]:1", "dns:///localhost:1", "ipv4:127.0.0.1:1", "unix:/s"],
    ids=["v4", "name", "v6", "dns", "scheme", "unix"],
)
def test_addresses_of_this_machine_are_local(address: str) -> None:
    """In all the forms that gRPC takes."""
    assert is_local(address)


@pytest.mark.parametrize(
    "address",
    ["broker:1", "10.0.0.1:1", "dns:///broker.example:1", "localhost.evil:1", "127.0.0.1.evil:1"],
    ids=["name", "private", "dns", "prefix", "digits"],
)
def test_other_addresses_are_not_taken_for_local(address: str) -> None:
    """A token would be read on the way."""
    assert not is_local(address)


def test_a_token_does_not_leave_the_machine_in_plaintext(company: Company) -> None:
    """Not even to a network that passes for private."""
    token = company.token("carefree")
    said = refusal(Access(token_file=token), AWAY)

    assert "a token must not travel to broker.example:50051 in plaintext" in said
    assert "set BROKER_TLS_CA_FILE" in said
    assert token.read_text().strip() not in said


def test_wrong_files_are_named_with_their_setting(company: Company, tmp_path: Path) -> None:
    """In one line, without anything of what is in them."""
    one, two = company.issue("one"), company.issue("two")
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.touch()
    binary.write_bytes(bytes(range(128, 256)))
    missing = tmp_path / "missing"
    said = [
        refusal(Access(ca_file=missing)),
        refusal(Access(ca_file=binary)),
        refusal(Access(company.ca, one.cert)),
        refusal(Access(cert_file=one.cert, key_file=one.key)),
        refusal(Access(server_name="broker")),
        refusal(Access(company.ca, one.cert, two.key)),
        refusal(Access(company.ca, token_file=empty)),
        refusal(Access(company.ca, token_file=binary)),
    ]

    assert [line.partition(":")[0] for line in said] == [
        "BROKER_TLS_CA_FILE",
        "BROKER_TLS_CA_FILE",
        "BROKER_TLS_CLIENT_CERT_FILE and BROKER_TLS_CLIENT_KEY_FILE belong together",
        "BROKER_TLS_CLIENT_CERT_FILE is for TLS",
        "BROKER_TLS_SERVER_NAME is for TLS",
        "BROKER_TLS_CLIENT_CERT_FILE and BROKER_TLS_CLIENT_KEY_FILE",
        "BROKER_TOKEN_FILE",
        "BROKER_TOKEN_FILE",
    ]
    assert not any("\n" in line or "PRIVATE" in line for line in said)


def test_keys_and_tokens_do_not_show(company: Company) -> None:
    """Printing what was read shows no secret."""
    pair = company.issue("shy")
    access = company.access(pair, company.token("shy"))

    assert "PRIVATE" not in repr(access) + repr(access.read())


def test_trouble_without_tls_is_empty() -> None:
    """A broker that is merely away is no question of certificates."""
    refused = "failed to connect to all addresses; last error: Connection refused"

    assert [Access().trouble(text) for text in (refused, "", None)] == [""] * 3


def test_another_name_can_be_expected_in_the_certificate(company: Company) -> None:
    """For brokers that are reached by an address that no certificate names."""
    access = Access(company.ca, server_name="broker.example")
    with access.channel(AWAY) as channel:
        opened = isinstance(channel, grpc.Channel)

    assert opened


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_channel_to_this_machine_passes_by_every_proxy(
    variable: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy elsewhere can't reach a broker on this machine's loopback interface."""
    monkeypatch.delenv("no_proxy", raising=False)
    # A reserved port: a channel that took the proxy would never be ready.
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Access().channel(f"{host}:{port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=20)
    finally:
        server.stop(None)
