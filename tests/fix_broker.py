"""Starts brokers and the other programs of the package as processes that end with their test."""

import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from deploy.local.errors import ProgramError
from deploy.local.ports import free_port
from deploy.local.program import Program, stop_together
from protos.channel.access import Access
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc

READY_TIMEOUT_S = 90.0
# Lines of a program's log that a failed test shows.
SHOWN_LINES = 40
# Set on a test that has failed in its setup or call.
FAILED = pytest.StashKey[bool]()
RPC_TIMEOUT_S = 60.0
# The developer's own settings must not leak into a test.
OWN_PREFIXES = (
    "KEEPA_",
    "BROKER_",
    "GATEWAY_",
    "MCP_",
    "DATABASE_",
    "SIMULATOR_",
    "LOG_",
    "OTEL_",
    "DATA_DIR",
    "QUERIES",
    "ALERT",
)
OWN_NAMES = ("RUN_SECONDS", "FETCHERS")

StartProgram = Callable[..., Program]
StartBroker = Callable[..., "RunningBroker"]


def environment(**settings: object) -> dict[str, str]:
    """This process's environment with only *settings*, in capitals, of the package's settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(OWN_PREFIXES) and name not in OWN_NAMES
    }
    ours = {name.upper(): str(value) for name, value in settings.items()}
    return {**kept, "PYTHONUNBUFFERED": "1", **ours}


class RunningBroker:
    """A broker process that a test can reach, stop, kill and start again.

    Args:
        program: The process.
        address: Where it serves gRPC, host:port.
        http_url: Where it serves metrics and health, without a trailing slash.
        access: The credentials with which the test connects.
        awaited: States in which it counts as started.
    """

    def __init__(
        self,
        program: Program,
        address: str,
        http_url: str,
        access: Access | None = None,
        awaited: Sequence[str] = ("serving",),
    ) -> None:
        self._awaited = {
            pb.BucketState.Value(f"BUCKET_STATE_{state.upper()}") for state in awaited
        }
        self.program = program
        self.address = address
        self.http_url = http_url
        self.access = access or Access()

    def bucket(self) -> pb.Bucket:
        """The bucket now. Raises grpc.RpcError if the broker doesn't answer."""
        with self.access.channel(self.address) as channel:
            stub = pb_grpc.TokenBrokerServiceStub(channel)
            return stub.GetBucket(pb.GetBucketRequest(), timeout=RPC_TIMEOUT_S).bucket

    def start(self) -> None:
        """Starts it, or starts it again on the same ports, and waits until it grants."""
        self.program.start()
        self.program.await_ready(self._is_serving, READY_TIMEOUT_S)

    def _is_serving(self) -> bool:
        try:
            return self.bucket().state in self._awaited
        except grpc.RpcError:
            return False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Lets fixtures see that their test has failed, so that they can show why."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@contextmanager
def starting_programs(folder: Path, programs: list[Program]) -> Iterator[StartProgram]:
    """A factory of programs that run in *folder*, are listed in *programs*, and end in the end."""

    def start(
        module: str, *arguments: str, name: str | None = None, **settings: object
    ) -> Program:
        name = name or f"{module}-{len(programs)}"
        program = Program(
            name,
            [sys.executable, "-m", module, *arguments],
            environment=environment(**settings),
            log_path=folder / f"{name}.log",
            folder=folder,
        )
        programs.append(program)
        return program.start()

    yield start
    stop_together(programs)


def show_if_failed(test: pytest.Item, programs: Iterable[Program]) -> None:
    """Prints the last lines of each program of a test that has failed."""
    if test.stash.get(FAILED, False):
        for program in programs:
            head = f"--- {program.name}: exit code {program.returncode}"
            lines = program.output().splitlines()[-SHOWN_LINES:]
            sys.stderr.write("\n".join([head, *lines, ""]))


@pytest.fixture
def start_program(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StartProgram]:
    """A factory: ``start_program("fetcher", "run", broker_address=…)`` runs ``-m fetcher run``.

    Keywords are settings; ``name`` names the program and its log. It runs in an empty
    folder, so that no ``.env`` is read.
    """
    programs: list[Program] = []
    with starting_programs(tmp_path, programs) as start:
        yield start
    show_if_failed(request.node, programs)


def launch_broker(
    keepa_base_url: str,
    keepa_api_key: str,
    *,
    folder: Path,
    name: str,
    access: Access | None = None,
    awaited: Sequence[str] = ("serving",),
    module: Sequence[str] = ("broker",),
    **settings: object,
) -> RunningBroker:
    """Starts a broker on free ports and waits until it grants; keywords are settings.

    *access* holds the credentials for a broker that needs some; *awaited* are the states
    in which it counts as started; *module* is what runs, with the arguments before `serve`.
    """
    address, http = (f"127.0.0.1:{free_port()}" for _ in range(2))
    given = {
        "broker_listen": address,
        "broker_http_listen": http,
        "keepa_base_url": keepa_base_url,
        "keepa_api_key": keepa_api_key,
        # No lease of an earlier broker can exist.
        "broker_recovery_grace_ms": 0,
        **settings,
    }
    program = Program(
        name,
        [sys.executable, "-m", *module, "serve"],
        environment=environment(**given),
        log_path=folder / f"{name}.log",
        folder=folder,
    )
    broker = RunningBroker(program, address, f"http://{http}", access, awaited)
    try:
        broker.start()
    except ProgramError:
        program.stop()
        raise
    return broker


@pytest.fixture
def start_broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StartBroker]:
    """A factory: ``start_broker(base_url, api_key, broker_floor_tokens=5, …)``.

    Further keywords are settings. Returns once the broker grants leases.
    """
    brokers: list[RunningBroker] = []

    def start(keepa_base_url: str, keepa_api_key: str, **settings: Any) -> RunningBroker:
        broker = launch_broker(
            keepa_base_url,
            keepa_api_key,
            folder=tmp_path,
            name=f"broker-{len(brokers)}",
            **settings,
        )
        brokers.append(broker)
        return broker

    yield start
    programs = [broker.program for broker in brokers]
    stop_together(programs)
    show_if_failed(request.node, programs)
