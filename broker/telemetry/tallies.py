"""Counters and histograms for what every call adds to.

Those of the Prometheus client lock at each addition and look each series up under its lock.
All additions of the broker, and its scrapes, happen in one event loop: plain numbers do.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


def text(bound: float) -> str:
    """A bucket's bound as Prometheus writes it."""
    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]  # the client has no types


class Tally(Collector):
    """A counter with labels; *name* without its suffix, as Prometheus' client has it."""

    def __init__(
        self, name: str, help_text: str, labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._name, self._text, self._labels = name, help_text, labels
        # By the labels' values.
        self.counts: dict[tuple[str, ...], float] = {}
        registry.register(self)

    def add(self, values: tuple[str, ...], number: float = 1) -> None:
        """Adds *number* to the series of the labels' *values*; 0 creates it."""
        self.counts[values] = self.counts.get(values, 0) + number

    def forget(self, values: tuple[str, ...]) -> None:
        """Ends a series, if there is one."""
        self.counts.pop(values, None)

    def describe(self) -> Iterable[Metric]:
        """The family without its series, so that a second one of its name is refused."""
        return [CounterMetricFamily(self._name, self._text, labels=self._labels)]

    def collect(self) -> Iterator[Metric]:
        """The family with its series."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, count in self.counts.items():
            family.add_metric(values, float(count))
        yield family


class Durations(Collector):
    """A histogram of seconds with one label; *buckets_s* are upper bounds, ascending."""

    def __init__(
        self,
        name: str,
        help_text: str,
        label: str,
        buckets_s: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name, self._text, self._label = name, help_text, label
        self._bounds = [float(bound) for bound in buckets_s]
        # Per value of the label: how many fell into each bucket, and the sum of all.
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        registry.register(self)

    def create(self, value: str) -> None:
        """Creates the series of the label's *value*, with nothing in it."""
        self._counts.setdefault(value, [0] * (len(self._bounds) + 1))
        self._sums.setdefault(value, 0.0)

    def observe(self, value: str, seconds: float) -> None:
        """Counts one duration for the label's *value*."""
        if value not in self._counts:
            self.create(value)
        self._counts[value][bisect_left(self._bounds, seconds)] += 1
        self._sums[value] += seconds

    def describe(self) -> Iterable[Metric]:
        """The family without its series."""
        return [HistogramMetricFamily(self._name, self._text, labels=[self._label])]

    def collect(self) -> Iterator[Metric]:
        """The family with its series; each bucket holds those below it, too."""
        family = HistogramMetricFamily(self._name, self._text, labels=[self._label])
        bounds = [text(bound) for bound in (*self._bounds, float("inf"))]
        for value, counts in self._counts.items():
            reached, buckets = 0, []
            for bound, count in zip(bounds, counts, strict=True):
                reached += count
                buckets.append((bound, float(reached)))
            family.add_metric([value], buckets, self._sums[value])
        yield family
