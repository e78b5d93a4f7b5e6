"""The alert rules fire when they should, and only then."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is missing: apt-get install prometheus"
)


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs promtool in the repository."""
    assert PROMTOOL is not None
    return subprocess.run(
        [PROMTOOL, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


@needs_promtool
def test_alerts_fire_in_their_unit_tests() -> None:
    """Each alert fires on its trouble and stays silent otherwise."""
    run = promtool("test", "rules", "tests/deploy/observability/alerts.test.yml")

    assert run.returncode == 0, run.stdout + run.stderr


@needs_promtool
def test_prometheus_accepts_its_configuration() -> None:
    """Prometheus accepts this configuration and these rules."""
    # The token's file exists in the container only.
    config = promtool("check", "config", "--syntax-only", "deploy/prometheus/prometheus.yml")
    rules = promtool("check", "rules", "deploy/prometheus/alerts.yml")

    assert config.returncode == 0, config.stdout + config.stderr
    assert rules.returncode == 0, rules.stdout + rules.stderr


def test_every_alert_has_a_unit_test() -> None:
    """Every alert has a test that names it."""
    tests = (ROOT / "tests/deploy/observability/alerts.test.yml").read_text(encoding="utf-8")
    names = [rule["alert"] for rule in rules()]

    assert names
    assert [name for name in names if f"alertname: {name}" not in tests] == []


def rules() -> list[dict[str, Any]]:
    """Every alert."""
    text = (ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8")
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def test_every_alert_has_its_page() -> None:
    """Each alert links to a section that explains it: meaning, look, remedy."""
    text = (ROOT / "deploy/prometheus/runbook.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    links = {rule["alert"]: rule["annotations"]["runbook_url"] for rule in rules()}

    assert links == {
        name: f"deploy/prometheus/runbook.md#{name.lower()}" for name in sections if name in links
    }
    assert [
        name
        for name in links
        if not all(f"**{part}.**" in sections[name] for part in ("Means", "Look", "Do"))
    ] == []


def test_alerts_ask_about_one_namespace() -> None:
    """Each expression begins with the namespace, which overlays replace there."""
    wrong = [
        rule["alert"]
        for rule in rules()
        if rule["expr"].split('"')[1] != "keepa" or "namespace=" not in rule["expr"].split('"')[0]
    ]

    assert wrong == []


def test_kubernetes_has_the_same_alerts() -> None:
    """The PrometheusRule has the rules of the file; `make alerts` copies them."""
    path = "deploy/kubernetes/components/monitoring/prometheus-rule.yaml"
    written, copied = (
        yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
        for name in ("deploy/prometheus/alerts.yml", path)
    )

    assert copied["spec"] == written
