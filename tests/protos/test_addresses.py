"""Addresses to listen on."""

import socket

import pytest

from protos.process.addresses import Listen, ListenError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:50051", "127.0.0.1", 50051),
        ("localhost:0", "localhost", 0),
        ("[::1]:80", "::1", 80),
        (":9464", "0.0.0.0", 9464),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, host: str, port: int) -> None:
    """IPv6 hosts stand in brackets; without a host it is every interface."""
    assert Listen.parse(text) == Listen(host, port)


@pytest.mark.parametrize("text", ["", "50051", "host", "host:", "host:x", "::1:80", "h:65536"])
def test_anything_else_is_refused(text: str) -> None:
    """Rather than guessed at."""
    with pytest.raises(ValueError, match="must be host:port"):
        Listen.parse(text)


def test_text_and_address_say_the_same() -> None:
    """So that a logged address can be pasted into a setting."""
    texts = ["127.0.0.1:50051", "[::1]:80"]

    assert [str(Listen.parse(text)) for text in texts] == texts


def test_a_taken_port_is_told_with_the_setting_and_the_remedy() -> None:
    """Instead of a library's complaint."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(ListenError) as caught:
            Listen("127.0.0.1", port).check_free("BROKER_LISTEN")

    assert str(caught.value).startswith(f"BROKER_LISTEN: 127.0.0.1:{port} is taken; stop")


def test_an_address_of_another_machine_is_told() -> None:
    """A common mistake: the address that clients should use."""
    with pytest.raises(ListenError, match="is no address of this machine"):
        Listen("192.0.2.1", 0).check_free("BROKER_LISTEN")
