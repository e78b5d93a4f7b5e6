"""Alerts, dashboards and autoscaling name metrics that a running collection really has."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import pytest
import yaml

from deploy.local.ports import free_port
from tests.deploy.observability.fix_stack import RunningStack, stack, wait_for
from tests.deploy.observability.test_alerts import PROMTOOL

__all__ = ["stack"]

ROOT = Path(__file__).parents[3]
PROMETHEUS = shutil.which("prometheus")
# Grafana replaces it by the data source that the viewer chooses.
SOURCE = "${datasource}"
METRIC = re.compile(r"\b(?:tokenbroker|dealfetcher)_[a-z_]+")

# The figures for operators, and their metrics.
WATCHED = {
    "balance as observed": "tokenbroker_observed_balance_tokens",
    "balance as projected": "tokenbroker_balance_tokens",
    "drift by cause": "tokenbroker_drift_by_cause_tokens",
    "foreign spend": "tokenbroker_foreign_spend_tokens",
    "reserved": "tokenbroker_reserved_tokens",
    "grants": "tokenbroker_grants_total",
    "denials by reason": "tokenbroker_denials_total",
    "wait time by priority": "tokenbroker_wait_seconds_bucket",
    "settle outcomes": "tokenbroker_settles_total",
    "tokens by operation": "tokenbroker_operation_spent_tokens_total",
    "tokens by holder": "tokenbroker_holder_spent_tokens_total",
    "probes": "tokenbroker_probes_total",
    "tick error": "tokenbroker_tick_error_seconds",
    "ETA error": "tokenbroker_eta_error_seconds_bucket",
    "refusals": "tokenbroker_refusals_total",
    "restarts": "tokenbroker_epoch",
    "oldest lease": "tokenbroker_oldest_lease_seconds",
    "callers not let in": "tokenbroker_refused_calls_total",
    "calls held back": "tokenbroker_held_back_calls_total",
    "deals stored": "dealfetcher_deals",
    "deals written": "dealfetcher_hour_rows",
    "rejections by rule": "dealfetcher_day_rejections",
    "freshness by query": "dealfetcher_query_newest_deal_age_seconds",
    "scan lag": "dealfetcher_query_scan_age_seconds",
    "watermark": "dealfetcher_query_watermark_age_seconds",
    "dead pages": "dealfetcher_dead_pages",
    "database size": "dealfetcher_database_size_bytes",
    "oldest row": "dealfetcher_oldest_deal_age_seconds",
    "Keepa's errors": "dealfetcher_keepa_errors_total",
    "statuses of RPCs": "tokenbroker_rpcs_total",
    "times of RPCs": "tokenbroker_rpc_seconds_bucket",
    "event loop": "tokenbroker_event_loop_lag_seconds_bucket",
    "versions": "tokenbroker_build_info",
    "use of budgets": "tokenbroker_budget_used_tokens",
    "followed files": "tokenbroker_followed_file_info",
    "Postgres latency": "dealfetcher_database_latency_seconds",
}


def dashboards() -> list[dict[str, Any]]:
    """Every provisioned dashboard of Grafana."""
    folder = ROOT / "deploy/grafana/dashboards"
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def panel_expressions() -> list[str]:
    """Every expression of every panel, for all namespaces and accounts."""
    panels = [panel for board in dashboards() for panel in board["panels"]]
    return [
        re.sub(r"\$(namespace|account)\b", ".*", target["expr"])
        for panel in panels
        for target in panel["targets"]
    ]


def alert_expressions() -> list[str]:
    """Every expression of every alert."""
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))
    return [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


def scaling_queries() -> list[str]:
    """KEDA's queries to Prometheus."""
    path = ROOT / "deploy/kubernetes/components/keda/scaled-object.yaml"
    triggers = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]["triggers"]
    return [trigger["metadata"]["query"] for trigger in triggers]


def scraped_names(exposition: str) -> set[str]:
    """The names of all series in *exposition*, and of those by label without a series yet."""
    lines = (line for line in exposition.splitlines() if line and not line.startswith("#"))
    empty = re.findall(r"^# TYPE (\S+) (?:counter|gauge)$", exposition, re.MULTILINE)
    return {re.split(r"[ {]", line, maxsplit=1)[0] for line in lines} | set(empty)


@contextmanager
def running_prometheus(stack: RunningStack, folder: Path) -> Iterator[str]:
    """A Prometheus with the deployed configuration, except for addresses and interval."""
    config = yaml.safe_load(
        (ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8")
    )
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(ROOT / "deploy/prometheus/alerts.yml")]
    del config["alerting"]
    targets = {"keepa-broker": stack.broker, "keepa-fetcher-metrics": stack.metrics}
    for scrape in config["scrape_configs"]:
        scrape.pop("dns_sd_configs", None)
        scrape["authorization"]["credentials_file"] = str(folder / "token")
        scrape["static_configs"] = [{"targets": [targets[scrape["job_name"]]]}]
    (folder / "token").write_text("any", encoding="utf-8")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    assert PROMETHEUS is not None
    process = subprocess.Popen(
        [
            PROMETHEUS,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            f"--web.listen-address={address}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        # Until its storage is open, it answers every query with 503.
        wait_for(lambda: is_ready(f"http://{address}"), "Prometheus to be ready", 60)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def is_ready(prometheus: str) -> bool:
    """Whether Prometheus answers queries yet."""
    try:
        with urlopen(f"{prometheus}/-/ready", timeout=60) as reply:
            return bool(reply.status == HTTPStatus.OK)
    except OSError:
        return False


def answers(prometheus: str, expression: str) -> bool:
    """Whether *expression* returns data. A refused one raises `HTTPError`."""
    with urlopen(f"{prometheus}/api/v1/query?query={quote(expression)}", timeout=60) as reply:
        return bool(json.load(reply)["data"]["result"])


def panels_without_data(stack: RunningStack, folder: Path) -> list[str]:
    """Expressions of panels without data in a Prometheus that scrapes *stack*."""
    waiting = panel_expressions()
    with running_prometheus(stack, folder) as prometheus:

        def answered() -> bool:
            waiting[:] = [one for one in waiting if not answers(prometheus, one)]
            return not waiting

        wait_for(answered, f"data for {waiting}", 60)
    return waiting


@pytest.mark.slow
def test_expressions_find_what_they_name(stack: RunningStack, tmp_path: Path) -> None:
    """Alerts, panels and scaling rules name metrics that are served; every panel shows data."""
    exposition = stack.scrape()
    wanted = set(
        METRIC.findall("\n".join([*panel_expressions(), *alert_expressions(), *scaling_queries()]))
    )
    lint = subprocess.run(
        [PROMTOOL or "true", "check", "metrics"],
        input=exposition,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # Without Prometheus (apt-get install prometheus), only the names are compared.
    silent = panels_without_data(stack, tmp_path) if PROMETHEUS else []

    assert wanted - scraped_names(exposition) == set()
    assert lint.returncode == 0, lint.stdout + lint.stderr
    assert silent == []


def test_whatever_is_watched_has_a_panel() -> None:
    """The dashboards show every figure for operators."""
    shown = set(METRIC.findall("\n".join(panel_expressions())))

    assert {what for what, metric in WATCHED.items() if metric not in shown} == set()


def test_dashboards_are_whole() -> None:
    """Dashboards and panels have unique names, and take data source and scope from variables."""
    boards = dashboards()
    panels = [panel for board in boards for panel in board["panels"]]

    assert len({board["uid"] for board in boards}) == len(boards) == 2
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    unscoped = [
        one
        for one in expressions
        if len(METRIC.findall(one)) + one.count("process_")
        != one.count('{namespace=~"$namespace",account=~"$account"')
    ]

    assert all(panel["title"] and panel["datasource"]["uid"] == SOURCE for panel in panels)
    assert all(
        [variable["name"] for variable in board["templating"]["list"]]
        == ["datasource", "namespace", "account"]
        for board in boards
    )
    assert unscoped == []
    assert all(
        len({panel["title"] for panel in board["panels"]}) == len(board["panels"])
        for board in boards
    )
