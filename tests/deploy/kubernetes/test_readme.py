"""README's way to production: its kustomization by remote reference, components, commands."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.kubernetes.network import Peer, network_of, pods
from tests.deploy.kubernetes.rendered import (
    KUBERNETES,
    ROOT,
    WORKLOADS,
    Manifest,
    name_of,
    needs_kubectl,
    render,
    template_of,
)

README = (KUBERNETES / "README.md").read_text("utf-8")
COMPONENTS = sorted(path.name for path in (KUBERNETES / "components").iterdir())

pytestmark = needs_kubectl


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a git repository with the present manifests, at the tag v0.1.0."""
    folder = tmp_path_factory.mktemp("remote") / "keepa.git"
    for part in ("kubernetes", "queries", "grafana"):
        shutil.copytree(ROOT / "deploy" / part, folder / "deploy" / part)
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.com")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "All"], ["tag", "v0.1.0"]):
        subprocess.run(["git", *identity, *command], cwd=folder, check=True, timeout=60)
    return folder.as_uri()


@pytest.fixture(scope="module")
def own(remote: str, tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """The objects of README's own folder, with the repository's address."""
    folder = tmp_path_factory.mktemp("own")
    [text] = re.findall(r"^```yaml\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    (folder / "kustomization.yaml").write_text(
        text.replace("https://git.example.com/keepa-token-broker", remote), encoding="utf-8"
    )
    (folder / "queries").mkdir()
    shutil.copy(ROOT / "deploy/queries/books-used-drops.json", folder / "queries/books.json")
    return render(folder)


def test_a_folder_of_ones_own_is_all_that_production_needs(own: list[Manifest]) -> None:
    """By remote reference: the operator's queries, images, label and Postgres, and no more."""
    by_name = {(one["kind"], one["metadata"]["name"]): one for one in own}
    images = {
        container["image"]
        for one in own
        if one["kind"] in WORKLOADS
        for container in template_of(one)["spec"]["containers"]
    }

    assert list(by_name["ConfigMap", "queries"]["data"]) == ["books.json"]
    assert images == {f"registry.example.com/keepa-{name}:0.1.0" for name in ("broker", "fetcher")}
    assert by_name["ServiceMonitor", "keepa"]["metadata"]["labels"]["release"]
    assert {one["metadata"].get("namespace", "keepa") for one in own} == {"keepa"}
    fetcher = next(one for one in pods(own) if one.name == "fetcher")
    assert network_of(own).lets(fetcher, Peer("postgres", address="10.1.2.3"), 5432)


def test_the_commands_name_what_there_is(own: list[Manifest]) -> None:
    """Deployments, Jobs and Secrets of the page's commands exist in the rendering."""
    names = {f"{one['kind'].lower()}/{one['metadata']['name']}" for one in own}
    used = set(re.findall(r"\b((?:deployment|job|cronjob|service)/[a-z0-9-]+)", README))
    made = set(re.findall(r"create secret generic ([a-z$-]+)", README))
    mounted = {
        volume["secret"]["secretName"]
        for one in own
        if one["kind"] in WORKLOADS
        for volume in template_of(one)["spec"]["volumes"]
        if "secret" in volume
    }

    assert used - names == {"service/prometheus-operated"}
    assert mounted == (made - {"$name-tls"}) | {"broker-tls", "fetcher-tls"}


def test_the_walk_uses_kubectl_alone() -> None:
    """No step needs the clone, but the script that makes certificates."""
    walk = README.partition("## Production")[2].partition("## Day by day")[0]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", walk, re.MULTILINE | re.DOTALL)
    programs = {
        line.split()[0]
        for language, block in blocks
        for line in block.splitlines()
        if not language and not line.startswith("postgresql://")
    }

    assert programs <= {"kubectl", "curl", "for", "done", "deploy/tls/make-certificates.sh"}


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_is_found_by_remote_reference(
    component: str, remote: str, tmp_path: Path
) -> None:
    """Each renders on the base, and the page or the production overlay names it."""
    overlay = {
        "namespace": "keepa",
        "resources": [f"{remote}//deploy/kubernetes/base?ref=v0.1.0"],
        "components": [f"{remote}//deploy/kubernetes/components/{component}?ref=v0.1.0"],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
    production = (KUBERNETES / "overlays/production/kustomization.yaml").read_text("utf-8")

    assert render(tmp_path)
    assert f"`{component}`" in README or f"components/{component}" in production


def with_components(remote: str, folder: Path, *names: str) -> list[Manifest]:
    """The base with components."""
    overlay = {
        "resources": [f"{remote}//deploy/kubernetes/base?ref=v0.1.0"],
        "components": [
            f"{remote}//deploy/kubernetes/components/{name}?ref=v0.1.0" for name in names
        ],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(overlay), encoding="utf-8")
    return render(folder)


def test_pods_pull_with_the_registrys_password_and_have_a_priority(
    remote: str, tmp_path: Path
) -> None:
    """Every pod names the Secret; the broker's priority is above the fetchers'."""
    rendered = with_components(remote, tmp_path, "private-registry", "priority")
    templates = [template_of(one) for one in rendered if one["kind"] in WORKLOADS]
    classes = {one["metadata"]["name"]: one["value"] for one in rendered if "value" in one}
    given = {
        name_of(one): classes[one["spec"]["priorityClassName"]]
        for one in templates
        if "priorityClassName" in one["spec"]
    }

    assert {str(one["spec"]["imagePullSecrets"]) for one in templates} == {
        "[{'name': 'registry'}]"
    }
    assert given["broker"] > given["fetcher"] > 0
