"""Rules of the house that the linters can't express; ARCHITECTURE.md gives the reasons."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROTO = "protos/tokenbroker/v1/token_broker.proto"
FUNCTION_LINES_MAX = 70

# Pure: all input comes in as parameters.
PURE_FOLDERS = ("broker/core", "fetcher/replies", "fetcher/queries", "fetcher/scans")
PURE = [
    *(path for folder in PURE_FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))),
    *(ROOT / "deploy/local" / name for name in ("log_line.py", "restarts.py")),
]
IMPURE_MODULES = {
    *("aiohttp", "asyncio", "grpc", "logging", "os", "protos", "psycopg", "pydantic_settings"),
    *("random", "requests", "socket", "structlog", "subprocess", "threading", "time"),
}
# Protobuf's types stay where messages are read and written.
PROTOBUF_PLACES = ("broker/commands/", "broker/rpc/", "broker/server.py", "fetcher/broker_client/")
SQL_PLACES = ("fetcher/postgres/", "broker/journal/")
SQL = re.compile(
    r"^\s*(SELECT|INSERT INTO|UPDATE|DELETE FROM|WITH \w+ AS|ALTER|CREATE) ", re.MULTILINE
)


@cache
def parsed(folder: str) -> list[tuple[str, ast.Module]]:
    """The project's own modules under *folder*: the path from the root, and the syntax tree."""
    return [
        (path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8")))
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "_pb2" not in path.name
    ]


def sources(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    """All modules under *folders*."""
    return chain.from_iterable(map(parsed, folders))


def imports(tree: ast.AST) -> set[str]:
    """Every module that is imported anywhere in *tree*."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the body; neither a long signature nor a docstring makes a function long."""
    body = function.body
    if ast.get_docstring(function, clean=False) is not None:
        body = body[1:]
    if not body:
        return 0
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


def strings(tree: ast.AST) -> Iterator[str]:
    """The string constants in *tree*."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("path", PURE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pure_modules_touch_nothing_of_the_world(path: Path) -> None:
    """A module that decides imports no clock, chance, network, settings or protobuf."""
    found = imports(ast.parse(path.read_text("utf-8")))
    impure = {name for name in found if name.split(".")[0] in IMPURE_MODULES}
    settings = {name for name in found if name.rpartition(".")[2] == "settings"}

    assert impure | settings == set()


def test_no_function_is_long() -> None:
    """A function fits on a screen."""
    long = [
        f"{path}: {node.name} has {body_lines(node)} lines"
        for path, tree in sources("broker", "fetcher", "deploy", "tests")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and body_lines(node) > FUNCTION_LINES_MAX
    ]

    assert long == []


def test_the_environment_is_read_in_settings_only() -> None:
    """Only the settings modules read environment variables."""
    readers = {
        path
        for path, tree in sources("broker", "fetcher", "deploy")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in {("os", "environ"), ("os", "getenv")}
    }

    assert {path for path in readers if not path.endswith("/settings.py")} == set()


def test_sql_stands_in_its_own_packages_only() -> None:
    """All SQL stands in one folder of each side."""
    places = {
        path
        for path, tree in sources("broker", "fetcher")
        if any(SQL.search(text) for text in strings(tree))
    }

    assert places
    assert {path for path in places if not path.startswith(SQL_PLACES)} == set()


def test_protobuf_stays_at_the_edge() -> None:
    """Only the gRPC side imports protobuf messages."""
    users = {
        path
        for path, tree in sources("broker", "fetcher")
        if any(name.startswith("protos.tokenbroker") for name in imports(tree))
    }

    assert {path for path in users if not path.startswith(PROTOBUF_PLACES)} == set()


def test_the_client_can_be_used_without_the_rest_of_the_fetcher() -> None:
    """Other programs share the bucket without Postgres, Keepa's client or our settings."""
    program = (
        "import sys, fetcher.broker_client;"
        "print(*sorted(name for name in sys.modules if name.startswith('fetcher.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name for name in done.stdout.split() if not name.startswith("fetcher.broker_client")}

    assert loaded <= {"fetcher.replies", "fetcher.replies.envelope", "fetcher.replies.record"}


def test_the_client_loads_few_libraries() -> None:
    """A program that shares the bucket loads gRPC, protobuf and OpenTelemetry's API only."""
    program = (
        "import sys, fetcher.broker_client; print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy = {"aiohttp", "psycopg", "typer", "rich", "pydantic", "pydantic_settings", "structlog"}
    heavy |= {"requests", "prometheus_client", "yoyo", "uvloop", "stamina"}

    assert {"fetcher", "grpc"} <= set(done.stdout.split())
    assert heavy & set(done.stdout.split()) == set()


def test_broker_and_fetcher_share_no_copies() -> None:
    """What both do alike stands once, in protos/process or protos/channel."""
    bodies: dict[str, set[str]] = {}
    for path, tree in sources("broker", "fetcher"):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and body_lines(node) > 3:
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                text = "\n".join(ast.dump(statement) for statement in body)
                bodies.setdefault(text, set()).add(f"{path}: {node.name}")
    copies = [
        places
        for places in bodies.values()
        if len({place.partition("/")[0] for place in places}) > 1
    ]

    assert copies == []


def unexplained(lines: list[str]) -> Iterator[int]:
    """Numbers of the lines that silence a linter without a reason, there or just above."""
    silenced = re.compile(r"# noqa")
    explained = re.compile(r"# noqa: [A-Z0-9, ]+ - \S")
    above_explains = False
    for number, line in enumerate(lines, 1):
        is_silenced = silenced.search(line) is not None
        if is_silenced and not above_explains and not explained.search(line):
            yield number
        # A comment explains the whole run of lines below it.
        above_explains = line.lstrip().startswith("#") or (above_explains and is_silenced)


def test_exceptions_to_the_linters_are_explained() -> None:
    """Where a linter is silenced, the reason stands beside it."""
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for folder in ("broker", "fetcher", "deploy")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for number in unexplained(path.read_text("utf-8").splitlines())
    ]

    assert found == []


def test_the_generated_modules_are_fresh(tmp_path: Path) -> None:
    """What is committed is what the contract generates."""
    outputs = [f"--{kind}={tmp_path}" for kind in ("python_out", "grpc_python_out")]
    outputs += [f"--{kind}=quiet:{tmp_path}" for kind in ("mypy_out", "mypy_grpc_out")]
    tools = Path(sys.executable).parent
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *outputs, PROTO],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
        check=True,
    )
    generated = {path.relative_to(tmp_path): path.read_text("utf-8") for path in _files(tmp_path)}
    committed = {path: (ROOT / path).read_text("utf-8") for path in generated}

    assert len(generated) == 4
    assert committed == generated


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
