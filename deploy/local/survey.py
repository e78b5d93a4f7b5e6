"""Figures of the running stack, requested from each part in turn.

A part that doesn't answer yields None; the stack goes on without the figure.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

import grpc
import psycopg
import requests

from protos.channel.access import Access
from protos.tokenbroker.v1 import token_broker_pb2 as pb
from protos.tokenbroker.v1 import token_broker_pb2_grpc as pb_grpc

_RPC_TIMEOUT_S: Final = 1.0
_HTTP_TIMEOUT_S: Final = 2.0
_CONNECT_TIMEOUT_S: Final = 2
# After a restart of the broker, reconnect within a second rather than in minutes.
_CHANNEL_OPTIONS: Final = (("grpc.max_reconnect_backoff_ms", 500),)


@dataclass(frozen=True, slots=True)
class SimulatorStats:
    """The simulator's counts since its start, without the free `/token`."""

    calls: int
    refused: int
    spent_tokens: int

    @classmethod
    def ask(cls, base_url: str) -> Self | None:
        """Requests the counts from the simulator at *base_url*."""
        try:
            with requests.Session() as session:
                # A proxy of the environment can't reach this machine's loopback interface.
                session.trust_env = False
                url = f"{base_url}/_simulator/stats"
                stats = session.get(url, timeout=_HTTP_TIMEOUT_S).json()
        except requests.RequestException:
            return None
        paid_paths = stats["calls_by_path"].keys() - {"/token"}
        calls = sum(stats["calls_by_path"][path] for path in paid_paths)
        return cls(calls, stats["throttled"], stats["spent"])


@dataclass(frozen=True, slots=True)
class Survey:
    """The figures of one moment."""

    bucket: pb.Bucket | None = None
    deals: int | None = None
    simulator: SimulatorStats | None = None


class Surveyor:
    """Requests the figures from the parts.

    Args:
        broker_address: The broker's gRPC address.
        database_url: URL of the database with the deals.
        simulator_url: Base URL of the simulator; empty when another Keepa is used.
        access: Access to the broker: TLS and token.
    """

    def __init__(
        self, broker_address: str, database_url: str, simulator_url: str, access: Access
    ) -> None:
        self._channel = access.channel(broker_address, _CHANNEL_OPTIONS)
        self._broker = pb_grpc.TokenBrokerServiceStub(self._channel)
        self._database_url = database_url
        self._database: psycopg.Connection | None = None
        self._simulator_url = simulator_url
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> Survey:
        """Surveys every part now."""
        simulator = SimulatorStats.ask(self._simulator_url) if self._simulator_url else None
        return Survey(self._bucket(), self._deals(), simulator)

    def report_to(self, listener: Callable[[Survey], None], interval_s: float) -> None:
        """Takes a survey every *interval_s* seconds, in a thread of its own, until closed."""

        def repeat() -> None:
            while not self._stopping.wait(interval_s):
                listener(self.take())

        self._thread = threading.Thread(target=repeat, name="surveyor", daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """Ends the regular surveys."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Ends the regular surveys and closes the connections."""
        self.pause()
        self._channel.close()
        if self._database is not None:
            self._database.close()

    def _bucket(self) -> pb.Bucket | None:
        try:
            return self._broker.GetBucket(pb.GetBucketRequest(), timeout=_RPC_TIMEOUT_S).bucket
        except grpc.RpcError:
            return None

    def _deals(self) -> int | None:
        try:
            if self._database is None or self._database.closed:
                self._database = psycopg.connect(
                    self._database_url, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S
                )
            row = self._database.execute("SELECT count(*) FROM deals").fetchone()
        except psycopg.Error:
            return None
        return int(row[0]) if row else None
