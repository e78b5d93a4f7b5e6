"""A restart with a journal: from the start of the process to its first grant.

The broker is killed with leases open, and started again over the same journal. Beside the whole
stands the part that begins when the process has loaded and listens: what the broker does then
is ask Keepa, read the journal, and grant.
"""

import json
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import grpc

from deploy.local.postgres import PostgresServer
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from tests.bench.processes import cpu_s
from tests.bench.table import Row, at_most
from tests.fix_broker import RunningBroker, launch_broker
from tests.fix_simulator import launch_simulator

ROUNDS: Final = 5
QUICK_ROUNDS: Final = 3
OPEN_LEASES: Final = 200
TIMEOUT_S: Final = 60.0
# Shorter than what is measured.
POLL_S: Final = 0.005
GOAL: Final = at_most(1_000)
WHY: Final = (
    "modules take 0.6 s of a core to load: gRPC, pydantic, psycopg, requests; see beside on a busy"
    " machine"
)


def grant(broker: RunningBroker) -> None:
    """Takes a lease; tries again until the broker grants."""
    end_s = time.monotonic() + TIMEOUT_S
    while True:
        request = pb.AcquireLeaseRequest(
            lease_id=str(uuid.uuid4()), holder="bench", operation="deal", units=1,
            tokens_per_unit=1.0, priority=pb.PRIORITY_NORMAL,
        )  # fmt: skip
        try:
            with grpc.insecure_channel(broker.address) as channel:
                stub = pb_grpc.TokenBrokerServiceStub(channel)
                assert stub.AcquireLease(request, timeout=5).HasField("grant")
        except grpc.RpcError:
            if time.monotonic() > end_s:
                raise
            time.sleep(POLL_S)
        else:
            return


def listening_s(broker: RunningBroker) -> float:
    """When the broker last listened, in Unix seconds, by its log."""
    lines = [line for line in broker.program.output().splitlines() if "broker listening" in line]
    moment: str = json.loads(lines[-1])["timestamp"]
    return datetime.fromisoformat(moment).timestamp()


def restart(broker: RunningBroker) -> tuple[float, float, float]:
    """Milliseconds from start, and from listening, to a grant; and of processor time."""
    broker.program.kill()
    broker.program.wait(TIMEOUT_S)
    began_s = time.monotonic()
    broker.program.start()
    grant(broker)
    granted_s, took_s = time.time(), time.monotonic() - began_s
    used_s = cpu_s(broker.program.pid)
    return took_s * 1000, (granted_s - listening_s(broker)) * 1000, used_s * 1000


def rows(quick: bool) -> Iterator[Row]:  # noqa: FBT001 - as the table calls every bench
    """Times of restarts with open leases."""
    with tempfile.TemporaryDirectory(prefix="keepa-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        simulator = launch_simulator(rate=1_000, tick_seconds=3_600, initial_tokens=60_000)
        try:
            with PostgresServer(folder / "postgres", log_path=folder / "postgres.log") as server:
                broker = launch_broker(
                    simulator.base_url,
                    simulator.api_key,
                    folder=folder,
                    name="broker",
                    log_format="json",
                    broker_lease_ttl_ms=600_000,
                    broker_database_url=server.create_database("journal"),
                    broker_leadership="sole",
                )
                try:
                    for _ in range(OPEN_LEASES):
                        grant(broker)
                    taken = [restart(broker) for _ in range(QUICK_ROUNDS if quick else ROUNDS)]
                finally:
                    broker.program.stop()
        finally:
            simulator.stop()
    whole, behind, used = zip(*taken, strict=True)
    beside = (
        f"{statistics.median(behind):.0f} ms of it once the process listens;"
        f" {statistics.median(used):.0f} ms of processor time"
    )
    yield Row(
        f"first grant of a broker killed with {OPEN_LEASES} leases open, from its new start",
        statistics.median(whole),
        "ms",
        GOAL,
        beside,
        WHY,
        {"ms": list(whole), "listening ms": list(behind), "processor ms": list(used)},
    )


if __name__ == "__main__":
    for row in rows(quick=False):
        print(row.what, f"{row.value:.0f} {row.unit};", row.beside)  # noqa: T201 - the result
