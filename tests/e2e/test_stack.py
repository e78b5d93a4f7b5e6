"""The whole stack by one command: its work, its end, its errors."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from deploy.local.command import main
from deploy.local.ports import free_port
from deploy.local.program import Program
from tests.e2e.collection import fetch, stored_deals
from tests.fix_broker import StartProgram, environment
from tests.fix_simulator import StartSimulator
from tests.in_process import run_here
from tests.waiting import DEADLINE_S, wait_until

ROOT = Path(__file__).parents[2]
# Unlike any other text, so finding it in an output means a leak.
KEY = "k3y" + "fedcba9876543210" * 4
ANY_PORTS = dict.fromkeys(
    (
        "broker_listen",
        "broker_http_listen",
        "gateway_listen",
        "gateway_http_listen",
        "console_listen",
    ),
    "127.0.0.1:0",
)
QUERIES = {"queries": ROOT / "deploy" / "queries"}


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder that every account can enter, which Postgres under root needs."""
    with tempfile.TemporaryDirectory(prefix="keepa-stack-") as name:
        Path(name).chmod(0o755)
        yield Path(name) / "data"


def run_stack(folder: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    """Runs the stack to its end."""
    given = environment(**{**ANY_PORTS, **QUERIES, "data_dir": folder / "data", **settings})
    return subprocess.run(
        [sys.executable, "-m", "deploy.local"],
        cwd=folder,
        env=given,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def descendants(pid: int) -> set[int]:
    """The process and all its descendants."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def living(pids: set[int]) -> set[int]:
    """Those of *pids* that run; a zombie doesn't."""
    alive = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in {"Z", "X"}:
            alive.add(pid)
    return alive


def has_deals(stack: Program) -> bool:
    """Whether the stack has shown a page that was read."""
    return "page read" in stack.output()


def test_a_timed_run_stores_exactly_what_was_served(
    start_simulator: StartSimulator, empty_database_url: str, tmp_path: Path
) -> None:
    """The stack stops by itself; rows and tokens agree with the simulator's journal."""
    simulator = start_simulator(
        api_key=KEY, rate=5, initial_tokens=20, tick_seconds=1, cache_seconds=2, deal_speed=60
    )
    done = run_stack(
        tmp_path,
        run_seconds=20,
        keepa_base_url=simulator.base_url,
        keepa_api_key=KEY,
        database_url=empty_database_url,
        poll_speed=60,
    )
    stats = simulator.stats()
    spent = re.search(r"tokens  (\d+) spent", done.stdout)
    rows = fetch(empty_database_url, "SELECT count(*) FROM verdicts")

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert stored_deals(empty_database_url) == simulator.served_deals() != {}
    assert spent is not None
    assert int(spent[1]) == stats["spent"] > 0
    assert stats["throttled"] == 0
    assert rows[0][0] > 0
    assert simulator.base_url in done.stdout
    assert KEY not in done.stdout
    assert "Traceback" not in done.stdout


def test_a_dead_proxy_does_not_stand_before_the_parts_of_this_machine(
    start_simulator: StartSimulator, empty_database_url: str, tmp_path: Path
) -> None:
    """Calls to the broker and to the simulator bypass the proxy."""
    simulator = start_simulator(api_key=KEY, rate=20, initial_tokens=100, tick_seconds=1)
    dead = f"http://127.0.0.1:{free_port()}"
    done = run_stack(
        tmp_path,
        run_seconds=20,
        keepa_base_url=simulator.base_url,
        keepa_api_key=KEY,
        database_url=empty_database_url,
        poll_speed=60,
        http_proxy=dead,
        https_proxy=dead,
        all_proxy=dead,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert stored_deals(empty_database_url) != {}, done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="other systems can't tether a child")
def test_nothing_survives_a_stack_that_is_killed(
    start_program: StartProgram, data_dir: Path
) -> None:
    """SIGKILL of the parent ends the simulator, Postgres, broker and fetchers."""
    stack = start_program("deploy.local", **ANY_PORTS, **QUERIES, data_dir=data_dir)
    wait_until(lambda: has_deals(stack) or not stack.running, "the first page")
    family = descendants(stack.pid)
    stack.kill()
    wait_until(lambda: not living(family), "the end of all programs")

    # Itself, the simulator, the broker, three fetchers, Postgres and its helpers.
    assert len(family) > 7
    assert not (data_dir / "postgres" / "postmaster.pid").exists()


def test_an_interrupt_ends_everything_in_order_and_the_data_stays(
    start_program: StartProgram, data_dir: Path
) -> None:
    """Ctrl-C ends with a summary and exit code 0; the next run has the deals still."""
    first = start_program("deploy.local", **ANY_PORTS, **QUERIES, data_dir=data_dir, fetchers=1)
    wait_until(lambda: has_deals(first) or not first.running, "the first page")
    family = descendants(first.pid)
    os.kill(first.pid, signal.SIGINT)
    first_code = first.wait(DEADLINE_S)
    stored = re.search(r"deals   (\d+) stored", first.output())
    second = start_program(
        "deploy.local", **ANY_PORTS, **QUERIES, data_dir=data_dir, fetchers=0, run_seconds=3
    )
    second_code = second.wait(DEADLINE_S)
    found = re.search(r"deals   (\d+) stored, 0 new", second.output())

    assert (first_code, second_code) == (0, 0)
    assert not living(family)
    assert stored is not None
    assert found is not None
    assert int(stored[1]) == int(found[1]) > 0
    assert first.output().index("fetcher stopped") < first.output().index("broker stopped")
    assert "0 refused (429)" in first.output()


def test_a_killed_broker_or_fetcher_is_started_again(
    start_program: StartProgram, database_url: str, data_dir: Path
) -> None:
    """The stack reports and restarts them, and goes on collecting."""
    stack = start_program(
        "deploy.local",
        **ANY_PORTS,
        **QUERIES,
        data_dir=data_dir,
        database_url=database_url,
        fetchers=1,
    )
    wait_until(lambda: has_deals(stack) or not stack.running, "the first page")
    for words in ([b"-m", b"broker", b"serve"], [b"-m", b"fetcher", b"run"]):
        for pid in descendants(stack.pid):
            # Postgres' processes come and go.
            with suppress(FileNotFoundError, ProcessLookupError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if command[1:4] == words:
                    os.kill(pid, signal.SIGKILL)
    again = "starting again"
    wait_until(lambda: stack.output().count(again) == 2, "both to be missed")
    pages = stack.output().count("page read")
    wait_until(lambda: stack.output().count("page read") > pages, "another page")
    os.kill(stack.pid, signal.SIGTERM)
    code = stack.wait(DEADLINE_S)

    assert code == 0
    assert "broker ended (killed by SIGKILL); starting again" in stack.output()
    assert "0 refused (429)" in stack.output()


@pytest.mark.parametrize(
    ("settings", "exit_code", "complaint"),
    [
        ({"fetchers": "many"}, 2, "FETCHERS"),
        ({"run_seconds": "-1"}, 2, "RUN_SECONDS"),
        ({"queries": "/nowhere"}, 2, "QUERIES: /nowhere is no folder"),
        ({"keepa_base_url": "ftp://x", "keepa_api_key": KEY}, 2, "KEEPA_BASE_URL"),
        ({"keepa_base_url": "http://127.0.0.1:1"}, 2, "KEEPA_API_KEY"),
        ({"broker_listen": "nonsense"}, 2, "BROKER_LISTEN"),
        ({"data_dir": "/proc/nowhere"}, 1, "DATA_DIR"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_is_named_in_one_line(
    settings: dict[str, str], exit_code: int, complaint: str, tmp_path: Path
) -> None:
    """The error names an unusable setting, and nothing starts."""
    given = environment(**{**ANY_PORTS, **QUERIES, "data_dir": tmp_path / "data", **settings})
    done = run_here(lambda: sys.exit(main()), "stack", (), environment=given, folder=tmp_path)

    assert done.returncode == exit_code
    assert len(done.stderr.splitlines()) == 1
    assert complaint in done.stderr
    assert KEY not in done.stderr
    assert done.stdout == ""


def test_a_taken_port_is_named_with_its_setting(tmp_path: Path) -> None:
    """The line names the setting of the port; the other server stays untouched."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run_stack(tmp_path, broker_listen=address)

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert f"BROKER_LISTEN: {address} is taken" in done.stderr


def test_a_database_that_is_down_is_named_without_its_password(tmp_path: Path) -> None:
    """The stack ends with one line that names the wrong setting."""
    url = f"postgresql://deals:hush-hush@127.0.0.1:{free_port()}/deals"
    done = run_stack(tmp_path, database_url=url)

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "DATABASE_URL" in done.stderr
    assert "hush-hush" not in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_key_that_keepa_refuses_ends_the_stack(
    start_simulator: StartSimulator, database_url: str, tmp_path: Path
) -> None:
    """No retry mends a wrong key, so the stack names it and ends."""
    simulator = start_simulator()
    done = run_stack(
        tmp_path, keepa_base_url=simulator.base_url, keepa_api_key=KEY, database_url=database_url
    )

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "KEEPA_API_KEY" in done.stderr
    assert KEY not in done.stdout + done.stderr
    assert "Traceback" not in done.stdout


def test_an_unreachable_keepa_is_asked_again_without_a_flood(
    database_url: str, tmp_path: Path
) -> None:
    """The stack reports the outage in one line and waits, because Keepa may come back."""
    done = run_stack(
        tmp_path,
        keepa_base_url=f"http://127.0.0.1:{free_port()}",
        keepa_api_key=KEY,
        database_url=database_url,
        run_seconds=8,
    )

    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.count("can't be reached") == 1
    assert KEY not in done.stdout
    assert "Traceback" not in done.stdout
