"""Faults parse from text, and follow their schedule."""

from random import Random

import pytest

from deploy.keepa_simulator.faults import FaultError, Faults, parse_fault


def faults(*texts: str) -> Faults:
    """Faults set at the moment 0."""
    found = Faults(Random(1))
    for text in texts:
        found.set(parse_fault(text), 0)
    return found


def test_schedule_starts_ends_and_comes_back() -> None:
    """After 10 s, for 2 s, every 5 s."""
    plan = faults("error:status=503,after=10,for=2,every=5")
    hit = [s for s in range(25) if plan.on_call("/deal", s * 1000).status == 503]

    assert hit == [10, 11, 15, 16, 20, 21]


def test_count_ends_a_fault() -> None:
    """A fault with a count of two has two effects."""
    plan = faults("throttle:count=2")
    hits = [plan.on_call("/deal", 0).throttled for _ in range(4)]

    assert hits == [True, True, False, False]


def test_path_limits_a_fault() -> None:
    """A fault with a path spares calls of other paths."""
    plan = faults("reset:path=/deal")

    assert plan.on_call("/deal", 0).reset
    assert not plan.on_call("/token", 0).reset


def test_probability_is_a_share_of_calls() -> None:
    """About a third of the calls."""
    plan = faults("cut:probability=0.3")
    hits = sum(plan.on_call("/deal", 0).cut_at is not None for _ in range(1_000))

    assert 240 < hits < 360


def test_latency_may_be_spread() -> None:
    """With a spread, delays vary around their middle; without, they are equal."""
    spread = faults("latency:ms=100,spread=0.5")
    exact = faults("latency:ms=100")
    delays = sorted(spread.on_call("/deal", 0).delay_ms for _ in range(501))

    assert 80 < delays[250] < 120
    assert delays[0] < 50
    assert delays[-1] > 200
    assert {exact.on_call("/deal", 0).delay_ms for _ in range(5)} == {100}


def test_error_is_free_unless_it_says_so() -> None:
    """An error reply costs nothing by default; a lost reply costs its tokens."""
    assert not faults("error:status=500").on_call("/deal", 0).charged
    assert faults("error:status=500,charged=true").on_call("/deal", 0).charged
    assert faults("reset").on_call("/deal", 0).charged


def test_account_fault_fires_once_for_each_time() -> None:
    """Foreign spending every ten seconds catches up after a pause, and ends."""
    plan = faults("foreign:tokens=7,after=5,every=10,count=3")
    fired = [len(plan.on_accounts(s * 1000)) for s in (4, 5, 14, 16, 99, 200)]

    assert fired == [0, 1, 0, 1, 1, 0]


def test_cleared_faults_do_nothing() -> None:
    """Clearing removes one fault or all."""
    plan = faults("throttle", "reset")
    plan.clear(1)
    left = plan.on_call("/deal", 0)
    plan.clear()

    assert (left.throttled, left.reset) == (False, True)
    assert not plan.on_call("/deal", 0).reset


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("earthquake", "unknown fault"),
        ("error:code=1", "no 'code'"),
        ("error:status", "not name=value"),
        ("latency:ms=soon", "soon"),
    ],
)
def test_bad_fault_is_explained(text: str, says: str) -> None:
    """The error for a malformed fault names the mistake."""
    with pytest.raises(FaultError, match=says):
        parse_fault(text)
