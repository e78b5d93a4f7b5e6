"""docker-compose.yml fits its programs and restricts them."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings

from broker.settings import ServeSettings
from deploy.keepa_simulator.options import DEMO_KEY
from fetcher.gateway.settings import GatewaySettings
from fetcher.settings import Settings
from protos.process.addresses import Listen
from protos.process.settings import ClientSettings, TracingSettings

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "deploy/docker"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SIMULATOR: dict[str, Any] = yaml.safe_load((DOCKER / "simulator.yml").read_text("utf-8"))
TLS: dict[str, Any] = yaml.safe_load((DOCKER / "tls.yml").read_text("utf-8"))
SERVICES: dict[str, Any] = {
    **COMPOSE["services"],
    "simulator": SIMULATOR["services"]["simulator"],
}
DOCKERFILE = (DOCKER / "Dockerfile").read_text("utf-8")

LONG_RUNNING = sorted(SERVICES.keys() - {"credentials", "migrate"})
OURS: dict[str, type[BaseSettings]] = {
    "broker": ServeSettings,
    "fetcher": Settings,
    "gateway": GatewaySettings,
    "metrics": Settings,
    "migrate": Settings,
    "prune": Settings,
}
TRACED = dict.fromkeys(("broker", "fetcher", "gateway"), TracingSettings.model_fields)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_services_are_locked_down(name: str) -> None:
    """No service can write to its image, gain rights, or use up memory, processes or disk."""
    service = SERVICES[name]
    limits = service["deploy"]["resources"]["limits"]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"memory", "pids"} <= limits.keys()
    assert {"max-size", "max-file"} <= service["logging"]["options"].keys()


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_services_are_restarted_and_checked(name: str) -> None:
    """Every long-running service restarts by itself and has a health check."""
    service = SERVICES[name]

    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_ports_are_published_on_loopback_only(name: str) -> None:
    """Other machines can't reach the stack."""
    ports = SERVICES[name].get("ports", [])

    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


@pytest.mark.parametrize("name", sorted(OURS))
def test_settings_are_known_to_the_program(name: str) -> None:
    """Every variable that is set is a setting of the program; none is misspelt."""
    extra = SIMULATOR["services"].get(name, {}).get("environment", {})
    secured = TLS["services"].get(name, {}).get("environment", {})
    given = {*SERVICES[name]["environment"], *extra, *secured}

    known = OURS[name].model_fields | TRACED.get(name, {})

    assert {variable.lower() for variable in given} - {"no_proxy"} <= known.keys()


@pytest.mark.parametrize("name", sorted(OURS))
def test_services_of_the_stack_are_reached_without_a_proxy(name: str) -> None:
    """Docker may pass a proxy to every container; that can't reach services by name."""
    environment = SERVICES[name]["environment"]
    exempt = set(environment["NO_PROXY"].split(","))

    assert environment["no_proxy"] == environment["NO_PROXY"]
    assert exempt >= {"localhost", "127.0.0.1", "broker", "postgres", "simulator"}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_secrets_are_files(name: str) -> None:
    """No environment, which others could read, holds a key or a password."""
    secret = re.compile(r"KEY|PASSWORD|DATABASE_URL")
    given = SERVICES[name].get("environment", {})

    assert [one for one in given if secret.search(one) and not one.endswith("_FILE")] == []


def test_healthcheck_asks_where_the_broker_listens() -> None:
    """The checked, published and exposed port is the one on which the image listens."""
    listen = {
        setting: Listen.parse(found)
        for setting, found in re.findall(r"(BROKER\w*_LISTEN)=(\S+)", DOCKERFILE)
    }
    ports = [port.rsplit(":", 1)[1] for port in SERVICES["broker"]["ports"]]

    assert ports == [str(one.port) for one in listen.values()]
    assert f"EXPOSE {' '.join(ports)}\n" in DOCKERFILE
    assert f":{listen['BROKER_HTTP_LISTEN'].port}/readyz" in str(SERVICES["broker"]["healthcheck"])


def test_fetchers_start_when_what_they_need_is_there() -> None:
    """Fetchers wait for a healthy Postgres, the tables, and the broker."""
    wanted = {name: one["condition"] for name, one in SERVICES["fetcher"]["depends_on"].items()}

    assert wanted == {"broker": "service_healthy", "migrate": "service_completed_successfully"}
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}


@pytest.mark.parametrize("name", sorted(TLS["services"]))
def test_certificates_are_where_the_programs_look(name: str) -> None:
    """Each file that a setting names is a secret of the service, and the script makes it."""
    service = TLS["services"][name]
    given = service["environment"]
    files = {value for value in given.values() if value.startswith("/")}
    known = {**ServeSettings.model_fields, **ClientSettings.model_fields}
    script = (ROOT / "deploy/tls/make-certificates.sh").read_text("utf-8")

    assert {variable.lower() for variable in given} <= known.keys()
    assert files == {f"/run/secrets/{secret}" for secret in service["secrets"]}
    assert set(service["secrets"]) <= TLS["secrets"].keys()
    assert all(Path(file).stem in script for file in files)


def test_simulator_has_an_account_for_the_key_given() -> None:
    """The key file of the simulator's override holds its account's key."""
    named = SIMULATOR["secrets"]["keepa_api_key"]["file"]

    assert (ROOT / named).read_text("utf-8").strip() == DEMO_KEY


def test_volumes_are_declared() -> None:
    """Named volumes hold the data; mounts from the checkout are read-only."""
    mounts = [mount for one in SERVICES.values() for mount in one.get("volumes", [])]
    named = {mount.split(":")[0] for mount in mounts if not mount.startswith(".")}
    checkout = [mount for mount in mounts if mount.startswith(".")]

    assert named == set(COMPOSE["volumes"])
    assert [mount for mount in checkout if not mount.endswith(":ro")] == []
    assert [mount for mount in checkout if not (ROOT / mount.split(":")[0]).exists()] == []


def test_each_service_has_the_credentials_of_its_own_role() -> None:
    """Only migrations, and what checks passwords, can read the owner's."""
    readers = {
        volume: {
            name
            for name, one in SERVICES.items()
            if any(mount.startswith(f"{volume}:") for mount in one.get("volumes", []))
        }
        for volume in COMPOSE["volumes"]
        if volume.startswith("credentials")
    }

    assert readers["credentials"] == {"credentials", "migrate", "postgres"}
    assert "fetcher" in readers["credentials-fetcher"] - readers["credentials-reader"]
    assert "metrics" in readers["credentials-reader"] - readers["credentials-fetcher"]
    assert "--roles" in SERVICES["migrate"]["command"]


def test_images_hold_no_secrets() -> None:
    """Only named folders enter the build, so no .env and no key ever does."""
    rules = [
        line
        for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    ]

    assert rules[0] == "*"
    assert [rule for rule in rules if "env" in rule or "secret" in rule] == []


def test_images_run_as_nobody_special() -> None:
    """Every image derives from the stage without root, and needs no registry's syntax."""
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    images = {one["build"]["target"] for one in SERVICES.values() if "build" in one}

    assert {name for base, name in stages if base == "runtime"} == images
    assert "USER 10001:10001" in DOCKERFILE
    assert "# syntax" not in DOCKERFILE
