"""What all commands have in common: version, completion, one line a command in the help."""

import os
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.in_process import run_here

COMMANDS = {
    "tokenbroker": "broker.start",
    "dealfetcher": "fetcher.start",
    "keepa-gateway": "fetcher.gateway.start",
    "keepa-simulator": "deploy.keepa_simulator.start",
}
HELP_LINE_MAX = 80


def run(command: str, *arguments: str, **environment: str) -> str:
    """What *command* prints to stdout, started as its script starts it."""
    main = import_module(COMMANDS[command]).main
    done = run_here(
        main, command, arguments, environment=os.environ | environment, folder=Path.cwd()
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_its_version(command: str) -> None:
    """One line: the command's name and the package's version."""
    assert run(command, "--version") == f"{command} {version('keepa-token-broker')}\n"


def test_the_local_stack_shows_its_version() -> None:
    """It starts nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy.local", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout == f"python -m deploy.local {version('keepa-token-broker')}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_its_completion(command: str, shell: str) -> None:
    """The script for each shell names the command."""
    detected = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}

    assert command in run(command, "--show-completion", shell, **detected)


@pytest.mark.parametrize(
    ("command", "start", "completed"),
    [
        ("tokenbroker", "st", "status"),
        ("dealfetcher", "rej", "rejections"),
        ("dealfetcher", "pages req", "requeue"),
        ("keepa-simulator", "au", "audit"),
        ("tokenbroker", "status --out", "--output"),
    ],
)
def test_a_shell_completes_subcommands_and_options(
    command: str, start: str, completed: str
) -> None:
    """The shell asks the command itself; no setting and no server is needed."""
    variable = f"_{command.replace('-', '_').upper()}_COMPLETE"
    words = f"{command} {start}"
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), variable: "complete_bash"}

    assert completed in run(command, **asked).split()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_one_line_per_command(command: str) -> None:
    """Each begins with a verb, ends with a full stop and fits on a line."""
    listed = run(command, "--help").partition("Commands:\n")[2].splitlines()

    assert listed
    assert [line for line in listed if len(line) > HELP_LINE_MAX] == []
    assert [line for line in listed if not re.fullmatch(r"  [\w-]+ +[A-Z][^.]+\.", line)] == []
