"""What never left this machine is not charged, and is named by its cause and remedy."""

import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from pydantic import SecretStr

from broker.keepa_status import KeepaSync, KeepaSyncError
from fetcher.errors import KeepaUnavailableError
from fetcher.keepa import Keepa
from protos.process.proxies import Proxy
from tests.fetcher.test_keepa import KEY, Answer, assert_no_key, json_reply, serving

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
# A name that resolves nowhere, by RFC 6761.
NOWHERE = "keepa.invalid"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def closed_port() -> int:
    """A port of this machine where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def unsent(base_url: str, *, connect_timeout_s: float = 60) -> str:
    """Why a call to *base_url* was not sent, the same from fetcher and broker."""
    with (
        Keepa(KEY, base_url=base_url, connect_timeout_s=connect_timeout_s) as client,
        pytest.raises(KeepaUnavailableError) as caught,
    ):
        client.deals({"page": 0})
    assert_no_key(caught.value)
    assert not caught.value.sent
    sync = KeepaSync(base_url, SecretStr(KEY))
    with pytest.raises(KeepaSyncError) as probed:
        sync.ask()
    sync.close()
    assert_no_key(probed.value)
    return str(caught.value)


def test_a_refused_connection_names_its_server(closed_port: int) -> None:
    """Nothing listens there."""
    message = unsent(f"http://127.0.0.1:{closed_port}")

    assert f"127.0.0.1:{closed_port} refuses connections: check KEEPA_BASE_URL" in message


def test_an_unknown_name_is_explained() -> None:
    """A typo in the address, or no DNS."""
    assert "the name keepa.invalid can't be resolved" in unsent(f"https://{NOWHERE}")


def test_a_server_without_tls_is_explained() -> None:
    """Its plain answer is no handshake."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    thread = threading.Thread(target=serve, daemon=True)
    with listener:
        thread.start()
        message = unsent(f"https://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()

    assert "no TLS with 127.0.0.1" in message


@pytest.fixture
def tls_port(tmp_path: Path) -> Iterator[int]:
    """A server with a certificate that no one here trusts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
                context.wrap_socket(connection, server_side=True).close()
            except ssl.SSLError:
                continue
            except OSError:
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_an_untrusted_certificate_is_explained(tls_port: int) -> None:
    """A proxy that re-signs traffic looks like this."""
    message = unsent(f"https://127.0.0.1:{tls_port}")

    assert "is not trusted" in message
    assert "REQUESTS_CA_BUNDLE" in message


def test_a_handshake_without_an_answer_is_not_sent(silent: int) -> None:
    """The key leaves only after it."""
    assert unsent(f"https://127.0.0.1:{silent}", connect_timeout_s=0.5)


def test_a_missing_ca_bundle_is_explained(monkeypatch: pytest.MonkeyPatch, silent: int) -> None:
    """The library refuses before it connects."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem")

    assert "check REQUESTS_CA_BUNDLE" in unsent(f"https://127.0.0.1:{silent}")


@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY", "ALL_PROXY"])
def test_a_dead_proxy_is_named_without_its_password(
    variable: str, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    """The remedy is with the variable."""
    monkeypatch.setenv(variable, f"http://user:hush@127.0.0.1:{closed_port}")
    message = unsent(f"https://{NOWHERE}")

    assert f"{variable}=http://127.0.0.1:{closed_port}: the proxy refuses connections" in message
    assert f"unset {variable}, or put keepa.invalid into NO_PROXY" in message
    assert "hush" not in message


def no_way(connection: socket.socket) -> None:
    """Refuses a tunnel."""
    connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (no_way, "407 Proxy Authentication Required"),
        (lambda _: None, "can't connect to keepa.invalid"),
    ],
    ids=["refuses", "hangs up"],
)
def test_a_tunnel_that_is_refused_is_not_sent(
    answer: Answer, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request to a proxy holds no key."""
    with serving(answer) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.base_url)
        message = unsent(f"https://{NOWHERE}")
        told = repr(proxy.requests)

    assert cause in message
    assert told.startswith("[('CONNECT keepa.invalid:443")
    assert "nobody-may" not in told


@pytest.mark.parametrize("proxy", ["socks5h://127.0.0.1:1", "socks4://127.0.0.1:1"])
def test_socks_without_its_package_is_named(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library refuses the address before it connects."""
    monkeypatch.setenv("ALL_PROXY", proxy)

    assert f"ALL_PROXY={proxy}: SOCKS needs the package PySocks" in unsent(f"https://{NOWHERE}")


@pytest.mark.parametrize("proxy", ["http://", "http://[bad", "ftp://127.0.0.1:1", "http://a:b:c"])
def test_a_malformed_proxy_is_named(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever error the library has for it."""
    monkeypatch.setenv("HTTPS_PROXY", proxy)

    assert "HTTPS_PROXY=" in unsent(f"https://{NOWHERE}")


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
def test_the_key_never_travels_to_a_proxy_in_clear(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over plain http a proxy reads the whole request."""
    with serving(json_reply(200)) as proxy:
        monkeypatch.setenv(variable, proxy.base_url)
        message = unsent(f"http://{NOWHERE}")

    assert proxy.requests == []
    assert f"{variable}={proxy.base_url} is on the way" in message


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_this_machine_is_reached_without_a_proxy(
    variable: str, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    """The simulator of the local stack lives here."""
    monkeypatch.setenv(variable, f"http://127.0.0.1:{closed_port}")
    with (
        serving(json_reply(200)) as server,
        Keepa(KEY, base_url=server.base_url) as client,
    ):
        reply = client.deals({"page": 0})

    assert reply.envelope is not None


def test_no_proxy_opens_a_direct_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a name, a domain, or everything."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    found = []
    for exempt in ("keepa.invalid", ".invalid", "*", "example.com"):
        monkeypatch.setenv("NO_PROXY", exempt)
        found.append(Proxy.towards(f"https://{NOWHERE}") is None)

    assert found == [True, True, True, False]


def test_a_request_that_has_left_may_be_charged() -> None:
    """TLS that breaks after the request is no failed handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca = trustme.CA()
    ca.issue_cert("127.0.0.1").configure_cert(context)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, context.wrap_socket(connection, server_side=True) as secure:
            secure.recv(1 << 16)
            # Bytes that are no TLS record, past the encryption.
            os.write(secure.fileno(), b"garbage" * 10)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with (
        ca.cert_pem.tempfile() as bundle,
        pytest.MonkeyPatch.context() as patch,
        listener,
    ):
        patch.setenv("REQUESTS_CA_BUNDLE", bundle)
        base_url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with Keepa(KEY, base_url=base_url) as client, pytest.raises(KeepaUnavailableError) as got:
            client.deals({"page": 0})
        thread.join()

    assert got.value.sent
