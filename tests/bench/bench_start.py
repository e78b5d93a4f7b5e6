"""The time to the first deal, and the memory of each process.

Run it with `python -m tests.bench.bench_start`: it starts the stack several times, each
with an empty database, so a first deal is a first deal; the programs are warm.
"""

import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psycopg

from deploy.local.program import Program
from tests.fix_broker import environment

ROOT: Final = Path(__file__).parents[2]
TIMEOUT_S: Final = 60.0
# Long enough for every process to have done each kind of its work.
SETTLE_S: Final = 6.0
STARTS: Final = 4


@dataclass(slots=True)
class Start:
    """One start of the stack: seconds, and resident megabytes by program."""

    first_deal_s: float
    rss_mb: dict[str, float] = field(default_factory=dict)


def measure(folder: Path) -> Start:
    """Starts the stack, waits for the first deal, measures the processes, stops it."""
    stack = Program(
        "stack",
        [sys.executable, "-m", "deploy.local"],
        environment=environment(
            data_dir=folder, broker_listen="127.0.0.1:0", broker_http_listen="127.0.0.1:0"
        ),
        log_path=folder / "bench.log",
        folder=ROOT,
    )
    began_s = time.monotonic()
    stack.start()
    try:
        stack.await_ready(lambda: has_deals(folder), TIMEOUT_S)
        start = Start(time.monotonic() - began_s)
        time.sleep(SETTLE_S)
        start.rss_mb = resident_mb(stack.pid)
    finally:
        stack.stop()
    return start


def has_deals(folder: Path) -> bool:
    """Whether the database holds a deal."""
    try:
        url = (folder / "database-url").read_text().strip()
        with psycopg.connect(url, connect_timeout=1) as connection:
            return connection.execute("SELECT 1 FROM deals LIMIT 1").fetchone() is not None
    except (FileNotFoundError, psycopg.Error):
        return False


def resident_mb(stack_pid: int) -> dict[str, float]:
    """Resident memory of the stack and of each program, by its kind."""
    listing = subprocess.run(
        ["ps", "-o", "pid=,rss=,args=", "--pid", str(stack_pid), "--ppid", str(stack_pid)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    weights = {}
    for line in listing.splitlines():
        pid, kilobytes, command = line.split(maxsplit=2)
        module = re.search(r"-m ([\w.]+)", command)
        name = module[1] if module else Path(command.split()[0]).name
        weights[f"{name} ({pid})"] = int(kilobytes) / 1024
    return weights


def main() -> None:
    """Prints the figures."""
    with tempfile.TemporaryDirectory(prefix="keepa-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for number in range(STARTS):
            start = measure(folder / f"data-{number}")
            print(f"first deal after {start.first_deal_s:.1f} s")  # noqa: T201 - the result
        for program, megabytes in start.rss_mb.items():
            print(f"  {megabytes:6.1f} MB  {program}")  # noqa: T201 - the result


if __name__ == "__main__":
    main()
