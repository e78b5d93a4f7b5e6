"""The network policies let the needed flows through, and nothing else."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from protos.process.settings import KeepaSettings
from tests.deploy.kubernetes.network import Network, Peer, network_of, pods
from tests.deploy.kubernetes.rendered import (
    KUBERNETES,
    OVERLAYS,
    Manifest,
    manifests,
    needs_kubectl,
    of_kind,
    render,
)

pytestmark = needs_kubectl

DNS = {
    "CoreDNS": (Peer("dns", "kube-system", {"k8s-app": "kube-dns"}), 53),
    "NodeLocal DNSCache": (Peer("node", address="169.254.20.10"), 53),
    "NodeLocal DNSCache, IPv6": (Peer("node", address="fd00::10"), 53),
    "Cloud DNS of GKE": (Peer("metadata", address="169.254.169.254"), 53),
    "OpenShift": (Peer("dns", "openshift-dns", {"dns": "default"}), 5353),
}
KEEPA = {
    "IPv4": Peer("keepa", address="104.18.32.7"),
    "IPv6": Peer("keepa", address="2606:4700::7"),
}
PROMETHEUS = Peer("prometheus", "monitoring")
STRANGERS = {
    "the cloud's metadata": (Peer("metadata", address="169.254.169.254"), 80),
    "a private network": (Peer("intranet", address="192.168.1.1"), 443),
    "a shared address space": (Peer("carrier", address="100.64.0.1"), 443),
    "a private network, IPv6": (Peer("intranet", address="fd12::1"), 443),
    "the internet's mail": (Peer("mail", address="104.18.32.7"), 25),
    "another namespace": (Peer("web", "default", {"app": "web"}), 443),
}


@cache
def world(overlay: str) -> tuple[Network, tuple[Peer, ...]]:
    """The policies and pods of *overlay*."""
    return network_of(manifests(overlay)), tuple(pods(manifests(overlay)))


def pod(overlay: str, name: str) -> Peer:
    """The first pod of *name*."""
    return next(one for one in world(overlay)[1] if one.name == name)


def needed(overlay: str, source: Peer, target: Peer) -> set[int]:
    """The ports of *target* that *source* needs, by their roles in the system."""
    if source.namespace != target.namespace:
        return set()
    ports = set()
    if target.name == "broker" and source.name == "fetcher":
        ports.add(target.ports["grpc"])
    if target.name == "postgres" and source.labels.get("keepa/database") == "true":
        ports.add(target.ports["postgres"])
    if target.name == "simulator" and source.name in {"broker", "fetcher"}:
        ports.add(target.ports["http"])
    return ports


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_reach_what_they_need_and_nothing_else(overlay: str) -> None:
    """Every pair of pods of the system, over every port of the target."""
    network, found = world(overlay)
    known = {"broker", "fetcher", "metrics", "migrate", "prune", "postgres", "simulator"}
    wrong = [
        (source.name, source.namespace, target.name, target.namespace, port)
        for source in found
        for target in found
        if source.name in known and target.name in known and source is not target
        for port in {*target.ports.values(), 22, 443, 8080}
        if network.lets(source, target, port) is not (port in needed(overlay, source, target))
    ]

    assert wrong == []


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("variant", DNS)
def test_every_pod_resolves_names(overlay: str, variant: str) -> None:
    """With each cluster's kind of DNS, over UDP and TCP."""
    network, found = world(overlay)
    server, port = DNS[variant]

    assert [
        (one.name, protocol)
        for one in found
        for protocol in ("UDP", "TCP")
        if not network.lets(one, server, port, protocol)
    ] == []


@pytest.mark.parametrize("overlay", ["production", "two-accounts"])
@pytest.mark.parametrize("family", KEEPA)
def test_only_who_calls_keepa_reaches_it(overlay: str, family: str) -> None:
    """Broker and fetchers, over IPv4 and IPv6, on the port of its address."""
    network, found = world(overlay)
    port = urlsplit(KeepaSettings.model_fields["keepa_base_url"].default).port or 443
    callers = {one.name for one in found if network.lets(one, KEEPA[family], port)}

    assert callers >= {"broker", "fetcher"}
    assert not callers & {"metrics", "migrate", "prune"}


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("stranger", STRANGERS)
def test_strangers_are_out_of_reach(overlay: str, stranger: str) -> None:
    """No pod of the system reaches private networks, other ports or other namespaces."""
    network, found = world(overlay)
    target, port = STRANGERS[stranger]

    assert [one.name for one in found if network.lets(one, target, port)] == []


@pytest.mark.parametrize("overlay", ["production", "two-accounts"])
def test_postgres_outside_is_reached_by_those_with_credentials(overlay: str) -> None:
    """The production overlay's example range, on the port of Postgres only."""
    network, found = world(overlay)
    server = Peer("postgres", address="10.1.2.3")
    reaching = {one.name for one in found if network.lets(one, server, 5432)}

    assert reaching == {one.name for one in found if one.labels.get("keepa/database") == "true"}
    assert reaching >= {"fetcher", "metrics", "migrate", "prune"}
    assert not any(network.lets(one, server, 22) for one in found)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_prometheus_scrapes_metrics_only(overlay: str) -> None:
    """The namespace of monitoring reaches the port of each scraped Service, and no other."""
    network, found = world(overlay)
    scraped = {
        one["metadata"]["name"]
        for one in of_kind(overlay, "Service")
        if "keepa/job" in one["metadata"].get("labels", {})
    }
    wrong = [
        (one.name, name)
        for one in found
        for name, port in one.ports.items()
        if network.lets(PROMETHEUS, one, port) is not (one.name in scraped and name == "http")
    ]

    assert scraped >= {"broker", "metrics"}
    assert wrong == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_strangers_do_not_come_in(overlay: str) -> None:
    """A pod of another namespace, or another one of this, reaches no port."""
    network, found = world(overlay)
    for stranger in (Peer("web", "default"), Peer("web", found[0].namespace, {"app": "web"})):
        assert [
            one.name
            for one in found
            for port in one.ports.values()
            if network.lets(stranger, one, port)
        ] == []


def test_clients_with_the_label_reach_the_broker() -> None:
    """Other programs lease tokens once they carry the label of a client."""
    network, _ = world("production")
    client = Peer("mine", "keepa", {"tokenbroker/client": "true"})
    broker = pod("production", "broker")

    assert network.lets(client, broker, broker.ports["grpc"])
    assert not network.lets(client, broker, broker.ports["http"])


def with_component(name: str, folder: Path) -> list[Manifest]:
    """The base with a component, in a namespace."""
    root = os.path.relpath(KUBERNETES, folder)
    overlay = {
        "namespace": "keepa",
        "resources": [f"{root}/base"],
        "components": [f"{root}/components/{name}"],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
    return render(folder)


def test_behind_a_proxy_keepa_is_reached_by_no_other_way(tmp_path: Path) -> None:
    """Broker and fetchers reach the proxy on its port, and no address of the internet."""
    rendered = with_component("proxy", tmp_path)
    network, found = network_of(rendered), list(pods(rendered))
    proxy = Peer("proxy", address="10.1.2.3")
    [settings] = [
        one["data"]
        for one in rendered
        if one["kind"] == "ConfigMap" and one["metadata"]["name"].startswith("settings")
    ]
    port = urlsplit(settings["HTTPS_PROXY"]).port
    callers = {one.name for one in found if network.lets(one, proxy, port or 0)}

    assert callers >= {"broker", "fetcher"}
    assert not any(network.lets(one, KEEPA["IPv4"], 443) for one in found)
    assert "broker" in settings["NO_PROXY"].split(",")
    assert settings["NO_PROXY"] == settings["no_proxy"]


def rule(*, to: object = None, ports: object = None) -> dict[str, object]:
    """A rule of a policy with what is given."""
    return {key: value for key, value in (("to", to), ("ports", ports)) if value is not None}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], False),
        ([rule()], True),
        ([rule(to=[{"podSelector": {}}])], True),
        ([rule(to=[{"podSelector": {"matchLabels": {"a": "c"}}}])], False),
        ([rule(to=[{"namespaceSelector": {}}])], True),
        ([rule(to=[{"ipBlock": {"cidr": "0.0.0.0/0"}}])], False),
        ([rule(ports=[{"port": 80, "endPort": 90}])], True),
        ([rule(ports=[{"port": "web"}])], True),
        ([rule(ports=[{"port": "other"}])], False),
        ([rule(ports=[{"protocol": "UDP", "port": 85}])], False),
        ([rule(ports=[{"port": 1}]), rule(ports=[{"port": 85}])], True),
    ],
)
def test_the_evaluator_reads_rules_as_kubernetes_does(
    rules: Sequence[Manifest], *, expected: bool
) -> None:
    """An absent list is open, an empty one of rules is closed, rules and policies add up."""
    policy = {
        "metadata": {"namespace": "n"},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": rules},
    }
    source, target = Peer("a", "n", {"a": "a"}), Peer("b", "n", {"a": "b"}, {"web": 85})

    assert Network([policy]).lets(source, target, 85) is expected
