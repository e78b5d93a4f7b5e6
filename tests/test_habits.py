"""Hooks, workflow and `make check` use the same tools."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
CHECK = re.search(r"^check: .*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)


def programs(text: str) -> set[str]:
    """Names of the programs of the environment that *text* calls, with ruff's subcommand."""
    found = re.findall(r"(?:\$\(BIN\)|\.venv/bin)/([\w-]+(?: (?:check|format))?)", text)
    return {name.replace("buf format", "buf") for name in found}


def test_hooks_run_the_tools_of_make_check() -> None:
    """Whatever `make check` runs on code runs before a commit too, from the same environment."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    entries = [hook for repo in hooks for hook in repo["hooks"]]
    called = programs(" ".join(hook["entry"] for hook in entries))

    assert CHECK is not None
    assert programs(CHECK.group(1)) == called - {"python"}
    assert {hook["language"] for hook in entries} == {"system"}
    assert [repo["repo"] for repo in hooks] == ["local"]


def test_the_workflow_calls_the_same_script() -> None:
    """CI runs .ci/run on every Python that the package supports, with read-only rights."""
    text = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
    workflow = yaml.safe_load(text)
    [job] = workflow["jobs"].values()

    assert job["steps"][-1] == {"run": ".ci/run"}
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in text
