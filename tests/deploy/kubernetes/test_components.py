"""Every component together: settings exist, selectors match, policies fit, one leader."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from broker.settings import ServeSettings
from fetcher.gateway.settings import GatewaySettings
from fetcher.settings import Settings
from protos.process.settings import TracingSettings
from tests.deploy.kubernetes.network import network_of, pods
from tests.deploy.kubernetes.rendered import (
    KUBERNETES,
    WORKLOADS,
    Manifest,
    matches,
    name_of,
    needs_kubectl,
    render,
    template_of,
)

# What excludes another one is left out: hpa and keda, standby and none.
TOGETHER = (
    *("mutual-tls", "monitoring", "keda", "journal", "standby", "gateway", "console"),
    *("tracing", "priority", "private-registry"),
)
SETTINGS: dict[str, set[str]] = {
    "broker": {*ServeSettings.model_fields, *TracingSettings.model_fields},
    "gateway": {*GatewaySettings.model_fields, *TracingSettings.model_fields},
}
FETCHER = {*Settings.model_fields, *TracingSettings.model_fields}

pytestmark = needs_kubectl


def with_components(folder: Path, *names: str) -> list[Manifest]:
    """The base with components, in a namespace."""
    root = os.path.relpath(KUBERNETES, folder)
    overlay = {
        "namespace": "keepa",
        "resources": [f"{root}/base"],
        "components": [f"{root}/components/{name}" for name in names],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(overlay), encoding="utf-8")
    return render(folder)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """The base with all components that go together."""
    return with_components(tmp_path_factory.mktemp("everything"), *TOGETHER)


def containers_of(rendered: list[Manifest]) -> list[tuple[str, Any]]:
    """Every container with the name of its program."""
    templates = [template_of(one) for one in rendered if one["kind"] in WORKLOADS]
    return [(name_of(one), each) for one in templates for each in one["spec"]["containers"]]


def test_every_variable_is_a_setting_of_its_program(everything: list[Manifest]) -> None:
    """The services of components too."""
    unknown = [
        (name, variable["name"])
        for name, container in containers_of(everything)
        for variable in container.get("env", [])
        if variable["name"].lower() not in SETTINGS.get(name, FETCHER)
    ]

    assert unknown == []


def test_every_selector_picks_a_pod(everything: list[Manifest]) -> None:
    """Services, budgets, and policies that name pods of the system."""
    found = list(pods(everything))
    selectors = [
        (one["kind"], one["metadata"]["name"], selector)
        for one in everything
        if one["kind"] in {"Service", "PodDisruptionBudget", "NetworkPolicy", "Deployment"}
        for selector in [
            {"matchLabels": one["spec"]["selector"]}
            if one["kind"] == "Service"
            else one["spec"].get("selector", one["spec"].get("podSelector"))
        ]
    ]
    picked_by_clients = {"client-to-gateway"}

    assert [
        (kind, name)
        for kind, name, selector in selectors
        if name not in picked_by_clients
        and not any(matches(selector, dict(one.labels)) for one in found)
    ] == []


def test_services_lead_to_ports_that_pods_have(everything: list[Manifest]) -> None:
    """Each target port is named by the pods that the Service selects."""
    found = list(pods(everything))
    wrong = [
        (one["metadata"]["name"], port["targetPort"])
        for one in everything
        if one["kind"] == "Service"
        for port in one["spec"]["ports"]
        for pod in found
        if matches({"matchLabels": one["spec"]["selector"]}, dict(pod.labels))
        if port["targetPort"] not in pod.ports
    ]

    assert wrong == []


def test_clients_and_brokers_reach_each_other(everything: list[Manifest]) -> None:
    """Gateway and fetchers reach every broker, the broker its database; none scrapes another."""
    network, by_name = network_of(everything), {one.name: one for one in pods(everything)}
    broker = by_name["broker"]

    assert all(network.lets(by_name[one], broker, 50051) for one in ("fetcher", "gateway"))
    assert not network.lets(by_name["console"], by_name["gateway"], 8902)
    assert not network.lets(by_name["metrics"], broker, 50051)
    assert broker.labels["keepa/database"] == by_name["console"].labels["keepa/database"] == "true"


@pytest.mark.parametrize(
    "names",
    [(), ("journal",), ("journal", "standby")],
    ids=lambda names: "-".join(names) or "base",
)
def test_a_rollout_keeps_one_leader(names: tuple[str, ...], tmp_path: Path) -> None:
    """Two brokers may only overlap, in number or during an update, if a leader is elected."""
    rendered = with_components(tmp_path, *names)
    [broker] = [
        one["spec"]
        for one in rendered
        if one["kind"] == "Deployment" and one["metadata"]["name"] == "broker"
    ]
    given = {
        one["name"]: one.get("value") for one in broker["template"]["spec"]["containers"][0]["env"]
    }
    elected = "BROKER_DATABASE_URL_FILE" in given and given.get("BROKER_LEADERSHIP") != "sole"
    overlaps = broker["replicas"] > 1 or broker["strategy"]["type"] != "Recreate"

    assert overlaps is elected is ("standby" in names)
    assert not overlaps or broker["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
