"""The wheel: each role brings its own libraries, the client library next to none."""

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from importlib.metadata import Distribution, distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BASE = {"grpcio", "protobuf", "opentelemetry-api"}
ROLES = {"broker", "fetcher", "gateway", "mcp", "parquet", "simulator", "local", "all", "dev"}

# Refuses every library that the role does not bring, as if it were not installed.
REFUSING = """
import json, sys
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    def __init__(self, names):
        self.names = set(names)

    def find_spec(self, name, path=None, target=None):
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

wheel, refused = sys.argv.pop(1), json.loads(sys.argv.pop(1))
sys.meta_path.insert(0, Refuse(refused))
sys.path.insert(0, wheel)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the wheel of this tree is unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    [file] = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    """The wheel's metadata."""
    [path] = wheel.glob("*.dist-info/METADATA")
    return Parser().parsestr(path.read_text("utf-8"))


def asked(metadata: Message, extra: str = "") -> list[Requirement]:
    """What an installation with *extra* asks for; itself with other extras is resolved."""
    found = []
    for text in metadata.get_all("Requires-Dist", []):
        one = Requirement(text)
        if one.marker and not one.marker.evaluate({"extra": extra}):
            continue
        if one.name == metadata["Name"]:
            found += [more for other in one.extras for more in asked(metadata, other)]
        else:
            found.append(one)
    return found


def closure(requirements: list[Requirement]) -> set[str]:
    """Names of all distributions that *requirements* bring, theirs included."""
    found: set[str] = set()
    todo = [(one.name, frozenset(one.extras)) for one in requirements]
    while todo:
        name, extras = todo.pop()
        found.add(canonicalize_name(name))
        known: Distribution = distribution(name)
        for text in known.requires or []:
            one = Requirement(text)
            wanted = one.marker is None or any(
                one.marker.evaluate({"extra": extra}) for extra in ("", *extras)
            )
            if wanted and canonicalize_name(one.name) not in found:
                todo.append((one.name, frozenset(one.extras)))
    return found


def run(
    wheel: Path, metadata: Message, extra: str, program: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Runs *program* on the unpacked wheel, with the libraries of *extra* only."""
    brought = closure(asked(metadata, extra))
    refused = [
        module
        for module, owners in packages_distributions().items()
        if not {canonicalize_name(owner) for owner in owners} & brought
    ]
    words = [str(wheel), json.dumps(sorted(set(refused) - {"broker", "fetcher", "deploy"}))]
    return subprocess.run(
        [sys.executable, "-P", "-c", REFUSING + program, *words, *arguments],
        cwd=wheel,
        env={name: text for name, text in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_base_brings_what_the_client_library_needs(metadata: Message) -> None:
    """`pip install keepa-token-broker` in another program adds three libraries and theirs."""
    assert {one.name for one in asked(metadata)} == BASE


def test_each_role_is_an_extra(metadata: Message) -> None:
    """Extras name the roles; local holds all three programs, and all holds local."""
    brought = {role: {one.name for one in asked(metadata, role)} for role in ROLES}

    assert set(metadata.get_all("Provides-Extra", [])) == ROLES
    assert {"grpcio-reflection", "uvloop"} & brought["fetcher"] == set()
    assert {"pydantic-settings", "structlog", "requests"} & brought["simulator"] == set()
    assert brought["broker"] | brought["fetcher"] | brought["simulator"] <= brought["local"]
    assert brought["local"] <= brought["all"] < brought["dev"]


def test_the_client_library_needs_the_base_only(wheel: Path, metadata: Message) -> None:
    """It connects, too: nothing is loaded late."""
    program = (
        "from fetcher.broker_client import BrokerClient, BrokerClientError\n"
        "try:\n"
        "    with BrokerClient('127.0.0.1:1') as client:\n"
        "        client.get_bucket(timeout_s=0.2)\n"
        "except BrokerClientError as exc:\n"
        "    import fetcher; print(fetcher.__file__)\n"
    )
    done = run(wheel, metadata, "", program)

    assert done.stderr == ""
    assert done.stdout.startswith(str(wheel))


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        ("tokenbroker", "broker.start", "broker"),
        ("dealfetcher", "fetcher.start", "fetcher"),
        ("keepa-gateway", "fetcher.gateway.start", "gateway"),
        ("keepa-simulator", "deploy.keepa_simulator.start", "simulator"),
    ],
)
def test_a_command_without_its_extra_names_it(
    wheel: Path, metadata: Message, command: str, module: str, extra: str
) -> None:
    """One line with the command to type instead of a traceback; with the extra it works."""
    program = f"import sys; sys.argv[0] = '/bin/{command}'; import {module}; {module}.main()"
    without = run(wheel, metadata, "", program, "--version")
    within = run(wheel, metadata, extra, program, "--help")

    assert without.returncode == 1
    assert without.stderr == (
        f"{command}: the library typer is not installed:"
        f" pip install 'keepa-token-broker[{extra}]'\n"
    )
    assert within.returncode == 0, within.stderr


def test_another_role_does_not_stand_in(wheel: Path, metadata: Message) -> None:
    """The fetcher's libraries start no broker; the line names what is missing."""
    program = "import sys; sys.argv[0] = 'tokenbroker'; import broker.start; broker.start.main()"
    done = run(wheel, metadata, "fetcher", program, "serve")

    assert done.returncode == 1
    assert done.stderr.endswith("pip install 'keepa-token-broker[broker]'\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("role", "modules"),
    [
        (
            "broker",
            [
                "broker.server",
                "broker.http_port",
                "broker.commands.watch",
                "protos.process.tracing",
            ],
        ),
        ("fetcher", ["fetcher.commands.run", "fetcher.commands.doctor", "fetcher.commands.look"]),
        ("mcp", ["fetcher.gateway.mcp_server"]),
        ("gateway", ["fetcher.gateway.server", "protos.process.tracing"]),
        ("simulator", ["deploy.keepa_simulator.__main__"]),
        ("local", ["deploy.local.command"]),
    ],
)
def test_an_extra_is_enough_for_its_role(
    wheel: Path, metadata: Message, role: str, modules: list[str]
) -> None:
    """Everything that the role's processes import is in its extra."""
    done = run(wheel, metadata, role, f"import {', '.join(modules)}")

    assert done.returncode == 0, done.stderr


def test_scripts_start_where_a_library_may_be_missing(wheel: Path) -> None:
    """The entry points are the modules that name the extra."""
    [path] = wheel.glob("*.dist-info/entry_points.txt")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

    assert [line for line in path.read_text("utf-8").splitlines() if "=" in line] == sorted(
        f"{name} = {place}" for name, place in project["scripts"].items()
    )
    assert all(place.endswith(".start:main") for place in project["scripts"].values())


def test_the_lock_pins_what_is_asked_for() -> None:
    """constraints.txt fits pyproject.toml, names one version of each, and no registry."""
    text = (ROOT / "constraints.txt").read_text("utf-8")
    pinned = {
        canonicalize_name(one.name): str(one.specifier).removeprefix("==")
        for line in text.splitlines()
        if line and not line.startswith("#")
        for one in [Requirement(line)]
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [
        Requirement(line)
        for table in [project["dependencies"], *project["optional-dependencies"].values()]
        for line in table
    ]
    misfits = [
        str(one)
        for one in wanted
        if one.name != project["name"]
        and not one.specifier.contains(pinned[canonicalize_name(one.name)])
    ]
    check = subprocess.run([sys.executable, ROOT / ".ci/lock.py", "--check"], check=False)

    assert misfits == []
    assert "://" not in text
    assert check.returncode == 0
