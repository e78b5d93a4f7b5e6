"""The edge in virtual time: interleavings by seed, each of which can be replayed."""

import pytest

from broker.core.elector import Elector
from tests.simulation.edge import live

SEEDS = 8


def test_only_the_leader_grants_and_all_are_served() -> None:
    """Slow and failing databases, late probes, killed brokers: one leader, larger epochs."""
    traces = [live(seed, leases=12, kills=3) for seed in range(1, SEEDS + 1)]

    assert all(trace.calls == 48 for trace in traces)
    assert all(trace.refusals <= trace.kills + trace.failures for trace in traces)
    # The faults really struck.
    assert sum(trace.kills for trace in traces) > SEEDS // 2
    assert sum(trace.failures for trace in traces) > 0
    assert max(len(trace.terms) for trace in traces) > 2


def test_a_seed_repeats_its_run() -> None:
    """A failure that was found once can be looked at again."""
    runs = [live(seed, leases=5, kills=1).digest for seed in (3, 3, 4)]

    assert runs[0] == runs[1]
    assert runs[1] != runs[2]


def test_a_hasty_standby_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is worth something: a standby that waits too short a time leads beside another."""
    hasty = property(lambda self: self._is_open or self._quiet >= 1)
    monkeypatch.setattr(Elector, "_may_take", hasty)

    with pytest.raises(AssertionError):
        [live(seed) for seed in range(1, SEEDS + 1)]
