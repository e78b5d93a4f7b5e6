"""The Kubernetes manifests fit the programs, and each other."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings

from broker.access.identities import Identity, IdentityBook, Role
from broker.settings import ServeSettings
from deploy.keepa_simulator.options import DEMO_KEY
from fetcher.settings import Settings
from protos.process.addresses import Listen

ROOT = Path(__file__).parents[3]
OVERLAYS = ("local", "production", "two-accounts")
SETTINGS: dict[str, type[BaseSettings]] = {
    "broker": ServeSettings,
    "fetcher": Settings,
    "metrics": Settings,
    "migrate": Settings,
}

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is missing: kubernetes.io/docs/tasks/tools"
)

Manifest = dict[str, Any]


@cache
def manifests(overlay: str) -> list[Manifest]:
    """The manifests of `kubectl apply -k` for *overlay*."""
    folder = ROOT / "deploy/kubernetes/overlays" / overlay
    run = subprocess.run(
        ["kubectl", "kustomize", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [one for one in yaml.safe_load_all(run.stdout) if one]


def of_kind(overlay: str, *kinds: str) -> list[Manifest]:
    """The manifests of *kinds*."""
    return [one for one in manifests(overlay) if one["kind"] in kinds]


def pod_templates(overlay: str) -> dict[str, Manifest]:
    """The pod template of every workload, by the workload's namespace/name."""
    return {
        f"{one['metadata']['namespace']}/{one['metadata']['name']}": one["spec"]["template"]
        for one in of_kind(overlay, "Deployment", "StatefulSet", "Job")
    }


def containers(overlay: str) -> list[tuple[str, Manifest]]:
    """Every container with the name of its workload."""
    return [
        (name.split("/")[1], container)
        for name, template in pod_templates(overlay).items()
        for container in template["spec"]["containers"]
    ]


def environment(container: Manifest) -> dict[str, str]:
    """The variables of *container*."""
    return {one["name"]: one["value"] for one in container.get("env", [])}


def matches(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a label *selector* matches a pod with *labels*."""
    wanted = selector.get("matchLabels", {})
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", [])
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_settings_are_known_to_the_program(overlay: str) -> None:
    """Every variable that is set is a setting of the program; none is misspelt."""
    unknown = [
        (name, variable)
        for name, container in containers(overlay)
        if name in SETTINGS
        for variable in environment(container)
        if variable.lower() not in SETTINGS[name].model_fields
    ]

    assert unknown == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ports_are_where_programs_listen(overlay: str) -> None:
    """Each listening address has its container port, and Services lead to named ports."""
    listening = {
        name: {Listen.parse(at).port for key, at in environment(one).items() if "LISTEN" in key}
        for name, one in containers(overlay)
        if name in SETTINGS
    }
    declared = {
        name: {port["containerPort"] for port in one.get("ports", [])}
        for name, one in containers(overlay)
    }
    names = {
        name: {port["name"]: port["containerPort"] for port in one.get("ports", [])}
        for name, one in containers(overlay)
    }
    services = of_kind(overlay, "Service")

    assert {name: declared[name] for name in listening} == listening
    assert all(
        names[one["metadata"]["name"]][port["targetPort"]] == port["port"]
        for one in services
        for port in one["spec"]["ports"]
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_pick_pods(overlay: str) -> None:
    """Services, disruption budgets, and workloads select pods that exist in their namespace."""
    pods = [
        (name.split("/")[0], template["metadata"]["labels"])
        for name, template in pod_templates(overlay).items()
    ]
    selectors = [
        (
            one["metadata"]["namespace"],
            {"matchLabels": one["spec"]["selector"]}
            if one["kind"] == "Service"
            else one["spec"]["selector"],
        )
        for one in of_kind(overlay, "Service", "PodDisruptionBudget", "Deployment", "StatefulSet")
    ]

    assert selectors
    assert [
        selector
        for namespace, selector in selectors
        if not any(matches(selector, labels) for where, labels in pods if where == namespace)
    ] == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_restricted(overlay: str) -> None:
    """Namespaces enforce the restricted level, and no pod takes a service's variables."""
    namespaces = of_kind(overlay, "Namespace")
    specs = [template["spec"] for template in pod_templates(overlay).values()]

    assert all(
        one["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
        for one in namespaces
    )
    assert all(spec["enableServiceLinks"] is False for spec in specs)
    assert all(spec["automountServiceAccountToken"] is False for spec in specs)
    assert all(spec["securityContext"]["runAsNonRoot"] for spec in specs)
    assert all(
        one["securityContext"]["readOnlyRootFilesystem"] and one["resources"]["limits"]["memory"]
        for _, one in containers(overlay)
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_are_files(overlay: str) -> None:
    """Keys and passwords are mounted files, never variables."""
    wrong = [
        (name, variable)
        for name, container in containers(overlay)
        for variable in environment(container)
        if variable in {"KEEPA_API_KEY", "DATABASE_URL", "POSTGRES_PASSWORD"}
    ]
    referenced = {
        volume["secret"]["secretName"].rsplit("-", 1)[0]
        if overlay == "local"
        else volume["secret"]["secretName"]
        for template in pod_templates(overlay).values()
        for volume in template["spec"].get("volumes", [])
        if "secret" in volume
    }

    assert wrong == []
    certificates = set() if overlay == "local" else {"broker-tls", "fetcher-tls"}
    assert referenced == {"keepa", "database"} | certificates


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_plaintext_stays_in_the_local_cluster(overlay: str) -> None:
    """Elsewhere broker and fetchers authenticate each other with mounted certificates."""
    for name, container in containers(overlay):
        if name not in {"broker", "fetcher"}:
            continue
        given = environment(container)
        mounts = [one["mountPath"] for one in container["volumeMounts"]]
        files = {key: value for key, value in given.items() if key.startswith("BROKER_TLS_")}

        assert ("BROKER_ALLOW_PLAINTEXT" in given) is (overlay == "local" and name == "broker")
        assert len(files) == (0 if overlay == "local" else 3)
        assert {str(Path(file).parent) for file in files.values()} <= set(mounts)


def test_the_identities_name_the_fetchers_of_the_cluster(tmp_path: Path) -> None:
    """The mounted identities file names the fetchers' certificates."""
    [book] = [one for one in of_kind("production", "ConfigMap") if "identities" in str(one)]
    broker = next(one for name, one in containers("production") if name == "broker")
    path = Path(environment(broker)["BROKER_IDENTITIES_FILE"])
    (tmp_path / path.name).write_text(book["data"][path.name])
    identity = IdentityBook.read(tmp_path / path.name).by_certificate(["fetcher"])

    assert book["metadata"]["name"] == "identities"
    assert identity == Identity("fetchers", Role.FETCHER)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_budget_blocks_a_drain(overlay: str) -> None:
    """Every disruption budget allows one eviction at least, also of the only broker."""
    budgets = [one["spec"] for one in of_kind(overlay, "PodDisruptionBudget")]

    assert budgets
    assert all("minAvailable" not in budget for budget in budgets)
    assert all(budget["maxUnavailable"] not in {0, "0%"} for budget in budgets)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_one_broker_for_one_account(overlay: str) -> None:
    """Each namespace has one broker; its successor starts after its end."""
    brokers = [
        one for one in of_kind(overlay, "Deployment") if one["metadata"]["name"] == "broker"
    ]
    namespaces = {one["metadata"]["name"] for one in of_kind(overlay, "Namespace")}

    assert {one["metadata"]["namespace"] for one in brokers} == namespaces
    assert len(brokers) == len(namespaces) == (2 if overlay == "two-accounts" else 1)
    assert all(one["spec"]["replicas"] == 1 for one in brokers)
    assert all(one["spec"]["strategy"] == {"type": "Recreate"} for one in brokers)


def allowed(overlay: str, source: str, target: str, port: int) -> bool:
    """Whether the policies allow pods of *source* to reach *port* of pods of *target*."""
    labels = {name: {"app.kubernetes.io/name": name} for name in (source, target)}
    policies = [one["spec"] for one in of_kind(overlay, "NetworkPolicy")]

    def open_to(one_end: str, direction: str, peers: str, other_end: str) -> bool:
        return any(
            any(found.get("port") == port for found in rule["ports"])
            and any(
                matches(peer["podSelector"], labels[other_end])
                for peer in rule[peers]
                if "podSelector" in peer
            )
            for policy in policies
            if matches(policy["podSelector"], labels[one_end])
            for rule in policy.get(direction, [])
        )

    return open_to(source, "egress", "to", target) and open_to(target, "ingress", "from", source)


@pytest.mark.parametrize(
    ("source", "target", "port", "expected"),
    [
        ("fetcher", "broker", 50051, True),
        ("fetcher", "broker", 9464, False),
        ("migrate", "broker", 50051, False),
        ("fetcher", "postgres", 5432, True),
        ("metrics", "postgres", 5432, True),
        ("migrate", "postgres", 5432, True),
        ("broker", "postgres", 5432, False),
        ("broker", "simulator", 8901, True),
        ("fetcher", "simulator", 8901, True),
        ("metrics", "simulator", 8901, False),
        ("broker", "fetcher", 50051, False),
    ],
)
def test_network_is_open_where_needed(
    source: str, target: str, port: int, *, expected: bool
) -> None:
    """Pods reach the peers that they need, and no others."""
    assert allowed("local", source, target, port) is expected


def test_everything_else_is_denied() -> None:
    """A policy without any rule covers every pod in both directions."""
    denied = [
        one["spec"]
        for one in of_kind("production", "NetworkPolicy")
        if one["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    ]

    assert len(denied) == 1


def test_probes_ask_over_http() -> None:
    """The probes use the broker's HTTP port and paths that it serves."""
    broker = next(one for name, one in containers("production") if name == "broker")
    probes = {
        kind: broker[kind]["httpGet"]
        for kind in ("startupProbe", "livenessProbe", "readinessProbe")
    }

    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert probes["livenessProbe"]["path"] == probes["startupProbe"]["path"] == "/healthz"
    assert probes["readinessProbe"]["path"] == "/readyz"


def test_local_cluster_uses_the_simulators_key() -> None:
    """The demonstration needs no key, and never calls the real Keepa."""
    secret = next(one for one in yaml_generators() if one["name"] == "keepa")
    urls = {
        environment(one)["KEEPA_BASE_URL"]
        for name, one in containers("local")
        if name in {"broker", "fetcher"}
    }

    assert secret["literals"] == [f"api-key={DEMO_KEY}"]
    assert urls == {"http://simulator:8901"}


def yaml_generators() -> list[Manifest]:
    """The Secrets that the local overlay generates."""
    path = ROOT / "deploy/kubernetes/overlays/local/kustomization.yaml"
    return list(yaml.safe_load(path.read_text("utf-8"))["secretGenerator"])


def test_every_query_file_reaches_the_cluster() -> None:
    """The ConfigMap holds each query of deploy/queries."""
    files = {path.name for path in (ROOT / "deploy/queries").glob("*.json")}
    maps = [
        one for one in of_kind("production", "ConfigMap") if "queries" in one["metadata"]["name"]
    ]

    assert [set(one["data"]) for one in maps] == [files]


def test_scaling_asks_each_account_about_itself() -> None:
    """With two accounts, each fleet scales with its own work and its own tokens."""
    scaled = of_kind("two-accounts", "ScaledObject")
    wrong = [
        one["metadata"]["namespace"]
        for one in scaled
        for trigger in one["spec"]["triggers"]
        if f'namespace="{one["metadata"]["namespace"]}"' not in trigger["metadata"]["query"]
    ]
    formulas = {one["spec"]["advanced"]["scalingModifiers"]["formula"] for one in scaled}
    names = {trigger["name"] for trigger in scaled[0]["spec"]["triggers"]}

    assert len(scaled) == 2
    assert wrong == []
    assert all(name in formula for formula in formulas for name in names)
