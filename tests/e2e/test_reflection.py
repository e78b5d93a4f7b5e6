"""A running broker describes its services to tools without the contract."""

import json
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fetcher.broker_client import BrokerClient, WaitCancelledError
from tests.fix_broker import RunningBroker, StartBroker
from tests.fix_simulator import StartSimulator
from tests.waiting import wait_until

README = Path(__file__).parents[2] / "protos" / "README.md"
SERVICE = "tokenbroker.v1.TokenBrokerService"
HEALTH = "grpc.health.v1.Health/Check"
LIST = "list"


def readme_commands() -> list[tuple[str, str]]:
    """The grpcurl calls in the README of the contract: symbol and data of each."""
    found = []
    for line in README.read_text(encoding="utf-8").splitlines():
        if line.startswith("grpcurl -plaintext "):
            words = shlex.split(line, comments=True)
            data = words[words.index("-d") + 1] if "-d" in words else "{}"
            found.append((words[-1], data))
    return found


def buf_curl(broker: RunningBroker, symbol: str, data: str) -> Any:
    """The reply to `buf curl`, an equal of grpcurl; of a stream, the first message."""
    buf = shutil.which("buf", path=str(Path(sys.executable).parent))
    assert buf is not None
    command = [buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
    url = f"http://{broker.address}"
    command += ["--list-services", url] if symbol == LIST else ["-d", data, f"{url}/{symbol}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if symbol == LIST:
            return process.stdout.read().split()
        text = ""
        for line in process.stdout:
            text += line
            # A message spans many lines; this line ends the first message.
            if line.rstrip() == "}":
                break
        process.terminate()
    return json.loads(text)


@pytest.fixture
def starving_broker(start_simulator: StartSimulator, start_broker: StartBroker) -> RunningBroker:
    """A broker without a token to grant."""
    simulator = start_simulator(rate=7, initial_tokens=-20)
    return start_broker(simulator.base_url, simulator.api_key)


@pytest.fixture
def waiting(starving_broker: RunningBroker) -> Iterator[str]:
    """The name of a holder that waits for tokens."""

    def wait() -> None:
        with pytest.raises(WaitCancelledError), client.lease("deal", tokens_per_unit=5):
            pass

    with BrokerClient(starving_broker.address, holder="patient") as client:
        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: starving_broker.bucket().waiting == 1, "a request that waits")
        yield client.holder
        client.stop_waiting()
        thread.join()


def test_the_commands_of_the_readme_answer(starving_broker: RunningBroker, waiting: str) -> None:
    """State, waits, watch, sync, pause and resume work as protos/README.md writes them."""
    answers = {
        symbol.removeprefix(f"{SERVICE}/"): buf_curl(starving_broker, symbol, data)
        for symbol, data in readme_commands()
    }
    who = answers["ListLeases"]["waiting"]
    buckets = {name: answer["bucket"] for name, answer in answers.items() if "bucket" in answer}

    assert {SERVICE, "grpc.health.v1.Health", "grpc.channelz.v1.Channelz"} <= set(answers[LIST])
    assert [one["holder"] for one in who] == [waiting]
    assert all(one["reason"] and one["eta"] for one in who)
    assert buckets["GetBucket"]["balance"] == buckets["WatchBucket"]["balance"] == "-20"
    assert buckets["SyncBucket"]["lastObservation"]["source"] == "OBSERVATION_SOURCE_PROBE"
    assert {
        name: bucket["state"].removeprefix("BUCKET_STATE_") for name, bucket in buckets.items()
    } == {
        "GetBucket": "SERVING",
        "WatchBucket": "SERVING",
        "SyncBucket": "SERVING",
        "PauseGrants": "PAUSED",
        "ResumeGrants": "SERVING",
    }
    assert answers[HEALTH] == {"status": "SERVING"}
