"""The tracing component fits the programs, and opens the network to the collector."""

import os
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from protos.process.settings import TracingSettings

KUBERNETES = Path(__file__).parents[3] / "deploy/kubernetes"

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is missing: kubernetes.io/docs/tasks/tools"
)


def test_broker_and_fetcher_reach_their_collector(tmp_path: Path) -> None:
    """Both get the endpoint, and a network policy allows both to reach its port."""
    base, component = (
        os.path.relpath(KUBERNETES / part, tmp_path) for part in ("base", "components/tracing")
    )
    overlay = {"resources": [base], "components": [component]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
    run = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True, check=True
    )
    manifests = {
        (one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(run.stdout)
    }
    environments = {
        name: {one["name"]: one.get("value") for one in container["env"]}
        for (kind, name), manifest in manifests.items()
        if kind == "Deployment"
        for container in manifest["spec"]["template"]["spec"]["containers"]
    }
    variables = {
        name: {key: value for key, value in environment.items() if key.startswith("OTEL_")}
        for name, environment in environments.items()
    }
    settings = {key.lower(): value for key, value in variables["broker"].items()}
    protocol = TracingSettings.model_validate(settings).protocol
    endpoint = urlsplit(settings["otel_exporter_otlp_endpoint"])
    policy = manifests["NetworkPolicy", "to-collector"]["spec"]
    [way] = policy["egress"]

    assert variables["broker"] == variables["fetcher"]
    assert protocol == "http/protobuf"
    assert sorted(policy["podSelector"]["matchExpressions"][0]["values"]) == ["broker", "fetcher"]
    assert way["ports"] == [{"protocol": "TCP", "port": endpoint.port}]
    assert way["to"][0]["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": str(endpoint.hostname).split(".")[1]
    }
