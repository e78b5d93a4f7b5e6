"""The gateway component fits its program, and opens the network to its callers only."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from fetcher.gateway.metrics import GatewayMetrics
from fetcher.gateway.settings import GatewaySettings
from protos.process.addresses import Listen
from tests.deploy.kubernetes.rendered import KUBERNETES, Manifest, needs_kubectl, render

pytestmark = needs_kubectl


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Manifest]:
    """The base with the component, by kind and name."""
    folder = tmp_path_factory.mktemp("overlay")
    base, component = (
        os.path.relpath(KUBERNETES / part, folder) for part in ("base", "components/gateway")
    )
    overlay = {"resources": [base], "components": [component]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
    return {(one["kind"], one["metadata"]["name"]): one for one in render(folder)}


def container(manifests: dict[tuple[str, str], Manifest]) -> Any:
    """The gateway's container."""
    [found] = manifests["Deployment", "gateway"]["spec"]["template"]["spec"]["containers"]
    return found


def test_the_program_accepts_its_settings(
    manifests: dict[tuple[str, str], Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every variable is a setting, and the ports are where the program listens."""
    gateway = container(manifests)
    variables = {one["name"]: one["value"] for one in gateway["env"]}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_text("k" * 64)
    for name, value in {**variables, "KEEPA_API_KEY_FILE": str(tmp_path / "key")}.items():
        monkeypatch.setenv(name, value)
    settings = GatewaySettings.load()
    ports = {port["name"]: port["containerPort"] for port in gateway["ports"]}

    assert {name.lower() for name in variables} <= GatewaySettings.model_fields.keys()
    assert settings.serves_anyone
    assert ports == {
        "api": Listen.parse(settings.gateway_listen).port,
        "http": Listen.parse(settings.gateway_http_listen).port,
    }


def test_only_labelled_pods_call_it(manifests: dict[tuple[str, str], Manifest]) -> None:
    """The API's port is open to them, and the broker's to the gateway by its own label."""
    [rule] = manifests["NetworkPolicy", "clients-to-gateway"]["spec"]["ingress"]
    labels = manifests["Deployment", "gateway"]["spec"]["template"]["metadata"]["labels"]
    client = manifests["NetworkPolicy", "client-to-broker"]["spec"]["podSelector"]["matchLabels"]

    assert rule["from"] == [{"podSelector": {"matchLabels": {"keepa/gateway-client": "true"}}}]
    assert rule["ports"] == [{"protocol": "TCP", "port": 8902}]
    assert client.items() <= labels.items()


def test_it_scales_by_a_metric_that_exists(manifests: dict[tuple[str, str], Manifest]) -> None:
    """The autoscaler asks for waits, which the program exports."""
    autoscaler = manifests["HorizontalPodAutoscaler", "gateway"]["spec"]
    [name] = [one["pods"]["metric"]["name"] for one in autoscaler["metrics"] if "pods" in one]
    exported = {family.name for family in GatewayMetrics().registry.collect()}

    assert name in exported
    assert "replicas" not in manifests["Deployment", "gateway"]["spec"]
