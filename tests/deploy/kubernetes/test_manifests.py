"""The Kubernetes manifests fit the programs, and each other."""

import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from broker.access.budgets_file import read_budgets
from broker.access.identities import Identity, IdentityBook
from broker.settings import ServeSettings
from deploy.keepa_simulator.options import DEMO_KEY
from fetcher.queries.query import read_queries
from fetcher.settings import Settings
from protos.process.addresses import Listen
from protos.process.identities import Role
from protos.process.settings import Environment
from tests.deploy.kubernetes.rendered import (
    KUBERNETES,
    OVERLAYS,
    ROOT,
    WORKLOADS,
    Manifest,
    containers,
    environment,
    matches,
    name_of,
    needs_kubectl,
    of_kind,
    pod_templates,
    render,
    template_of,
)

SETTINGS: dict[str, type[Environment]] = {
    "broker": ServeSettings,
    "fetcher": Settings,
    "metrics": Settings,
    "migrate": Settings,
    "prune": Settings,
}
# Read by libraries: HTTPS_PROXY and NO_PROXY by protos.process.proxies.
OTHERS = {"https_proxy", "no_proxy"}

pytestmark = needs_kubectl


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_settings_are_known_to_the_program(overlay: str) -> None:
    """Every variable that is set is a setting of the program; none is misspelt.

    The common ones are settings of some program.
    """
    known = {field for one in SETTINGS.values() for field in one.model_fields} | OTHERS
    unknown = [
        (name, variable["name"])
        for name, container in containers(overlay)
        if name in SETTINGS
        for variable in container["env"]
        if variable["name"].lower() not in SETTINGS[name].model_fields
    ]
    common = {
        variable.lower()
        for one in of_kind(overlay, "ConfigMap")
        if one["metadata"]["name"].startswith("settings")
        for variable in one["data"]
    }

    assert unknown == []
    assert common
    assert common <= known


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_program_accepts_its_settings(
    overlay: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each program starts with the values that the overlay gives, once its Secrets exist."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "api-key").write_text("k" * 64)
    (tmp_path / "url").write_text("postgresql://broker:p@db.example.com/deals")
    for name, container in containers(overlay):
        if name not in SETTINGS:
            continue
        given = environment(overlay, container)
        with monkeypatch.context() as patched:
            for variable, value in given.items():
                patched.setenv(variable, value)
            patched.setenv("KEEPA_API_KEY_FILE", str(tmp_path / "api-key"))
            if name == "broker":
                patched.setenv("BROKER_DATABASE_URL_FILE", str(tmp_path / "url"))

            SETTINGS[name].load()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ports_are_where_programs_listen(overlay: str) -> None:
    """Each listening address has its container port, and Services lead to named ports."""
    listening = {
        name: {
            Listen.parse(at).port
            for key, at in environment(overlay, one).items()
            if "LISTEN" in key
        }
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
        names[one["spec"]["selector"]["app.kubernetes.io/name"]][port["targetPort"]]
        == port["port"]
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


def secrets_of(template: Manifest) -> list[str]:
    """The names of the Secrets that a pod mounts."""
    volumes = template["spec"].get("volumes", [])
    return [one["secret"]["secretName"] for one in volumes if "secret" in one] + [
        source["secret"]["name"]
        for one in volumes
        for source in one.get("projected", {}).get("sources", [])
    ]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_program_has_the_credentials_of_its_own_role(overlay: str) -> None:
    """The owner's URL is the migration's alone; metrics can only read."""
    found: dict[str, set[str]] = {}
    for key, template in pod_templates(overlay).items():
        names = {re.sub(r"-[a-z0-9]{10}$", "", one) for one in secrets_of(template)}
        found.setdefault(key.split("/")[1], set()).update(
            one for one in names if one.startswith("database")
        )

    assert found["fetcher"] == found["prune"] == {"database"}
    assert found["metrics"] == {"database-reader"}
    assert found["broker"] == {"database-broker"}
    assert "database-owner" in found["migrate"]
    assert [name for name, secrets in found.items() if "database-owner" in secrets] == (
        ["migrate"] if overlay != "local" else ["postgres", "migrate"]
    )


def test_one_secret_may_serve_for_all(tmp_path: Path) -> None:
    """Where the database gives one role only, each program uses the Secret `database`."""
    folder = os.path.relpath(KUBERNETES, tmp_path)
    overlay = {
        "resources": [f"{folder}/base"],
        "components": [f"{folder}/components/one-database-role"],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
    templates = [template_of(one) for one in render(tmp_path) if one["kind"] in WORKLOADS]
    mounted = {
        volume["secret"]["secretName"]
        for template in templates
        for volume in template["spec"]["volumes"]
        if "secret" in volume and volume["name"] == "database"
    }
    [migrate] = [one for one in templates if name_of(one) == "migrate"]

    assert mounted == {"database"}
    assert migrate["spec"]["containers"][0]["args"] == ["migrate"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_are_files(overlay: str) -> None:
    """Keys and passwords are mounted files, never variables."""
    wrong = [
        (name, variable)
        for name, container in containers(overlay)
        for variable in environment(overlay, container)
        if variable in {"KEEPA_API_KEY", "DATABASE_URL", "POSTGRES_PASSWORD"}
    ]
    referenced = {
        re.sub(r"-[a-z0-9]{10}$", "", name)
        for template in pod_templates(overlay).values()
        for name in secrets_of(template)
    }

    assert wrong == []
    certificates = set() if overlay == "local" else {"broker-tls", "fetcher-tls"}
    databases = {"database-owner", "database", "database-reader", "database-broker"}
    scraper = set() if overlay == "local" else {"scrape"}
    assert referenced == {"keepa"} | databases | certificates | scraper


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_plaintext_stays_in_the_local_cluster(overlay: str) -> None:
    """Elsewhere broker and fetchers authenticate each other with mounted certificates."""
    for name, container in containers(overlay):
        if name not in {"broker", "fetcher"}:
            continue
        given = environment(overlay, container)
        mounts = [one["mountPath"] for one in container["volumeMounts"]]
        files = {
            key: value for key, value in given.items() if re.fullmatch(r"BROKER_TLS_\w+_FILE", key)
        }

        assert ("BROKER_ALLOW_PLAINTEXT" in given) is (overlay == "local")
        assert len(files) == (0 if overlay == "local" else 3)
        assert {str(Path(file).parent) for file in files.values()} <= set(mounts)


def test_the_identities_name_the_fetchers_of_the_cluster(tmp_path: Path) -> None:
    """The mounted identities file names the fetchers' certificates."""
    [book] = [one for one in of_kind("production", "ConfigMap") if "identities" in str(one)]
    broker = next(one for name, one in containers("production") if name == "broker")
    path = Path(environment("production", broker)["BROKER_IDENTITIES_FILE"])
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
    """Each namespace has its brokers: one, or two of which one leads (test_components.py)."""
    brokers = [
        one for one in of_kind(overlay, "Deployment") if one["metadata"]["name"] == "broker"
    ]
    namespaces = {one["metadata"]["name"] for one in of_kind(overlay, "Namespace")}

    assert {one["metadata"]["namespace"] for one in brokers} == namespaces
    assert len(brokers) == len(namespaces) == (2 if overlay == "two-accounts" else 1)
    assert {one["spec"]["replicas"] for one in brokers} == {1 if overlay == "local" else 2}
    assert {one["spec"]["strategy"]["type"] for one in brokers} == {
        "Recreate" if overlay == "local" else "RollingUpdate"
    }


def test_probes_ask_over_http() -> None:
    """The probes use the broker's HTTP port and paths that it serves."""
    broker = next(one for name, one in containers("production") if name == "broker")
    probes = {
        kind: broker[kind]["httpGet"]
        for kind in ("startupProbe", "livenessProbe", "readinessProbe")
    }

    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert probes["livenessProbe"]["path"] == probes["startupProbe"]["path"] == "/livez"
    assert probes["readinessProbe"]["path"] == "/readyz"


def test_local_cluster_uses_the_simulators_key() -> None:
    """The demonstration needs no key, and never calls the real Keepa."""
    secret = next(one for one in yaml_generators() if one["name"] == "keepa")
    urls = {
        environment("local", one)["KEEPA_BASE_URL"]
        for name, one in containers("local")
        if name in {"broker", "fetcher"}
    }

    assert secret["literals"] == [f"api-key={DEMO_KEY}"]
    assert urls == {"http://simulator:8901"}


def yaml_generators() -> list[Manifest]:
    """The Secrets that the local overlay generates."""
    path = ROOT / "deploy/kubernetes/overlays/local/kustomization.yaml"
    return list(yaml.safe_load(path.read_text("utf-8"))["secretGenerator"])


def query_files(overlay: str, namespace: str) -> dict[str, str]:
    """The query files of *namespace*."""
    [found] = [
        one
        for one in of_kind(overlay, "ConfigMap")
        if one["metadata"]["name"] == "queries" and one["metadata"]["namespace"] == namespace
    ]
    return dict(found.get("data") or {})


def test_the_demonstration_collects_every_example() -> None:
    """The local cluster's ConfigMap holds each query of deploy/queries."""
    files = {path.name for path in (ROOT / "deploy/queries").glob("*.json")}

    assert set(query_files("local", "keepa")) == files


def test_production_collects_what_its_operator_wrote() -> None:
    """Production has no example query; each of two accounts has its own set."""
    first, second = (query_files("two-accounts", f"keepa-{name}") for name in ("first", "second"))

    assert query_files("production", "keepa") == {}
    assert first
    assert second
    assert not first.items() & second.items()
    assert all(
        len(read_queries({Path(name).stem: text}).queries) == 1
        for name, text in (first | second).items()
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_followed_files_keep_their_names(overlay: str) -> None:
    """A changed query, budget or identity replaces no pod; a changed variable does."""
    names = {one["metadata"]["name"] for one in of_kind(overlay, "ConfigMap")}
    followed = {
        volume["configMap"]["name"]
        for template in pod_templates(overlay).values()
        for volume in template["spec"].get("volumes", [])
        if "configMap" in volume
    }
    variables = {
        source["configMapRef"]["name"]
        for _, container in containers(overlay)
        for source in container.get("envFrom", [])
    }

    assert {"queries", "budgets"} <= followed <= names
    assert variables <= names
    assert all(name.startswith("settings-") for name in variables)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_broker_follows_a_file_that_it_can_read(overlay: str, tmp_path: Path) -> None:
    """The budgets file is valid; its whole folder is mounted, because a link in it is swapped."""
    for name, container in containers(overlay):
        if name != "broker":
            continue
        path = Path(environment(overlay, container)["BROKER_BUDGETS_FILE"])
        mounts = {one["mountPath"]: one for one in container["volumeMounts"]}

        assert "subPath" not in mounts[str(path.parent)]
    for found in of_kind(overlay, "ConfigMap"):
        if found["metadata"]["name"] == "budgets":
            (tmp_path / "budgets.toml").write_text(found["data"]["budgets.toml"])

            assert read_budgets(tmp_path / "budgets.toml") == ()


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


@pytest.mark.parametrize("overlay", ["production", "two-accounts"])
def test_an_empty_answer_is_no_zero(overlay: str) -> None:
    """KEDA treats an empty answer as a fault, so that its fallback acts."""
    triggers = [
        trigger["metadata"]
        for one in of_kind(overlay, "ScaledObject")
        for trigger in one["spec"]["triggers"]
    ]

    assert triggers
    assert {one["ignoreNullValues"] for one in triggers} == {"false"}


@pytest.mark.parametrize("overlay", ["production", "two-accounts"])
def test_prometheus_finds_what_it_scrapes(overlay: str) -> None:
    """The monitor selects the Services of broker and metrics, and the alerts' jobs are theirs."""
    rules = str(of_kind(overlay, "PrometheusRule"))
    for monitor in of_kind(overlay, "ServiceMonitor"):
        found = {
            one["metadata"]["labels"]["keepa/job"]
            for one in of_kind(overlay, "Service")
            if one["metadata"]["namespace"] == monitor["metadata"]["namespace"]
            and matches(monitor["spec"]["selector"], one["metadata"]["labels"])
            and monitor["spec"]["endpoints"][0]["port"]
            in {p["name"] for p in one["spec"]["ports"]}
        }

        assert found >= {"keepa-broker", "keepa-fetcher-metrics"}
        assert [job for job in found if f'job="{job}"' not in rules] == []
    labelled = of_kind(overlay, "ServiceMonitor", "PrometheusRule")

    assert all("release" in one["metadata"]["labels"] for one in labelled)


@pytest.mark.parametrize("overlay", ["production", "two-accounts"])
def test_prometheus_brings_the_token_that_programs_ask_for(overlay: str) -> None:
    """The monitor's Secret is the one that broker and metrics mount, and none is open."""
    secrets = {
        (credentials["name"], credentials["key"])
        for one in of_kind(overlay, "ServiceMonitor")
        for credentials in [one["spec"]["endpoints"][0]["authorization"]["credentials"]]
    }
    for name, template in pod_templates(overlay).items():
        if name.split("/")[1] not in {"broker", "metrics"}:
            continue
        given = environment(overlay, template["spec"]["containers"][0])
        volumes = {one["name"]: one for one in template["spec"]["volumes"]}

        assert given["METRICS_OPEN"] == "false"
        assert given["METRICS_TOKEN_FILE"] == "/run/secrets/scrape/token"
        assert volumes["scrape"]["secret"]["secretName"] == "scrape"
    assert secrets == {("scrape", "token")}


def test_the_label_of_prometheus_is_the_first_thing_to_change() -> None:
    """Production names the label first: without the right one, nothing is scraped."""
    text = (KUBERNETES / "overlays/production/kustomization.yaml").read_text("utf-8")
    first = text.split("# CHANGE: ")[1]

    assert first.startswith("the label by which your Prometheus selects")


@pytest.mark.parametrize("overlay", ["production", "two-accounts"])
def test_alerts_and_scaling_ask_about_their_own_namespace(overlay: str) -> None:
    """No expression names another namespace, and each names its own."""
    for one in of_kind(overlay, "PrometheusRule", "ScaledObject"):
        own = f'namespace="{one["metadata"]["namespace"]}"'
        expressions = [
            rule["expr"] for group in one["spec"].get("groups", []) for rule in group["rules"]
        ] + [trigger["metadata"]["query"] for trigger in one["spec"].get("triggers", [])]

        assert expressions
        assert [text for text in expressions if own not in text] == []
        assert [text for text in expressions if text.count("namespace=") != text.count(own)] == []


def test_alerts_link_to_the_operators_copy_of_the_runbook() -> None:
    """The overlay's address replaces the path in every alert."""
    [rules] = of_kind("production", "PrometheusRule")
    links = {
        rule["annotations"]["runbook_url"]
        for group in rules["spec"]["groups"]
        for rule in group["rules"]
    }

    assert all(link.startswith("https://git.example.com/keepa/deploy/") for link in links)
    assert "https://git.example.com/keepa/deploy/prometheus/runbook.md#brokerdown" in links


@pytest.mark.parametrize("overlay", ["production", "two-accounts"])
def test_grafanas_sidecar_finds_the_dashboards(overlay: str) -> None:
    """A ConfigMap with the sidecar's label holds each dashboard."""
    files = {path.name for path in (ROOT / "deploy/grafana/dashboards").glob("*.json")}
    boards = [
        set(one["data"])
        for one in of_kind(overlay, "ConfigMap")
        if one["metadata"].get("labels", {}).get("grafana_dashboard") == "1"
    ]

    assert boards == [files] * len(of_kind(overlay, "Namespace"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_objects_carry_the_standard_labels(overlay: str) -> None:
    """Pods name their part, component and version, as dashboards and policies expect."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    ours = [one for one in pod_templates(overlay).values() if "part-of" in str(one["metadata"])]
    labels = [one["metadata"]["labels"] for one in ours]

    assert len(ours) >= 4
    assert {one["app.kubernetes.io/part-of"] for one in labels} == {"keepa"}
    assert {one["app.kubernetes.io/version"] for one in labels} == {project["version"]}
    assert all("app.kubernetes.io/component" in one for one in labels)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_bad_release_replaces_no_good_fetcher(overlay: str) -> None:
    """A new fetcher must have started, and stayed, before an old one ends."""
    for one in of_kind(overlay, "Deployment"):
        if one["metadata"]["name"] != "fetcher":
            continue
        spec = one["spec"]
        [container] = spec["template"]["spec"]["containers"]
        program, *words = container["startupProbe"]["exec"]["command"]

        assert spec["minReadySeconds"] >= 5
        assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
        assert (program, words) == ("dealfetcher", ["ready"])
        assert "livenessProbe" not in container


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_fetcher_may_finish_its_paid_calls(overlay: str) -> None:
    """The grace holds the finish time, and what a stop takes besides; claims last as long."""
    template = next(
        one for name, one in pod_templates(overlay).items() if name.endswith("/fetcher")
    )
    [container] = template["spec"]["containers"]
    finish_s = float(environment(overlay, container)["FINISH_SECONDS"])

    assert finish_s + 10 <= template["spec"]["terminationGracePeriodSeconds"]
    assert finish_s <= Settings.model_fields["claim_ttl_s"].default


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_version_has_its_own_migration(overlay: str) -> None:
    """The Job is named by version, keeps its logs for a day, and ends in any case."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    jobs = of_kind(overlay, "Job")

    assert {one["metadata"]["name"] for one in jobs} == {
        f"migrate-{project['version'].replace('.', '-')}"
    }
    assert all(one["spec"]["ttlSecondsAfterFinished"] == 86_400 for one in jobs)
    assert all(one["spec"]["activeDeadlineSeconds"] > 0 for one in jobs)
    assert all(
        one["metadata"]["annotations"]["argocd.argoproj.io/hook-delete-policy"]
        == "BeforeHookCreation"
        for one in jobs
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_old_deals_are_pruned_by_one_at_a_time(overlay: str) -> None:
    """A CronJob prunes by itself; a run that takes long keeps the next from starting."""
    jobs = of_kind(overlay, "CronJob")
    arguments = [container["args"] for name, container in containers(overlay) if name == "prune"]

    assert len(jobs) == len(of_kind(overlay, "Namespace"))
    assert {one["spec"]["concurrencyPolicy"] for one in jobs} == {"Forbid"}
    assert arguments == [["prune"]] * len(jobs)
