"""The alert rules fire when they should, and only then."""

import shutil
import subprocess
from pathlib import Path

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
        [PROMTOOL, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


@needs_promtool
def test_alerts_fire_in_their_unit_tests() -> None:
    """Each alert fires on its trouble and stays silent otherwise."""
    run = promtool("test", "rules", "tests/deploy/observability/alerts.test.yml")

    assert run.returncode == 0, run.stdout + run.stderr


@needs_promtool
def test_prometheus_accepts_its_configuration() -> None:
    """Prometheus accepts this configuration and these rules."""
    run = promtool("check", "config", "deploy/prometheus/prometheus.yml")

    assert run.returncode == 0, run.stdout + run.stderr


def test_every_alert_has_a_unit_test() -> None:
    """Every alert has a test that names it."""
    rules = (ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8")
    tests = (ROOT / "tests/deploy/observability/alerts.test.yml").read_text(encoding="utf-8")
    names = [line.split()[-1] for line in rules.splitlines() if "- alert:" in line]

    assert names
    assert [name for name in names if f"alertname: {name}" not in tests] == []


def test_kubernetes_has_the_same_alerts() -> None:
    """The PrometheusRule has the rules of the file; `make alerts` copies them."""
    path = "deploy/kubernetes/components/monitoring/prometheus-rule.yaml"
    rules, copied = (
        yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
        for name in ("deploy/prometheus/alerts.yml", path)
    )

    assert copied["spec"] == rules
