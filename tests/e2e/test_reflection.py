"""A running broker explains itself to tools that know nothing of it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.fix_broker import RunningBroker, StartBroker
from tests.fix_simulator import StartSimulator

SERVICE = "tokenbroker.v1.TokenBrokerService"


def buf_curl(broker: RunningBroker, path: str, *options: str) -> str:
    """Call the broker as a person would, through reflection."""
    buf = shutil.which("buf", path=str(Path(sys.executable).parent))
    assert buf is not None
    command = [buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *options]
    url = f"http://{broker.address}{path}"
    done = subprocess.run([*command, url], capture_output=True, text=True, check=True)
    return done.stdout


def test_reflection_lists_the_service_and_answers(
    start_simulator: StartSimulator, start_broker: StartBroker
) -> None:
    """A tool without our contract finds the service and reads the bucket."""
    simulator = start_simulator(rate=7, initial_tokens=33)
    broker = start_broker(simulator.base_url, simulator.api_key)
    services = buf_curl(broker, "", "--list-services").split()
    bucket = json.loads(buf_curl(broker, f"/{SERVICE}/GetBucket"))["bucket"]

    assert {SERVICE, "grpc.health.v1.Health", "grpc.channelz.v1.Channelz"} <= set(services)
    assert bucket["state"] == "BUCKET_STATE_SERVING"
    assert bucket["balance"] == "33"
    assert bucket["capacity"] == "420"
