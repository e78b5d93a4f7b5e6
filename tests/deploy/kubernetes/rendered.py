"""The objects that `kubectl apply -k` would create, and simple questions about them."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
KUBERNETES = ROOT / "deploy/kubernetes"
OVERLAYS = ("local", "production", "two-accounts")
WORKLOADS = ("Deployment", "StatefulSet", "Job", "CronJob")

needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is missing: kubernetes.io/docs/tasks/tools"
)

Manifest = dict[str, Any]


def render(folder: Path) -> list[Manifest]:
    """Renders the kustomization in *folder*."""
    run = subprocess.run(
        ["kubectl", "kustomize", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return [one for one in yaml.safe_load_all(run.stdout) if one]


@cache
def manifests(overlay: str) -> list[Manifest]:
    """The objects of *overlay*."""
    return render(KUBERNETES / "overlays" / overlay)


def of_kind(overlay: str, *kinds: str) -> list[Manifest]:
    """The objects of *kinds*."""
    return [one for one in manifests(overlay) if one["kind"] in kinds]


def template_of(workload: Manifest) -> Manifest:
    """The pod template of a workload."""
    spec = workload["spec"]
    return dict(
        spec["jobTemplate"]["spec"]["template"] if "jobTemplate" in spec else spec["template"]
    )


def pod_templates(overlay: str) -> dict[str, Manifest]:
    """The pod template of every workload, by namespace/name, the name as its label has it."""
    return {
        f"{one['metadata']['namespace']}/{name_of(template_of(one))}": template_of(one)
        for one in of_kind(overlay, *WORKLOADS)
    }


def name_of(template: Manifest) -> str:
    """The name of a program, as its pods' label has it."""
    return str(template["metadata"]["labels"]["app.kubernetes.io/name"])


def containers(overlay: str) -> list[tuple[str, Manifest]]:
    """Every container with the name of its program."""
    return [
        (name_of(template), container)
        for template in pod_templates(overlay).values()
        for container in template["spec"]["containers"]
    ]


def environment(overlay: str, container: Manifest) -> dict[str, str]:
    """The variables of *container*, the ones of its ConfigMaps too."""
    maps = {one["metadata"]["name"]: one.get("data", {}) for one in of_kind(overlay, "ConfigMap")}
    given: dict[str, str] = {}
    for source in container.get("envFrom", []):
        given |= maps[source["configMapRef"]["name"]]
    return given | {one["name"]: one.get("value", "") for one in container.get("env", [])}


def matches(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a label *selector* matches an object with *labels*.

    Source: Kubernetes documentation, "Labels and Selectors", set-based requirements.
    """

    def holds(one: Manifest) -> bool:
        value = labels.get(one["key"])
        match one["operator"]:
            case "In":
                return value in one["values"]
            case "NotIn":
                return value not in one["values"]
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None
        raise AssertionError(one["operator"])

    wanted = selector.get("matchLabels", {})
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        map(holds, selector.get("matchExpressions", []))
    )
