"""Metrics that are made at each scrape, from values at hand."""

from collections.abc import Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


class MetricFamilies:
    """Makes metric families with names that begin with *program*."""

    def __init__(self, program: str) -> None:
        self._program = program

    def gauge(self, name: str, text: str, value: float) -> Metric:
        """Makes a gauge without labels."""
        return GaugeMetricFamily(f"{self._program}_{name}", text, value=float(value))

    def counter(self, name: str, text: str, value: float) -> Metric:
        """Makes a counter without labels."""
        return CounterMetricFamily(f"{self._program}_{name}", text, value=float(value))

    def gauges(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        """Makes a gauge for each value of *label*."""
        family = GaugeMetricFamily(f"{self._program}_{name}", text, labels=[label])
        for key, value in values.items():
            family.add_metric([key], float(value))
        return family

    def counters(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        """Makes a counter for each value of *label*."""
        family = CounterMetricFamily(f"{self._program}_{name}", text, labels=[label])
        for key, value in values.items():
            family.add_metric([key], float(value))
        return family
