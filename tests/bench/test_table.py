"""The bench's table: verdicts beside goals, and rows that survive a bench that fails."""

from collections.abc import Iterator

import pytest
from rich.console import Console

from tests.bench import __main__ as runner
from tests.bench.table import Row, at_least, at_most, median_ratio


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (Row("a", 0.75, goal=at_least(0.75)), "met"),
        (Row("a", 0.74, goal=at_least(0.75)), "missed"),
        (Row("a", 1.3, goal=at_most(1.3)), "met"),
        (Row("a", 1.4, goal=at_most(1.3), why="it is slow"), "missed: it is slow"),
        (Row("a", 1.4), ""),
    ],
)
def test_a_goal_gives_the_verdict(row: Row, verdict: str) -> None:
    """A row is met or missed, with the reason; without a goal it is neither."""
    assert row.verdict == verdict


def test_pairs_are_compared_round_by_round() -> None:
    """A slow moment of the machine hits both of a pair, and leaves their ratio alone."""
    assert median_ratio([10, 1, 10], [20, 2, 20]) == 0.5


def test_a_bench_that_fails_keeps_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured before a failure is reported, and the failure too."""

    def rows(_quick: bool) -> Iterator[Row]:  # noqa: FBT001 - as all benches
        yield Row("first", 1.0)
        raise RuntimeError("no engine")

    monkeypatch.setattr(runner, "bench", lambda _name: rows)
    found, complete = runner.run(("broken",), quick=True, progress=Console(quiet=True))

    assert not complete
    assert [row.what for row in found["results"]["broken"]] == ["first"]
    assert found["failed"] == {"broken": "RuntimeError: no engine"}
