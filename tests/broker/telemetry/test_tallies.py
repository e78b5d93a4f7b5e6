"""The broker's own counters and histograms, beside those of Prometheus' client."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest

from broker.telemetry.tallies import Durations, Tally

BUCKETS_S = (0.005, 1, 60)
SECONDS = (0.0, 0.005, 0.006, 1, 59.9, 60.1, 1e9)


def exposed(registry: CollectorRegistry) -> list[str]:
    """The lines that a scrape gets; the client's own series also hold the time of their start."""
    lines = generate_latest(registry).decode().splitlines()
    return sorted(line for line in lines if "_created" not in line)


def test_a_histogram_is_exposed_as_the_clients() -> None:
    """Bounds belong to their bucket, buckets add up, and a created series is empty."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    mine = Durations("seconds", "Help.", "method", BUCKETS_S, ours)
    other = Histogram("seconds", "Help.", ["method"], buckets=BUCKETS_S, registry=theirs)
    mine.create("none")
    other.labels("none")
    for seconds in SECONDS:
        mine.observe("some", seconds)
        other.labels("some").observe(seconds)

    assert exposed(ours) == exposed(theirs)


def test_a_counter_is_exposed_as_the_clients() -> None:
    """Series are named, added up and forgotten by their labels."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    mine = Tally("calls", "Help.", ["method", "code"], ours)
    other = Counter("calls", "Help.", ["method", "code"], registry=theirs)
    for labels, number in (
        (("a", "OK"), 1),
        (("a", "OK"), 2.5),
        (("b", "OK"), 0),
        (("c", "x"), 1),
    ):
        mine.add(labels, number)
        other.labels(*labels).inc(number)
    mine.forget(("c", "x"))
    mine.forget(("never", "seen"))
    other.remove("c", "x")

    assert exposed(ours) == exposed(theirs)


def test_one_name_belongs_to_one_family() -> None:
    """A second family of the same name is refused, as with the client's own."""
    registry = CollectorRegistry()
    Tally("calls", "Help.", ["method"], registry)

    with pytest.raises(ValueError, match="Duplicated"):
        Tally("calls", "Help.", ["method"], registry)
