"""The `tokenbroker` command against a running broker, as a person would use it."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from broker.__main__ import main
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from tests.fix_broker import RunningBroker, environment, launch_broker
from tests.fix_simulator import RunningSimulator, launch_simulator
from tests.in_process import run_here
from tests.waiting import DEADLINE_S, wait_until

TIMEOUT_S = 90.0
NUMBERS = count(1)
COMMAND = [sys.executable, "-m", "broker"]


@pytest.fixture(scope="module")
def keepa() -> Iterator[RunningSimulator]:
    """A Keepa that won't tick during a test."""
    simulator = launch_simulator(rate=5, tick_seconds=3600, products=100, deals=10)
    yield simulator
    simulator.stop()


@pytest.fixture(scope="module")
def common_broker(
    keepa: RunningSimulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningBroker]:
    """A broker for all tests, each of which leaves it without leases and waits."""
    folder = tmp_path_factory.mktemp("broker")
    broker = launch_broker(keepa.base_url, keepa.api_key, folder=folder, name="broker")
    yield broker
    broker.program.stop()


@pytest.fixture
def broker(keepa: RunningSimulator, common_broker: RunningBroker) -> RunningBroker:
    """It grants, from the 20 tokens that Keepa has."""
    keepa.clear_faults()
    keepa.change_account(balance=20)
    with grpc.insecure_channel(common_broker.address) as channel:
        stub = pb_grpc.TokenBrokerServiceStub(channel)
        stub.SyncBucket(pb.SyncBucketRequest(), timeout=DEADLINE_S)
    assert common_broker.bucket().balance == 20
    return common_broker


class Crowd(NamedTuple):
    """The ids of a lease and of a request that waits."""

    open: str
    parked: str


@pytest.fixture
def crowd(broker: RunningBroker) -> Iterator[Crowd]:
    """One open lease, and one request that waits."""
    fields: dict[str, Any] = {
        "holder": "[red]h",
        "operation": "deal",
        "tokens_per_unit": 5.0,
        "priority": 1,
    }
    with grpc.insecure_channel(broker.address) as channel:
        stub = pb_grpc.TokenBrokerServiceStub(channel)
        number = next(NUMBERS)
        lease_ids = [f"{name}-{number}" for name in ("open", "parked")]
        request = pb.AcquireLeaseRequest(lease_id=lease_ids[0], units=3, **fields)
        grant = stub.AcquireLease(request).grant
        call: Any = stub.AcquireLease.future(
            pb.AcquireLeaseRequest(lease_id=lease_ids[1], units=4, **fields)
        )
        wait_until(lambda: broker.bucket().waiting == 1, "the second waits")
        yield Crowd(*lease_ids)
        for lease_id in reversed(lease_ids):
            stub.SettleLease(
                pb.SettleLeaseRequest(
                    lease_id=lease_id, epoch=grant.epoch, holder=fields["holder"],
                    operation="deal", units=grant.units, tokens=grant.tokens,
                    outcome=pb.OUTCOME_NOT_SENT,
                )
            )  # fmt: skip
        call.cancel()


def run(tmp_path: Path, *arguments: str, address: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the command in an empty folder."""
    settings = {"broker_address": address} if address else {}
    return run_here(
        main,
        "tokenbroker",
        arguments,
        environment={**environment(**settings), "COLUMNS": "140"},
        folder=tmp_path,
    )


def test_status_shows_the_bucket(broker: RunningBroker, crowd: Crowd, tmp_path: Path) -> None:
    """In words, for a person."""
    done = run(tmp_path, "status", "--address", broker.address)

    assert done.returncode == 0
    assert "serving" in done.stdout
    assert "20 of 300 tokens" in done.stdout
    assert "5 (15 reserved, debt up to 74)" in done.stdout
    assert "1 open, 1 waiting" in done.stdout


def test_status_is_json_on_request(broker: RunningBroker, tmp_path: Path) -> None:
    """Numbers as numbers, durations in seconds, names in small letters."""
    done = run(tmp_path, "status", "-o", "json", address=broker.address)

    bucket = json.loads(done.stdout)

    assert (bucket["balance"], bucket["state"]) == (20, "serving")
    assert 0 < bucket["next_refill_in"] <= 3600
    assert bucket["last_observation"]["source"] == "probe"


def test_leases_shows_who_holds_and_who_waits(
    broker: RunningBroker, crowd: Crowd, tmp_path: Path
) -> None:
    """Names are printed as they are, whatever a terminal's markup would make of them."""
    table = run(tmp_path, "leases", address=broker.address)
    entries = json.loads(run(tmp_path, "leases", "-o", "json", address=broker.address).stdout)

    assert "[red]h" in table.stdout
    assert crowd.parked in table.stdout
    assert [lease["lease_id"] for lease in entries["leases"]] == [crowd.open]
    assert [wait["lease_id"] for wait in entries["waiting"]] == [crowd.parked]
    assert entries["waiting"][0]["priority"] == "high"
    assert entries["waiting"][0]["eta"] > 0


def test_pause_and_resume_steer_the_broker(broker: RunningBroker, tmp_path: Path) -> None:
    """Each shows the state that it brought about."""
    paused = run(tmp_path, "pause", "-o", "json", address=broker.address)
    resumed = run(tmp_path, "resume", "-o", "json", address=broker.address)

    assert json.loads(paused.stdout)["state"] == "paused"
    assert "BROKER_START_PAUSED" in paused.stderr
    assert json.loads(resumed.stdout)["state"] == "serving"


def test_sync_fetches_the_count(
    broker: RunningBroker, keepa: RunningSimulator, tmp_path: Path
) -> None:
    """Foreign spend shows at once, under its name."""
    before = broker.bucket().foreign_tokens
    keepa.change_account(spend=9)

    bucket = json.loads(run(tmp_path, "sync", "-o", "json", address=broker.address).stdout)

    assert (bucket["balance"], bucket["foreign_tokens"] - before) == (11, 9)


def test_a_failed_sync_says_why(
    broker: RunningBroker, keepa: RunningSimulator, tmp_path: Path
) -> None:
    """It is Keepa's trouble then, not the broker's."""
    keepa.set_fault("garbage:path=/token")

    done = run(tmp_path, "sync", address=broker.address)

    assert done.returncode == 1
    assert "has no balance" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["status", "leases", "sync", "pause", "resume", "watch"])
def test_without_a_broker_one_line_says_so(command: str, tmp_path: Path) -> None:
    """With what to do about it, and a failing exit code."""
    done = run(tmp_path, command, address="127.0.0.1:1")

    assert done.returncode == 1
    assert re.fullmatch(
        "tokenbroker: no broker answers at 127.0.0.1:1: .*Connection refused.*: start one with"
        " `tokenbroker serve`, or set BROKER_ADDRESS\n",
        done.stderr,
    )


def test_help_tells_every_command(tmp_path: Path) -> None:
    """And wrong usage has an exit code of its own."""
    told = run(tmp_path, "--help")
    wrong = run(tmp_path, "juggle")

    assert told.returncode == 0
    for command in ("serve", "status", "watch", "leases", "sync", "pause", "resume"):
        assert command in told.stdout
    assert wrong.returncode == 2


def test_watch_prints_lines_without_a_terminal(broker: RunningBroker, tmp_path: Path) -> None:
    """Programs get JSON lines, and end the command by closing the pipe."""
    process = subprocess.Popen(
        [*COMMAND, "watch", "-o", "json"],
        cwd=tmp_path,
        env={**environment(broker_address=broker.address), "PYTHONPATH": str(Path.cwd())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None

    first = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT_S)

    assert first["balance"] == 20
    assert process.returncode == 0
    assert errors == ""


def test_watch_draws_on_a_terminal(broker: RunningBroker, crowd: Crowd, tmp_path: Path) -> None:
    """It shows bucket, leases and waiting requests; Ctrl-C ends it cleanly."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "watch"],
        cwd=tmp_path,
        env={
            **environment(broker_address=broker.address),
            "PYTHONPATH": str(Path.cwd()),
            "TERM": "xterm",
            "COLUMNS": "140",
            "LINES": "50",
        },
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)

    picture = _read_until(ours, b"Ctrl-C ends")
    process.send_signal(signal.SIGINT)
    rest = _read_until(ours, None)
    os.close(ours)

    assert process.wait(TIMEOUT_S) == 0, rest.decode(errors="replace")
    texts = ("20 of 300 tokens", "Next refill", *crowd)
    for text in (text.encode() for text in texts):
        assert text in picture
    assert b"Traceback" not in rest


def _read_until(terminal: int, text: bytes | None) -> bytes:
    """Reads until *text* or the end; a terminal without a writer is an error to Linux."""
    seen = b""
    give_up_at = time.monotonic() + TIMEOUT_S
    while time.monotonic() < give_up_at and (text is None or text not in seen):
        if not select.select([terminal], [], [], 0.1)[0]:
            continue
        try:
            seen += os.read(terminal, 65_536)
        except OSError:
            break
    return seen
