"""The commands in README, broker and fetcher documents work on a running stack."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy.keepa_simulator.options import DEMO_KEY
from deploy.local.program import Program
from tests.fix_broker import environment, starting_programs
from tests.test_documents import ROOT, of
from tests.waiting import wait_until

PROGRAMS = {"tokenbroker": "broker", "dealfetcher": "fetcher"}
# They run until they are stopped; other tests cover what they serve.
ENDLESS = (
    ("tokenbroker", "serve"),
    ("dealfetcher", "run"),
    ("dealfetcher", "metrics"),
    ("dealfetcher", "console"),
    ("dealfetcher", "alert"),
)
# They need channels, saved replies or roles, which `make run` has none of.
ELSEWHERE = (
    ("dealfetcher", "alerts", "test"),
    ("dealfetcher", "history", "import"),
    ("dealfetcher", "migrate", "--roles"),
)
COMMAND_TIMEOUT_S = 120


class RunningStack:
    """A stack from `make run`, and the settings of a second terminal."""

    def __init__(self, program: Program, data_dir: Path) -> None:
        # Commands leave files where they are run.
        self.folder = data_dir.parent
        output = program.output()
        broker = re.search(r"broker: gRPC on (\S+),", output)
        simulator = re.search(r"a simulator at (http://[^\s,]+)", output)
        assert broker is not None
        assert simulator is not None
        self.environment = environment(
            broker_address=broker[1],
            keepa_base_url=simulator[1],
            keepa_api_key=DEMO_KEY,
            database_url=(data_dir / "database-url").read_text("utf-8").strip(),
            broker_database_url_file=data_dir / "broker-database-url",
            queries=ROOT / "deploy" / "queries",
        )

    def run(self, command: list[str], *, endless: bool = False) -> tuple[int, str]:
        """The exit code and output of *command*; Ctrl-C follows the first output if *endless*."""
        with subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            first = ""
            if endless:
                assert process.stdout is not None
                first = process.stdout.readline()
                process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=COMMAND_TIMEOUT_S)
        return process.returncode, first + output


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A stack as `make run` starts it, with deals in its database."""
    folder = tmp_path_factory.mktemp("stack")
    with starting_programs(folder, []) as start:
        program = start(
            "deploy.local",
            broker_listen="127.0.0.1:0",
            broker_http_listen="127.0.0.1:0",
            gateway_listen="127.0.0.1:0",
            gateway_http_listen="127.0.0.1:0",
            console_listen="127.0.0.1:0",
            queries=ROOT / "deploy" / "queries",
            data_dir=folder / "data",
        )
        wait_until(
            lambda: "page read" in program.output() or not program.running, "the first page"
        )
        yield RunningStack(program, folder / "data")


def documented(program: str) -> list[list[str]]:
    """The commands of *program* in the documents, each once, except those for docker."""
    found = {
        (program, *words)
        for place, words in of(program)
        if re.match(r"(README|broker/README|fetcher/README)\.md", place) and words
    }
    found -= {(*endless,) for endless in ENDLESS}
    return [
        list(command)
        for command in sorted(found)
        if not any(command[: len(other)] == other for other in ELSEWHERE)
    ]


def asin_of(stack: RunningStack) -> str:
    """The ASIN of a stored deal."""
    _, output = stack.run([sys.executable, "-m", "fetcher", "deals", "-o", "json"])
    found = re.search(r'"asin": ?"(\w+)"', output)
    assert found is not None, output
    return found[1]


def holder_in(stack: RunningStack) -> str:
    """A holder of calls that the journal has."""
    command = [sys.executable, "-m", "broker", "spend", "--by", "holder", "-o", "json"]
    rows: list[dict[str, str]] = []

    def spent() -> bool:
        _, output = stack.run(command)
        rows[:] = json.loads(output)["rows"]
        return bool(rows)

    wait_until(spent, "a call in the journal")
    return rows[0]["holder"]


@pytest.mark.slow
def test_the_documented_commands_work(stack: RunningStack) -> None:
    """Every command of the three documents ends with exit code 0 beside `make run`."""
    examples = {"ASIN": asin_of(stack), "LEASE_ID": holder_in(stack)}
    commands = []
    for program, module in PROGRAMS.items():
        for command in documented(program):
            arguments = [examples.get(word, word) for word in command[1:]]
            commands.append([sys.executable, "-m", module, *arguments])

    def outcome(command: list[str]) -> tuple[int, str]:
        return stack.run(command, endless=command[2:4] == ["broker", "watch"])

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(outcome, commands))
    failed = {
        " ".join(command[2:]): output
        for command, (code, output) in zip(commands, outcomes, strict=True)
        if code != 0 or "Traceback" in output
    }

    assert len(commands) > 15
    assert failed == {}


@pytest.mark.skipif(shutil.which("psql") is None, reason="psql is not installed")
def test_the_documented_statements_find_something(stack: RunningStack) -> None:
    """Every psql line of fetcher/README.md prints at least one row."""
    url = stack.environment["DATABASE_URL"]
    statements = [words[-1] for place, words in of("psql") if "fetcher/README" in place]
    outcomes = [
        stack.run(["psql", url, "-v", "ON_ERROR_STOP=1", "-c", statement])
        for statement in statements
    ]

    assert len(statements) > 3
    assert [output for code, output in outcomes if code != 0] == []
    assert all(not re.search(r"\(0 rows\)", output) for _, output in outcomes)
