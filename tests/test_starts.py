"""What each command loads: a start is as slow, and a process as large, as its libraries."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each in a process of its own; `loading` is what the commands themselves use.
SERVER = (
    "from protos.process.loading import loading\nwith loading(without=('rich',)):\n    import "
)
COMMANDS = {
    # Typer loads pydantic once it reads an option.
    "tokenbroker": ("import broker.__main__", {"grpc", "typer"}, {"pydantic", "rich"}),
    "tokenbroker status": (
        "import broker.__main__ as m; from broker.commands import tables; m._target(None)",
        {"grpc", "rich"},
        {"pydantic", "pygments"},
    ),
    "tokenbroker status -o json": (
        "import broker.__main__ as m; from broker.commands import inspect; m._target(None)",
        {"grpc"},
        {"pydantic", "rich"},
    ),
    "tokenbroker serve": (
        # With a journal. The HTTP port loads once Keepa has answered; test_server.py sees it.
        f"{SERVER}broker.__main__, broker.server, broker.journal.journal",
        {"prometheus_client", "psycopg", "requests", "structlog"},
        {"aiohttp", "cryptography", "jinja2", "yoyo"},
    ),
    "tokenbroker serve, its HTTP port": (
        f"{SERVER}broker.__main__, broker.server, broker.http_port",
        {"aiohttp", "jinja2"},
        {"cryptography", "psycopg", "yoyo"},
    ),
    "dealfetcher": ("import fetcher.__main__", {"typer"}, {"psycopg", "rich"}),
    "dealfetcher scans": (
        "import fetcher.__main__, fetcher.commands.look",
        {"psycopg"},
        {"rich", "structlog"},
    ),
    "dealfetcher run": (
        f"{SERVER}fetcher.__main__, fetcher.commands.run",
        {"psycopg", "structlog"},
        {"aiohttp", "apprise", "jinja2", "prometheus_client", "uvloop", "yoyo"},
    ),
    "keepa-gateway": ("import fetcher.gateway.__main__", {"typer"}, {"aiohttp", "structlog"}),
    "keepa-gateway serve": (
        f"{SERVER}fetcher.gateway.__main__, fetcher.gateway.server",
        {"aiohttp"},
        {"psycopg", "jinja2"},
    ),
}
# What commands that end at once must not load, and servers neither.
OF_SERVERS = {"aiohttp", "jinja2", "opentelemetry.sdk", "prometheus_client", "requests", "yoyo"}
OF_NONE = {"opentelemetry.sdk", "pytest"}
OF_TERMINALS = {"pygments", "rich", "typer.rich_utils"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_loads_only_what_it_uses(command: str) -> None:
    """No library that the others need, and none that is loaded just because it is there."""
    statement, used, spared = COMMANDS[command]
    if statement.startswith(SERVER):
        spared = spared | OF_TERMINALS | OF_NONE
    else:
        spared = spared | OF_SERVERS | OF_NONE
    program = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())

    assert used <= loaded
    assert spared & loaded == set()


def test_a_spared_library_can_be_loaded_later() -> None:
    """It is hidden while a server loads only, and not at all if it is there already."""
    program = (
        "import gc, json\n"
        "from protos.process.loading import loading\n"
        "with loading(without=('rich', 'json')):\n"
        "    import structlog, json; print(gc.isenabled())\n"
        "import rich; print(structlog.dev.rich, rich.__name__, gc.isenabled())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["False", "None", "rich", "True"]
