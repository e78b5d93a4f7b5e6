"""The stack under test: two brokers, three fetchers, a simulator, a Postgres, links between."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc

from deploy.local.ports import free_port
from deploy.local.postgres import PostgresServer
from deploy.local.program import Program, stop_together
from fetcher.postgres import migrate
from protos.channel.access import DIRECT
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc
from tests.chaos.proxy import Link
from tests.chaos.wall_clock import WallClock
from tests.e2e.day import write_queries
from tests.fix_broker import environment
from tests.fix_simulator import RunningSimulator, launch_simulator

FETCHERS: Final = 3
SPEED: Final = 600.0
START_TIMEOUT_S: Final = 120.0
RPC_TIMEOUT_S: Final = 1.0
POLL_S: Final = 0.05
# Less than the fetchers would spend, so that the bucket stays between empty and full: a full
# one hides charges, because refill that would have lapsed makes up for them. It fills in two
# minutes, longer than any outage.
SIMULATOR: Final[dict[str, Any]] = {
    "rate": 16,
    "initial_tokens": 300,
    "tick_seconds": 2.0,
    "cache_seconds": 0.2,
    "deal_speed": SPEED,
    "products": 3_000,
    "deals": 900,
    "latency": "5-40",
}
# Of a file system of Postgres's own, where the user may mount one; memory as it fills.
VOLUME_MB: Final = 600
FILL_BYTES: Final = 1 << 20
# The data never outlives the run. A crash of the server's processes needs no disk, but it
# loses commits that have not been written: so synchronous_commit stays on.
FAST: Final = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "64MB"}


class Stack:
    """All of it; every connection goes through a link of its own pair.

    Args:
        folder: Logs and data.
        seed: Of the simulator's catalogue.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.options = {**SIMULATOR, "seed": seed}
        self.volume = folder / "volume"
        self.has_volume = self._mount()
        self.clock = WallClock(folder / "clock")
        self.postgres = PostgresServer(
            self.volume / "data", log_path=folder / "postgres.log", options=FAST
        )
        self.links: dict[str, Link] = {}
        self.brokers: list[Program] = []
        self.fetchers: list[Program] = []
        # When fetchers were killed, in Unix milliseconds, and the numbers of their processes.
        self.kills: list[tuple[int, int]] = []
        self._addresses: list[str] = []

    # --- begin and end ---------------------------------------------------------

    def start(self) -> None:
        """Starts everything, and waits until every fetcher works."""
        self.postgres.start()
        self.database_url = self.postgres.create_database("chaos")
        migrate(self.database_url)
        files = {"state": self.folder / "keepa.json", "journal": self.folder / "keepa.jsonl"}
        self.simulator: RunningSimulator = launch_simulator(**self.options, **files)
        keepa = self.simulator.base_url.removeprefix("http://")
        database = f"127.0.0.1:{self.postgres.port}"
        for name in ("a", "b"):
            listen, http = (f"127.0.0.1:{free_port()}" for _ in range(2))
            self._addresses.append(listen)
            self._link(f"broker-{name} to Postgres", database)
            self._link(f"broker-{name} to Keepa", keepa)
            self._link(f"fetchers to broker-{name}", listen)
            self.brokers.append(
                self._program(
                    f"broker-{name}", "broker", "serve",
                    broker_listen=listen, broker_http_listen=http,
                    keepa_base_url=f"http://{self.links[f'broker-{name} to Keepa'].address}",
                    broker_database_url=self._url(f"broker-{name} to Postgres"),
                )
            )  # fmt: skip
        self._link("fetchers to Postgres", database)
        self._link("fetchers to Keepa", keepa)
        both = ",".join(self.links[f"fetchers to broker-{name}"].address for name in "ab")
        for number in range(FETCHERS):
            self.fetchers.append(
                self._program(
                    f"fetcher-{number}", "fetcher", "run",
                    keepa_base_url=f"http://{self.links['fetchers to Keepa'].address}",
                    database_url=self._url("fetchers to Postgres"), broker_address=both,
                    queries=write_queries(self.folder / "queries"), poll_speed=SPEED,
                    claim_ttl_s=2, retry_delay_s=0.1,
                )
            )  # fmt: skip
        for fetcher in self.fetchers:
            fetcher.await_ready(partial(_works, fetcher), START_TIMEOUT_S)

    def heal(self) -> None:
        """Ends every fault, and starts whatever is gone."""
        for link in self.links.values():
            link.heal()
        if self.simulator.process.poll() is None:
            os.kill(self.simulator.process.pid, signal.SIGCONT)
        else:
            self.simulator.start_again()
        self.simulator.clear_faults()
        self.clock.step(0)
        self.free_disk()
        for program in (*self.brokers, *self.fetchers):
            if program.running:
                os.kill(program.pid, signal.SIGCONT)
            else:
                program.start()
        self.execute("ALTER SYSTEM RESET default_transaction_read_only")
        self.execute("SELECT pg_reload_conf()")

    def stop(self) -> list[str]:
        """Stops everything in order; returns what did not end by itself or left a process."""
        problems = [f"{each.name} did not end" for each in stop_together(self.fetchers)]
        problems += [f"{each.name} did not end" for each in stop_together(self.brokers)]
        for link in self.links.values():
            link.close()
        if hasattr(self, "simulator"):
            self.simulator.stop()
        self.postgres.stop()
        if self.has_volume:
            subprocess.run(["umount", "--lazy", str(self.volume)], check=True)
        return problems + [f"process {pid} is left" for pid in processes_in(self.folder)]

    def _mount(self) -> bool:
        """Gives Postgres a small disk of its own; only root may."""
        self.volume.mkdir()
        if os.geteuid() != 0:
            return False
        size = f"size={VOLUME_MB}m,mode=0755"
        mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(self.volume)]
        return subprocess.run(mount, check=False, capture_output=True).returncode == 0

    def fill_disk(self) -> None:
        """Leaves Postgres's disk no room."""
        with (self.volume / "filler").open("ab", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(FILL_BYTES))

    def free_disk(self) -> None:
        """Makes room again; starts Postgres if it has given up meanwhile."""
        (self.volume / "filler").unlink(missing_ok=True)
        if self.postgres.returncode is not None:
            self.postgres.stop()
            self.postgres.start()

    def _link(self, name: str, target: str) -> None:
        self.links[name] = Link(target)

    def _url(self, name: str) -> str:
        port = str(self.postgres.port)
        return self.database_url.replace(f"127.0.0.1:{port}", self.links[name].address)

    def _program(self, name: str, *command: str, **settings: object) -> Program:
        given = {
            "keepa_api_key": self.simulator.api_key,
            "log_format": "json",
            **self.clock.environment,
            **settings,
        }
        return Program(
            name,
            [sys.executable, "-m", *command],
            environment=environment(**given),
            log_path=self.folder / f"{name}.log",
            folder=self.folder,
        ).start()

    # --- what is so ------------------------------------------------------------

    def bucket(self, number: int) -> pb.Bucket | None:
        """The bucket of a broker, past all links; None if it does not answer at once."""
        with grpc.insecure_channel(self._addresses[number], options=[DIRECT]) as channel:
            stub = pb_grpc.TokenBrokerServiceStub(channel)
            try:
                return stub.GetBucket(pb.GetBucketRequest(), timeout=RPC_TIMEOUT_S).bucket
            except grpc.RpcError:
                return None

    def leader(self, *, but: int | None = None) -> int | None:
        """The broker that grants, other than *but*; None if there is none."""
        for number in range(len(self.brokers)):
            bucket = None if number == but else self.bucket(number)
            if bucket is not None and bucket.state == pb.BUCKET_STATE_SERVING:
                return number
        return None

    def await_leader(self, deadline_s: float = START_TIMEOUT_S) -> int:
        """The broker that grants, as soon as there is one."""
        found: list[int] = []

        def look() -> bool:
            leader = self.leader()
            found.extend([] if leader is None else [leader])
            return leader is not None

        wait_for(look, "a broker leads", deadline_s)
        return found[0]

    def await_leader_and_standby(self) -> int:
        """The leader, once the other broker could follow it: one that starts is no hot standby."""
        wait_for(
            lambda: all(self.bucket(number) is not None for number in range(len(self.brokers))),
            "both brokers answer",
            START_TIMEOUT_S,
        )
        return self.await_leader()

    def execute(self, statement: str) -> None:
        """Runs *statement* as the superuser, past all links."""
        import psycopg  # noqa: PLC0415 - only here

        with psycopg.connect(self.database_url, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(statement.encode())


class ChaosError(Exception):
    """The stack did not come back."""


def wait_for(condition: Callable[[], bool], what: str, deadline_s: float) -> float:
    """Waits until *condition* holds; returns the seconds that took.

    Raises:
        ChaosError: It does not in time.
    """
    began_s = time.monotonic()
    while not condition():
        if time.monotonic() - began_s > deadline_s:
            raise ChaosError(f"waited {deadline_s:.0f} s in vain: {what}")
        time.sleep(POLL_S)
    return time.monotonic() - began_s


def processes_in(folder: Path) -> list[int]:
    """Processes that have *folder* as their working directory."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if link.readlink() == folder:
                found.append(int(link.parent.name))
        except OSError:
            # It has ended meanwhile, or is another user's.
            continue
    return found


def _works(fetcher: Program) -> bool:
    return "fetcher started" in fetcher.output()
