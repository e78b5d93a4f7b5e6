"""A program that forks: its client belongs to the parent, and raises in the child."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fetcher.broker_client.errors import ForkedError
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from tests.fetcher.scripted_broker import RunningBroker, ScriptedBroker

ROOT = Path(__file__).parents[3]
REFUSAL = str(ForkedError())
TRIES = 5


@pytest.fixture
def broker() -> Iterator[RunningBroker]:
    """Grants leases of a second."""
    running = RunningBroker(ScriptedBroker(ttl_s=1.0))
    yield running
    running.stop()


def run(module: str, broker: RunningBroker, **environment: str) -> dict[str, str]:
    """What a program of this folder prints, by the word before the colon."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.fetcher.broker_client.{module}", broker.address],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


def test_a_fork_leaves_the_client_to_the_parent(broker: RunningBroker) -> None:
    """The child is refused in one line, settles nothing, and can have a client of its own."""
    for _ in range(TRIES):
        broker.servicer.settles.clear()
        told = run("forking_program", broker)
        # grpc gives up on a fork while its threads are busy for seconds, as on a full machine.
        if "own" in told:
            break
    settled = {settle.holder: settle.outcome for settle in broker.servicer.settles}

    assert [told[work] for work in ("lease", "bucket", "calling")] == [REFUSAL] * 3
    assert told["settle"] == "does nothing"
    assert told["own"] == "True"
    assert told["parent"] == "True, child: 0"
    assert len(broker.servicer.settles) == 2
    assert settled == {"parent": pb.OUTCOME_UNKNOWN, "child": pb.OUTCOME_UNKNOWN}


def test_a_pool_of_processes_is_refused_alike(broker: RunningBroker) -> None:
    """Whatever forks: `multiprocessing` with its fork method copies the client too.

    gRPC's handlers of forks leave one child in five stuck before its first line, when the
    parent has used the asyncio client. The refusal needs none of them.
    """
    told = run("pooling_program", broker, GRPC_ENABLE_FORK_SUPPORT="0")

    assert told == {"fork": REFUSAL, "asyncio": REFUSAL}
    assert "fork" in multiprocessing.get_all_start_methods()
