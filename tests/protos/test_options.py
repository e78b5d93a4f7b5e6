"""Every option of the channel exists in the library, and has its effect."""

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from broker.commands.connection import TIMEOUT_S as COMMAND_TIMEOUT_S
from broker.commands.connection import Target
from broker.commands.connection import connect as connected
from broker.core.limits import Limits
from protos.channel.access import Access
from protos.channel.options import CLIENT, PING_EVERY_MS, PING_TIMEOUT_MS, SERVER, Options
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from tests.fetcher.scripted_broker import RunningBroker, ScriptedBroker
from tests.fix_proxy import StartProxy

# A busy machine may be late by this; the defaults are minutes.
DEADLINE_S = 90.0
# Fast enough for a test, and far from the defaults of minutes.
QUICK_PINGS = {"grpc.keepalive_time_ms": 200, "grpc.http2.ping_timeout_ms": 400}
OFTEN = {"grpc.http2.min_ping_interval_without_data_ms": 50}
# HTTP/2: the client's preface, then an empty SETTINGS frame.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
MAX_CONCURRENT_STREAMS = 3

# The module itself has no stubs.
LIBRARY = Path(str(sys.modules["grpc._cython.cygrpc"].__file__))

Serve = Callable[..., RunningBroker]


def but(options: Options, changes: dict[str, int]) -> Options:
    """*options* with the values of *changes*."""
    return tuple({**dict(options), **changes}.items())


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a broker with the server's options but for some; its acquires wait for the end."""
    brokers: list[RunningBroker] = []
    over = threading.Event()

    def start(*, port: int = 0, waits: bool = True, **changes: int) -> RunningBroker:
        def wait(_request: object, context: grpc.ServicerContext) -> None:
            context.add_callback(over.set)
            over.wait(DEADLINE_S)

        servicer = ScriptedBroker(on_acquire=wait if waits else None)
        options = but(SERVER, changes)
        brokers.append(RunningBroker(servicer, port=port, options=options))
        return brokers[-1]

    yield start
    over.set()
    for broker in brokers:
        broker.stop()


def ended(address: str, options: Options = CLIENT) -> tuple[grpc.StatusCode, float]:
    """How, and after how many seconds, a wait in the broker at *address* ends."""
    began_s = time.monotonic()
    with grpc.insecure_channel(address, options=options) as channel:
        stub = pb_grpc.TokenBrokerServiceStub(channel)
        try:
            stub.AcquireLease(pb.AcquireLeaseRequest(), timeout=DEADLINE_S)
        except grpc.RpcError as exc:
            return exc.code(), time.monotonic() - began_s
    raise AssertionError("the wait was granted")


def closed(connection: socket.socket) -> float:
    """Seconds until the other end closes *connection*."""
    began_s = time.monotonic()
    connection.settimeout(DEADLINE_S)
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - began_s


def connect(broker: RunningBroker) -> socket.socket:
    """A bare TCP connection to *broker*."""
    return socket.create_connection(("127.0.0.1", broker.port), DEADLINE_S)


@pytest.mark.parametrize("name", sorted({name for name, _ in (*CLIENT, *SERVER)}))
def test_an_option_is_one_of_the_library(name: str) -> None:
    """GRPC accepts any name in silence; a name of its own is a C string in its binary."""
    library = LIBRARY.read_bytes()

    assert name.encode() + b"\0" in library


def test_the_library_has_no_wrong_name() -> None:
    """The option that was set instead of the right one for a year."""
    library = LIBRARY.read_bytes()

    assert b"grpc.http2.min_recv_ping_interval_without_data_ms\0" not in library


def test_a_silent_wait_is_not_thrown_out_for_its_pings(serve: Serve) -> None:
    """The client's pings are the broker's way to notice that it lives; none is too many."""
    broker = serve(**OFTEN)
    options = but(CLIENT, QUICK_PINGS)
    with grpc.insecure_channel(broker.address, options=options) as channel:
        call = pb_grpc.TokenBrokerServiceStub(channel).AcquireLease.future(
            pb.AcquireLeaseRequest(), timeout=3.0
        )

        with pytest.raises(grpc.RpcError) as caught:
            call.result()

    # GOAWAY too_many_pings would end it as UNAVAILABLE.
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("quiet_s", [0.0, 3.0], ids=["at once", "after many pings"])
def test_a_client_notices_a_dead_broker(
    serve: Serve, start_proxy: StartProxy, quiet_s: float
) -> None:
    """Also when nothing but pings has gone over the connection for long."""
    proxy = start_proxy(serve(**OFTEN).address)
    silence = threading.Timer(0.5 + quiet_s, lambda: setattr(proxy, "silent", True))
    silence.start()
    code, took_s = ended(proxy.address, but(CLIENT, QUICK_PINGS))

    assert code is grpc.StatusCode.UNAVAILABLE
    assert quiet_s < took_s < quiet_s + DEADLINE_S


@pytest.mark.parametrize("preface", [PREFACE], ids=["idle"])
def test_the_broker_notices_a_dead_client(serve: Serve, preface: bytes) -> None:
    """A peer that answers no ping is gone, with or without a call under way."""
    with connect(serve(**QUICK_PINGS)) as connection:
        connection.sendall(preface)

        assert closed(connection) < DEADLINE_S


def test_a_dead_peer_is_noticed_in_half_a_minute() -> None:
    """A ping goes out after the one time, and is awaited for the other."""
    for options in (dict(CLIENT), dict(SERVER)):
        assert options["grpc.keepalive_time_ms"] == PING_EVERY_MS
        assert options["grpc.http2.ping_timeout_ms"] == PING_TIMEOUT_MS

    assert PING_EVERY_MS + PING_TIMEOUT_MS <= 30_000


def test_a_slow_connection_is_made(serve: Serve, start_proxy: StartProxy) -> None:
    """Seconds of set-up delay a call; they don't prevent it."""
    proxy = start_proxy(serve(waits=False).address, delay_s=2.0)
    with Access().channel(proxy.address) as channel:
        stub = pb_grpc.TokenBrokerServiceStub(channel)
        bucket = stub.GetBucket(pb.GetBucketRequest(), timeout=DEADLINE_S).bucket

    assert bucket.balance == 33
    assert proxy.connections == 1


def test_a_broker_that_comes_back_is_found_within_a_second_or_two(serve: Serve) -> None:
    """A long time to connect does not mean long pauses between tries."""
    first = serve(waits=False)
    port = first.port
    with grpc.insecure_channel(first.address, options=CLIENT) as channel:
        stub = pb_grpc.TokenBrokerServiceStub(channel)
        stub.GetBucket(pb.GetBucketRequest(), timeout=DEADLINE_S)
        first.stop()
        # Long enough for the pauses to have grown to their most.
        give_up_s = time.monotonic() + 4
        while time.monotonic() < give_up_s:
            with pytest.raises(grpc.RpcError):
                stub.GetBucket(pb.GetBucketRequest(), timeout=DEADLINE_S)
        serve(port=port, waits=False)
        began_s = time.monotonic()
        stub.GetBucket(pb.GetBucketRequest(), timeout=DEADLINE_S, wait_for_ready=True)

    assert time.monotonic() - began_s < DEADLINE_S


def test_a_mute_connection_is_closed(serve: Serve) -> None:
    """A peer that connects and sends nothing keeps no place."""
    with connect(serve(**{"grpc.server_handshake_timeout_ms": 300})) as connection:
        assert closed(connection) < DEADLINE_S


def test_an_idle_connection_is_closed(serve: Serve) -> None:
    """A client without a call needs none."""
    broker = serve(waits=False, **{"grpc.max_connection_idle_ms": 500})
    states: list[grpc.ChannelConnectivity] = []
    idle = threading.Event()

    def note(state: grpc.ChannelConnectivity) -> None:
        states.append(state)
        if grpc.ChannelConnectivity.READY in states and state is grpc.ChannelConnectivity.IDLE:
            idle.set()

    with grpc.insecure_channel(broker.address, options=CLIENT) as channel:
        channel.subscribe(note)
        pb_grpc.TokenBrokerServiceStub(channel).GetBucket(pb.GetBucketRequest())

        assert idle.wait(DEADLINE_S)


def test_an_old_connection_ends_after_its_grace(serve: Serve) -> None:
    """Calls on it have the grace, and no more."""
    broker = serve(
        **{"grpc.max_connection_age_ms": 500, "grpc.max_connection_age_grace_ms": 1_500}
    )
    code, took_s = ended(broker.address)

    assert code is grpc.StatusCode.UNAVAILABLE
    assert 1.5 < took_s < DEADLINE_S


def test_one_connection_carries_a_limited_number_of_calls(serve: Serve) -> None:
    """The broker announces the limit in its first frame."""
    with connect(serve()) as connection:
        connection.sendall(PREFACE)
        frame = connection.recv(4096)
    length = int.from_bytes(frame[:3])
    body = frame[9 : 9 + length]
    entries = [body[at : at + 6] for at in range(0, length, 6)]
    settings = {int.from_bytes(e[:2]): int.from_bytes(e[2:]) for e in entries}

    assert settings[MAX_CONCURRENT_STREAMS] == dict(SERVER)["grpc.max_concurrent_streams"]
    # A holder that waits as often as it may can still settle, renew and withdraw.
    assert Limits().waits < settings[MAX_CONCURRENT_STREAMS] - 50


def test_a_port_belongs_to_one_broker(serve: Serve) -> None:
    """A second one on it would grant the same tokens."""
    port = serve().port
    with pytest.raises(RuntimeError, match="bind"):
        serve(port=port)


def test_clients_share_no_connection(serve: Serve, start_proxy: StartProxy) -> None:
    """Closing one must not touch another."""
    proxy = start_proxy(serve(waits=False).address)
    for _ in range(2):
        channel = grpc.insecure_channel(proxy.address, options=CLIENT)
        pb_grpc.TokenBrokerServiceStub(channel).GetBucket(pb.GetBucketRequest())

    assert proxy.connections == 2


def test_the_library_repeats_nothing_by_itself(serve: Serve) -> None:
    """Only the client can decide whether a call may be sent again."""
    broker = serve(waits=False)

    def fail(_request: object, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.UNAVAILABLE, "as told")

    broker.servicer.on_acquire = fail
    policy = {
        "maxAttempts": 4, "initialBackoff": "0.01s", "maxBackoff": "0.01s",
        "backoffMultiplier": 1, "retryableStatusCodes": ["UNAVAILABLE"],
    }  # fmt: skip
    config = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]})
    code, _ = ended(broker.address, (*CLIENT, ("grpc.service_config", config)))

    assert code is grpc.StatusCode.UNAVAILABLE
    assert len(broker.servicer.acquires) == 1


def test_a_command_reaches_the_broker_over_a_slow_connection(
    serve: Serve, start_proxy: StartProxy
) -> None:
    """It has five seconds for its question, and the connection may take most of them."""
    proxy = start_proxy(serve(waits=False).address, delay_s=1.5)
    with connected(Target(proxy.address)) as stub:
        bucket = stub.GetBucket(pb.GetBucketRequest(), timeout=COMMAND_TIMEOUT_S).bucket

    assert bucket.balance == 33
