"""The lines that the stack passes on to people."""

from pathlib import Path

import pytest

from deploy.local.data_dir import DataDir
from deploy.local.log_line import LogLine
from deploy.local.screen import Screen
from deploy.local.settings import StackSettings
from deploy.local.stack import FIRST_FETCHER, Stack, _Logged
from fetcher.work.pace import PLAN_EVENT


def test_only_the_first_fetchers_plan_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All fetchers have the same plan; every other line of each is shown."""
    monkeypatch.chdir(tmp_path)
    stack = Stack(StackSettings(queries=tmp_path), DataDir(tmp_path), Screen())
    plan = LogLine(PLAN_EVENT, "info", {"books": "every 4 min, as the tokens allow"})
    for name in (FIRST_FETCHER, "fetcher-2", "fetcher-3"):
        stack._handle(_Logged(name, plan))
        stack._handle(_Logged(name, LogLine("page read")))
    lines = capsys.readouterr().out.splitlines()
    plans = [line for line in lines if PLAN_EVENT in line]

    assert len(plans) == 1
    assert FIRST_FETCHER in plans[0]
    assert 'books="every 4 min, as the tokens allow"' in plans[0]
    assert len(lines) == 4
