"""Starts and sizes: commands until they end, a broker that was killed until its first grant, the
whole stack until its first deal, memory.

A command's time is that of a fresh process. Beside it stands the time of an interpreter that
does nothing, which was started in turn with it.
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import psycopg

from deploy.keepa_simulator.options import DEMO_KEY
from deploy.local.program import Program
from tests.bench import bench_restart
from tests.bench.processes import resident_mb
from tests.bench.table import Row, at_most
from tests.fix_broker import environment, launch_broker
from tests.fix_simulator import launch_simulator

ROOT: Final = Path(__file__).parents[2]
ROUNDS: Final = 9
QUICK_ROUNDS: Final = 3
TIMEOUT_S: Final = 90.0
# Long enough for every process to have done each kind of its work.
SETTLE_S: Final = 6.0
# Modules of the commands, and their arguments; {broker} is an address.
STATUS: Final = ("broker", "status", "--address", "{broker}")
COMMANDS: Final[Sequence[Sequence[str]]] = (
    STATUS,
    ("broker", "leases", "--address", "{broker}"),
    ("broker", "serve", "--help"),
    ("fetcher", "run", "--help"),
    ("fetcher", "queries", "check"),
    ("fetcher.gateway", "serve", "--help"),
    ("deploy.keepa_simulator", "serve", "--help"),
)
NAMES: Final = {
    "broker": "tokenbroker",
    "fetcher": "dealfetcher",
    "fetcher.gateway": "keepa-gateway",
    "deploy.keepa_simulator": "keepa-simulator",
}
STATUS_GOAL: Final = at_most(300)
RSS_GOAL: Final = at_most(60)
IMAGES: Final = ("broker", "fetcher", "gateway", "simulator")
STATUS_WHY: Final = (
    "gRPC with protobuf and asyncio takes half of it to load, typer with the pydantic that it"
    " reads options by a third; see beside on a busy machine"
)
RSS_WHY: Final = (
    "libraries, by what their import adds: gRPC 13 MB, pydantic 13, asyncio with TLS 11, Python 9,"
    " psycopg 9, aiohttp 8, requests 6"
)


def timed(command: Sequence[str], variables: dict[str, str]) -> tuple[float, float]:
    """Milliseconds until a process ends, and of processor time."""
    before, began_s = os.times(), time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, check=True)
    took_s, after = time.perf_counter() - began_s, os.times()
    used_s = after.children_user + after.children_system
    used_s -= before.children_user + before.children_system
    return took_s * 1000, used_s * 1000


def commands(shown: Sequence[Sequence[str]], rounds: int, address: str) -> Iterator[Row]:
    """Times of the *shown* commands, warm; of `tokenbroker status` in a full run also cold."""
    variables = environment(queries=ROOT / "deploy/queries")
    bare = (sys.executable, "-c", "pass")
    for module, *arguments in shown:
        filled = [argument.format(broker=address) for argument in arguments]
        command = (sys.executable, "-m", module, *filled)
        timed(command, variables)
        taken = [(timed(command, variables), timed(bare, variables)) for _ in range(rounds)]
        is_status = (module, *arguments) == STATUS
        wall_ms = [ours[0] for ours, _ in taken]
        used_ms = statistics.median(ours[1] for ours, _ in taken)
        bare_ms = statistics.median(other[0] for _, other in taken)
        words = " ".join(argument for argument in arguments if "{" not in argument)
        yield Row(
            f"warm start of {NAMES[module]} {words.removesuffix(' --address')}",
            statistics.median(wall_ms),
            "ms",
            STATUS_GOAL if is_status else None,
            f"{used_ms:.0f} ms of processor time; {bare_ms:.0f} ms: an interpreter alone",
            STATUS_WHY if is_status else "",
            {"ms": wall_ms},
        )
        if is_status and len(shown) > 1:
            with tempfile.TemporaryDirectory() as empty:
                cold = {**variables, "PYTHONPYCACHEPREFIX": empty}
                wall, used = timed(command, cold)
            yield Row(
                f"cold start of {NAMES[module]} status, no module compiled",
                wall,
                "ms",
                beside=f"{used:.0f} ms of processor time",
            )


def stack(folder: Path) -> tuple[float, dict[str, float]]:
    """Starts the stack; returns the seconds to its first deal, and the memory of each program."""
    program = Program(
        "stack",
        [sys.executable, "-m", "deploy.local"],
        environment=environment(
            data_dir=folder, broker_listen="127.0.0.1:0", broker_http_listen="127.0.0.1:0"
        ),
        log_path=folder / "bench.log",
        folder=ROOT,
    )
    began_s = time.monotonic()
    program.start()
    try:
        program.await_ready(lambda: has_deals(folder), TIMEOUT_S)
        first_s = time.monotonic() - began_s
        time.sleep(SETTLE_S)
        return first_s, memory(program.pid)
    finally:
        program.stop()


def has_deals(folder: Path) -> bool:
    """Whether the database holds a deal."""
    try:
        url = (folder / "database-url").read_text().strip()
        with psycopg.connect(url, connect_timeout=1) as connection:
            return connection.execute("SELECT 1 FROM deals LIMIT 1").fetchone() is not None
    except (FileNotFoundError, psycopg.Error):
        return False


def memory(stack_pid: int) -> dict[str, float]:
    """Resident megabytes of the stack's programs; of several of a kind, the largest."""
    listing = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(stack_pid)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    largest: dict[str, float] = {}
    for line in listing.splitlines():
        pid, command = line.split(maxsplit=1)
        if module := re.search(r"-m ([\w.]+ ?[a-z]*)", command):
            name = module[1].strip()
            largest[name] = max(largest.get(name, 0.0), resident_mb(int(pid)))
    return largest


def images() -> Iterator[Row]:
    """Sizes of the images that an engine here holds, if there is one."""
    engine = shutil.which("docker") or shutil.which("podman")
    for role in IMAGES if engine else ():
        found = subprocess.run(
            [str(engine), "images", "--format", "{{.Size}}", f"keepa-{role}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if size := re.match(r"([\d.]+)\s*([MG]B)", found.stdout):
            megabytes = float(size[1]) * (1000 if size[2] == "GB" else 1)
            yield Row(f"image keepa-{role}", megabytes, "MB")


def rows(quick: bool) -> Iterator[Row]:  # noqa: FBT001 - as all benches
    """Commands, a restart, the stack, images; quickly, only the most used command."""
    keepa = launch_simulator(products=100, deals=10)
    try:
        with tempfile.TemporaryDirectory(prefix="keepa-bench-") as name:
            broker = launch_broker(keepa.base_url, DEMO_KEY, folder=Path(name), name="broker")
            try:
                yield from (
                    commands([STATUS], QUICK_ROUNDS, broker.address)
                    if quick
                    else commands(COMMANDS, ROUNDS, broker.address)
                )
            finally:
                broker.program.stop()
    finally:
        keepa.stop()
    if quick:
        return
    yield from bench_restart.rows(quick)
    with tempfile.TemporaryDirectory(prefix="keepa-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        first_s, resident = stack(folder / "data")
    yield Row("whole stack, empty database, until the first deal", first_s, "s")
    for program, megabytes in resident.items():
        goal = RSS_GOAL if program.startswith(("broker", "fetcher")) else None
        yield Row(f"resident memory of {program}", megabytes, "MB", goal, "", RSS_WHY)
    yield from images()
