"""Series about the broker as a process: version, RPCs, event loop, followed files."""

import asyncio
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from broker.telemetry.tallies import Durations, Tally
from protos.process.metric_families import MetricFamilies
from protos.process.version import package_version
from protos.process.watched_files import FileState

LAG_EVERY_S: Final = 0.5
LAG_BUCKETS_S: Final = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
# AcquireLease waits for tokens, so its times are those of waits.
RPC_BUCKETS_S: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 1, 5, 15, 60, 300, 1_800)

families: Final = MetricFamilies("tokenbroker")

States = Callable[[], Mapping[str, FileState]]
Expiries = Callable[[], Mapping[str, float]]


class ProcessMetrics:
    """Counts calls and lag as they happen; reads files' states at every scrape."""

    def __init__(self, registry: CollectorRegistry, states: States, expiries_s: Expiries) -> None:
        registry.register(FilesCollector(states, expiries_s))
        self._rpcs = Tally(
            "tokenbroker_rpcs",
            "Calls ended, by method and gRPC status.",
            ["method", "code"],
            registry,
        )
        self._rpc_seconds = Durations(
            "tokenbroker_rpc_seconds",
            "Time that calls took; of AcquireLease, waits for tokens too.",
            "method",
            RPC_BUCKETS_S,
            registry,
        )
        self._lag = Histogram(
            "tokenbroker_event_loop_lag_seconds",
            "Delay of a timer of the event loop, on which every call depends.",
            buckets=LAG_BUCKETS_S,
            registry=registry,
        )

    def called(self, method: str, code: str, took_s: float | None) -> None:
        """Counts a call that has ended; a stream has no *took_s*."""
        self._rpcs.add((method, code))
        if took_s is not None:
            self._rpc_seconds.observe(method, took_s)

    async def measure_lag(self) -> None:
        """Measures the event loop until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            self._lag.observe(max(0.0, loop.time() - due_s))


class FilesCollector(Collector):
    """The version of the broker and of each followed file, and when certificates expire."""

    def __init__(self, states: States, expiries_s: Expiries) -> None:
        self._states, self._expiries_s = states, expiries_s

    def describe(self) -> Iterable[Metric]:
        """Nothing: only a scrape yields the names, which are unique."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All series of this moment."""
        build = GaugeMetricFamily(
            "tokenbroker_build_info", "1, with the version.", labels=["version", "python"]
        )
        build.add_metric([package_version(), platform.python_version()], 1.0)
        yield build
        states = self._states()
        versions = GaugeMetricFamily(
            "tokenbroker_followed_file_info",
            "1, with the version of the file in use: the first digits of its SHA-256.",
            labels=["file", "version"],
        )
        for name, state in states.items():
            versions.add_metric([name, state.version], 1.0)
        yield versions
        yield families.gauges(
            "followed_file_refused",
            "1 while a newer version can't be used; /healthz has the reason.",
            "file",
            {name: bool(state.trouble) for name, state in states.items()},
        )
        yield families.gauges(
            "certificate_expiry_timestamp_seconds",
            "When the certificate expires, in Unix time.",
            "file",
            self._expiries_s(),
        )
