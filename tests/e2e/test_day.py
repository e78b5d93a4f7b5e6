"""A short piece of an accelerated day; `make day` runs a whole one."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.collection import PAGE_TOKENS
from tests.e2e.day import DayPlan, live_through

SHORT = DayPlan(hours=0.25, seconds=5.0, rate=30, deals=300, fetchers=3)


@pytest.mark.slow
def test_a_quiet_day_costs_what_a_perfect_reader_pays(database_url: str, tmp_path: Path) -> None:
    """Every deal is stored, and only moved borders are paid for twice."""
    report = live_through(replace(SHORT, quiet=True), database_url, tmp_path)
    borders_tokens = report.pages_reread * PAGE_TOKENS

    assert report.losses() == []
    assert report.refused == 0
    assert report.settled_tokens == report.spent_tokens
    assert report.spent_tokens <= report.needed_tokens + borders_tokens + PAGE_TOKENS


@pytest.mark.slow
def test_nothing_is_lost_on_a_bad_day(database_url: str, tmp_path: Path) -> None:
    """Server errors, resets, cut bodies, 429 storms, kills and broker restarts lose nothing."""
    plan = replace(SHORT, kills=3, broker_restarts=1)
    report = live_through(plan, database_url, tmp_path)

    assert report.losses() == []
    assert report.kills == plan.kills
