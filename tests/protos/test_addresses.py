"""Addresses to listen on."""

import socket
from concurrent import futures

import grpc
import pytest
import typer

from deploy.keepa_simulator.__main__ import _address as simulated
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


def test_others_see_a_machines_name_in_place_of_every_interface() -> None:
    """An address of all interfaces is none to connect to."""
    name = socket.gethostname()

    assert Listen.parse(":50051").as_seen_by_others == f"{name}:50051"
    assert Listen.parse("[::]:50051").as_seen_by_others == f"{name}:50051"
    assert Listen.parse("10.0.0.7:50051").as_seen_by_others == "10.0.0.7:50051"


@pytest.mark.parametrize("text", ["", "50051", "host", "host:", "host:x", "::1:80", "h:65536"])
def test_anything_else_is_refused(text: str) -> None:
    """Rather than guessed at."""
    with pytest.raises(ValueError, match="must be host:port"):
        Listen.parse(text)


def test_text_and_address_are_the_same() -> None:
    """So that a logged address can be pasted into a setting."""
    texts = ["127.0.0.1:50051", "[::1]:80"]

    assert [str(Listen.parse(text)) for text in texts] == texts


def test_a_taken_port_is_explained_with_the_setting_and_the_remedy() -> None:
    """Instead of a library's complaint."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(ListenError) as caught:
            Listen("127.0.0.1", port).check_free("BROKER_LISTEN")

    assert str(caught.value).startswith(f"BROKER_LISTEN: 127.0.0.1:{port} is taken; stop")


def test_an_address_of_another_machine_is_explained() -> None:
    """A common mistake: the address that clients should use."""
    with pytest.raises(ListenError, match="is no address of this machine"):
        Listen("192.0.2.1", 0).check_free("BROKER_LISTEN")


def connects(host: str, port: int) -> bool:
    """Whether something listens there."""
    try:
        socket.create_connection((host, port), 5).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("text", "reached"),
    [
        (":0", {"127.0.0.1", "::1"}),
        ("0.0.0.0:0", {"127.0.0.1", "::1"}),
        ("[::]:0", {"127.0.0.1", "::1"}),
        ("localhost:0", {"127.0.0.1", "::1"}),
        ("127.0.0.1:0", {"127.0.0.1"}),
        ("[::1]:0", {"::1"}),
    ],
)
def test_an_address_means_what_grpc_takes_it_for(text: str, reached: set[str]) -> None:
    """Every interface is IPv4 and IPv6, and a name is each of its addresses, on one port."""
    listen = Listen.parse(text)
    bound = listen.bind("BROKER_HTTP_LISTEN")
    port = bound[0].getsockname()[1]
    ours = {host for host in ("127.0.0.1", "::1") if connects(host, port)}
    for each in bound:
        each.close()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    grpc_port = server.add_insecure_port(listen.grpc_target)
    server.start()
    theirs = {host for host in ("127.0.0.1", "::1") if connects(host, grpc_port)}
    server.stop(0)
    here = {"127.0.0.1", "::1"} if socket.has_dualstack_ipv6() else {"127.0.0.1"}

    assert ours == theirs == reached & here


@pytest.mark.parametrize("text", ["", "8901", "host", "h:", "h:x", "::1:80", "h:65536", "[::1:8"])
def test_the_simulator_refuses_what_the_others_refuse(text: str) -> None:
    """It has a parser of its own, as it may import nothing of what it tests."""
    with pytest.raises(typer.BadParameter):
        simulated(text)
    with pytest.raises(ValueError, match="must be host:port"):
        Listen.parse(text)


@pytest.mark.parametrize("text", [":1", "0.0.0.0:1", "[::]:1", "localhost:1", "[::1]:1", "h:0"])
def test_the_simulator_takes_what_the_others_take(text: str) -> None:
    """And for the same."""
    listen = Listen.parse(text)

    assert simulated(text) == (listen.host, listen.port)
