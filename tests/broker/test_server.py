"""The broker process: how it starts, what it serves, how it ends."""

import json
import os
import platform
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from broker.__main__ import main
from deploy.local.ports import free_port
from deploy.local.program import Program
from protos.channel.access import Access
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from tests.fix_broker import (
    RunningBroker,
    StartBroker,
    StartProgram,
    environment,
    launch_broker,
    show_if_failed,
)
from tests.fix_simulator import RunningSimulator, StartSimulator, launch_simulator
from tests.in_process import run_here
from tests.waiting import DEADLINE_S, wait_until

# Promised are 5 s, on a machine that has time for it.
STOP_S = 45.0
RSS_MAX_KIB = 90 * 1024
KEY = "thisisasecretkey0123456789"
SERVICE = "tokenbroker.v1.TokenBrokerService"


def read(url: str) -> tuple[int, str]:
    """Status and body; 0 while no process listens."""
    try:
        with urlopen(url, timeout=DEADLINE_S) as reply:
            return reply.status, reply.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def health(address: str, service: str) -> int:
    """The health service's answer for *service*."""
    with grpc.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        return int(stub.Check(request, timeout=DEADLINE_S).status)


def stop(program: Program, number: signal.Signals) -> tuple[int | None, float]:
    """Exit code and seconds until the end."""
    began = time.monotonic()
    os.kill(program.pid, number)
    wait_until(lambda: not program.running, f"{program.name} ends after {number.name}")
    return program.returncode, time.monotonic() - began


@pytest.fixture(scope="module")
def simulator() -> Iterator[RunningSimulator]:
    """A Keepa that won't tick during a test."""
    simulator = launch_simulator(rate=5, tick_seconds=3600, products=100, deals=10, api_key=KEY)
    yield simulator
    simulator.stop()


@pytest.fixture
def own_broker(simulator: RunningSimulator, start_broker: StartBroker) -> RunningBroker:
    """A broker that a test may end."""
    return start_broker(simulator.base_url, KEY)


@pytest.fixture(scope="module")
def broker(
    simulator: RunningSimulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningBroker]:
    """A broker that grants, and logs all it can; no test changes it."""
    broker = launch_broker(
        simulator.base_url,
        KEY,
        folder=tmp_path_factory.mktemp("broker"),
        name="broker",
        log_level="debug",
        log_format="json",
    )
    yield broker
    broker.program.stop()


@contextmanager
def parked(address: str, number: int) -> Iterator[list[grpc.StatusCode]]:
    """*number* requests that wait for more than there is; yields how they end."""
    codes: list[grpc.StatusCode] = []
    with ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(address))
        stub = pb_grpc.TokenBrokerServiceStub(channel)
        for index in range(number):
            request = pb.AcquireLeaseRequest(
                lease_id=str(index), holder="h", operation="deal", units=60, tokens_per_unit=5,
                priority=pb.PRIORITY_LOW,
            )  # fmt: skip
            call: Any = stub.AcquireLease.future(request)
            call.add_done_callback(lambda done: codes.append(done.code()))
        yield codes


def test_the_first_line_says_where_it_listens(broker: RunningBroker) -> None:
    """With everything that a person needs to find it, and without the key."""
    wait_until(lambda: "\n" in broker.program.output(), "the first line")
    first = json.loads(broker.program.output().splitlines()[0])

    assert first["event"] == "broker listening"
    assert first["grpc"] == broker.address
    assert f"http://{first['http']}" == broker.http_url
    assert re.fullmatch("[0-9a-f]{12}", first["key_fingerprint"])


def test_health_and_metrics_are_served(broker: RunningBroker) -> None:
    """For orchestrators over both protocols, and for Prometheus."""
    alive, _ = read(f"{broker.http_url}/livez")
    _, body = read(f"{broker.http_url}/healthz")
    ready, _ = read(f"{broker.http_url}/readyz")
    _, metrics = read(f"{broker.http_url}/metrics")

    assert (alive, ready) == (200, 200)
    assert json.loads(body)["synced"] is True
    assert json.loads(body)["keepa"]["trouble"] is None
    assert health(broker.address, "") == health_pb2.HealthCheckResponse.SERVING
    assert health(broker.address, SERVICE) == health_pb2.HealthCheckResponse.SERVING
    assert "tokenbroker_balance_tokens 300.0" in metrics
    assert 'tokenbroker_denials_total{reason="paused"} 0.0' in metrics
    assert 'tokenbroker_probes_total{reason="start"} 1.0' in metrics
    # The fixture has called it to see whether it serves.
    assert re.search(r'tokenbroker_rpcs_total\{code="OK",method="GetBucket"\} [1-9]', metrics)
    assert 'tokenbroker_rpc_seconds_count{method="GetBucket"}' in metrics
    assert f'tokenbroker_build_info{{python="{platform.python_version()}"' in metrics
    assert "tokenbroker_event_loop_lag_seconds_bucket" in metrics


@pytest.fixture
def held_broker(
    request: pytest.FixtureRequest, simulator: RunningSimulator, tmp_path: Path
) -> Iterator[RunningBroker]:
    """A broker that grants; its HTTP port loads once the file `released` exists."""
    broker = launch_broker(
        simulator.base_url, simulator.api_key, folder=tmp_path, name="held", log_format="json",
        module=("tests.broker.held_pages", str(tmp_path / "released")),
    )  # fmt: skip
    yield broker
    (tmp_path / "released").touch()
    broker.program.stop()
    show_if_failed(request.node, [broker.program])


def test_grants_come_before_the_libraries_of_the_http_port(
    held_broker: RunningBroker, tmp_path: Path
) -> None:
    """A request that comes before them waits, and is answered."""
    wait_until(lambda: '"held"' in held_broker.program.output(), "the port's module is wanted")
    held = next(
        json.loads(line) for line in held_broker.program.output().splitlines() if '"held"' in line
    )
    place = held_broker.http_url.removeprefix("http://").split(":")
    with socket.create_connection((place[0], int(place[1])), timeout=DEADLINE_S) as early:
        early.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with grpc.insecure_channel(held_broker.address) as channel:
            request = pb.AcquireLeaseRequest(
                lease_id="first", holder="h", operation="deal", units=1, tokens_per_unit=1,
                priority=pb.PRIORITY_HIGH,
            )  # fmt: skip
            stub = pb_grpc.TokenBrokerServiceStub(channel)
            answer = stub.AcquireLease(request, timeout=DEADLINE_S)
            early.setblocking(False)
            with pytest.raises(BlockingIOError):
                early.recv(1)
        early.settimeout(DEADLINE_S)
        (tmp_path / "released").touch()
        reply = early.recv(4096)

    assert answer.HasField("grant")
    assert "broker.server" in held["modules"]
    assert {"aiohttp", "jinja2"}.isdisjoint(held["modules"])
    assert reply.startswith(b"HTTP/1.1 200 OK")


def test_it_ends_in_order_while_they_load(held_broker: RunningBroker, tmp_path: Path) -> None:
    """All ends at once but the import, which can't be given up."""
    program = held_broker.program
    wait_until(lambda: '"held"' in program.output(), "the port's module is wanted")
    program.terminate()
    wait_until(lambda: "broker stopped" in program.output(), "the broker stops")
    (tmp_path / "released").touch()

    assert program.wait(DEADLINE_S) == 0
    assert program.output().splitlines()[-1].count("broker stopped") == 1


def test_a_port_that_fails_late_ends_the_broker(
    held_broker: RunningBroker, tmp_path: Path
) -> None:
    """In order, with one line: without metrics and health it would run unseen."""
    program = held_broker.program
    # Whole at once: the broker looks for it all the time.
    (tmp_path / "reason").write_text("BROKER_HTTP_LISTEN: no reply")
    (tmp_path / "reason").rename(tmp_path / "released")

    assert program.wait(DEADLINE_S) == 1
    assert "broker stopping" in program.output()
    assert program.output().splitlines()[-1] == "tokenbroker: BROKER_HTTP_LISTEN: no reply"


def test_it_is_small(broker: RunningBroker) -> None:
    """A process that only counts must fit anywhere."""
    status = Path(f"/proc/{broker.program.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)

    assert found is not None
    assert int(found.group(1)) < RSS_MAX_KIB


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_order(own_broker: RunningBroker, number: signal.Signals) -> None:
    """Waits end soon with UNAVAILABLE, and the exit code is 0."""
    with parked(own_broker.address, 50) as codes:
        # One of them gets all there is.
        wait_until(lambda: own_broker.bucket().waiting == 49, "all but one wait")
        code, took_s = stop(own_broker.program, number)
        wait_until(lambda: len(codes) == 50, "every request is answered")

    assert code == 0
    assert took_s < STOP_S
    assert codes.count(grpc.StatusCode.UNAVAILABLE) == 49


def test_a_second_broker_is_refused_the_port(
    broker: RunningBroker, start_program: StartProgram, simulator: RunningSimulator
) -> None:
    """Two on one port would each grant the same tokens."""
    second = start_program(
        "broker", "serve", name="second", keepa_api_key=KEY, keepa_base_url=simulator.base_url,
        broker_listen=broker.address, broker_http_listen="127.0.0.1:0",
    )  # fmt: skip
    wait_until(lambda: not second.running, "the second broker ends")

    output = second.output()

    assert second.returncode == 1
    assert output.count("\n") == 1
    assert f"BROKER_LISTEN: {broker.address} is taken" in output


def test_a_taken_http_port_is_told(start_program: StartProgram) -> None:
    """With the setting that would change it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        program = start_program(
            "broker", "serve", name="b", keepa_api_key=KEY, keepa_base_url="http://127.0.0.1:1",
            broker_listen="127.0.0.1:0", broker_http_listen=address,
        )  # fmt: skip
        wait_until(lambda: not program.running, "the broker ends")

    output = program.output()

    assert program.returncode == 1
    assert output.count("\n") == 1
    assert f"BROKER_HTTP_LISTEN: {address} is taken" in output


def test_a_missing_key_is_told(tmp_path: Path) -> None:
    """One line, and the exit code for wrong usage."""
    done = run_here(main, "tokenbroker", ("serve",), environment=environment(), folder=tmp_path)

    assert done.returncode == 2
    assert done.stderr.startswith("tokenbroker: KEEPA_API_KEY is not set")
    assert done.stderr.count("\n") == 1


def test_a_wrong_key_is_told_once(
    start_simulator: StartSimulator, start_program: StartProgram
) -> None:
    """The broker lives and retries; it is not ready, and every view shows why."""
    simulator = start_simulator(products=100, deals=10)
    http = f"http://127.0.0.1:{free_port()}"
    address = f"127.0.0.1:{free_port()}"
    program = start_program(
        "broker", "serve", name="b", keepa_api_key=KEY, keepa_base_url=simulator.base_url,
        broker_listen=address, broker_http_listen=http.removeprefix("http://"),
    )  # fmt: skip
    wait_until(lambda: read(f"{http}/healthz")[0] == 200, "the broker lives")
    wait_until(lambda: len(simulator.calls()) > 1, "Keepa is asked again")
    wait_until(lambda: "check KEEPA_API_KEY" in program.output(), "the trouble is logged")

    ready, _ = read(f"{http}/readyz")
    _, body = read(f"{http}/healthz")
    log = program.output()

    assert ready == 503
    assert json.loads(body)["keepa"]["trouble"]["failure"] == "key_invalid"
    assert health(address, "") == health_pb2.HealthCheckResponse.SERVING
    assert health(address, SERVICE) == health_pb2.HealthCheckResponse.NOT_SERVING
    assert log.count("check KEEPA_API_KEY") == 1
    assert KEY not in log + body


def test_a_broker_may_start_paused(
    simulator: RunningSimulator, start_program: StartProgram
) -> None:
    """Nothing is granted until an operator resumes; without the setting a restart resumes."""
    address = f"127.0.0.1:{free_port()}"
    start_program(
        "broker", "serve", name="b", keepa_api_key=simulator.api_key,
        keepa_base_url=simulator.base_url, broker_listen=address,
        broker_http_listen="127.0.0.1:0", broker_recovery_grace_ms=0, broker_start_paused="true",
    )  # fmt: skip
    with Access().channel(address) as channel:
        stub = pb_grpc.TokenBrokerServiceStub(channel)

        def state() -> int:
            try:
                return stub.GetBucket(pb.GetBucketRequest(), timeout=10).bucket.state
            except grpc.RpcError:
                return pb.BUCKET_STATE_UNSPECIFIED

        wait_until(lambda: state() == pb.BUCKET_STATE_PAUSED, "it is paused")
        stub.ResumeGrants(pb.ResumeGrantsRequest(), timeout=10)

        assert state() == pb.BUCKET_STATE_SERVING
