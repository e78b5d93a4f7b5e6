"""docker-compose.yml on a real engine: build, start, collect, scale, kill, recover, stop.

Run by `make compose-test` only, because it takes minutes. The docker command finds the
engine (context, DOCKER_HOST); BUILD_NETWORK=host builds where containers have no network
of their own. The tests share one stack and run in order.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from deploy.keepa_simulator.options import DEMO_KEY

ROOT = Path(__file__).parents[3]
# Free ones: another stack may run on this machine.
PORTS = ("BROKER_RPC_PORT", "BROKER_HTTP_PORT", "CONSOLE_PORT", "GATEWAY_PORT", "PROMETHEUS_PORT")
FILES = ("docker-compose.yml", "deploy/docker/simulator.yml")
TLS_FILE = "deploy/docker/tls.yml"
PGBOUNCER_FILE = "deploy/docker/pgbouncer.yml"
NEWER_POSTGRES_FILE = "deploy/docker/postgres-18.yml"
DUMP = ("pg_dump", "--username=deals", "--format=custom", "deals")
RESTORE = (
    *("pg_restore", "--username=deals", "--dbname=deals"),
    *("--clean", "--if-exists", "--single-transaction"),
)
PROMETHEUS = "prom/prometheus:v3.5.0"
BASE_IMAGE = "python:3.12-slim"
ABOVE_BASE_MAX_BYTES = 130_000_000
BUILD_TIMEOUT_S = 1_200
COMMAND_TIMEOUT_S = 300.0
DEADLINE_S = 300
POLL_S = 0.5
# SIGTERM drains within 5 s; the rest is the engine's own time for several containers at once.
STOP_MAX_S = 8
FETCHERS = 4


def docker(*arguments: str, timeout_s: float = COMMAND_TIMEOUT_S, **settings: str) -> str:
    """The output of a docker command."""
    run = subprocess.run(
        ["docker", *arguments],
        cwd=ROOT,
        env=os.environ | dict.fromkeys(PORTS, "0") | settings,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def no_engine() -> str:
    """Why there is no engine to run on; empty if there is one."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    for command in (["version"], ["compose", "version"]):
        run = subprocess.run(["docker", *command], capture_output=True, text=True, check=False)
        if run.returncode:
            return f"docker {' '.join(command)}: {run.stderr.strip().splitlines()[-1]}"
    return ""


class Stack:
    """The compose project under a name and on ports of its own.

    Args:
        overrides: Further compose files.
        settings: Variables of the compose files.
    """

    def __init__(self, *overrides: str, **settings: str) -> None:
        self._files = (*FILES, *overrides)
        self._settings = settings

    def run(self, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Runs a docker compose command on it."""
        files = [part for file in self._files for part in ("--file", file)]
        project = ("compose", "--project-name", "keepa-test", *files)
        return docker(*project, *arguments, timeout_s=timeout_s, **self._settings)

    def stream(
        self, *command: str, source: Path | None = None, target: Path | None = None
    ) -> None:
        """Runs a command beside Postgres, its input from *source* or its output to *target*."""
        files = [part for file in self._files for part in ("--file", file)]
        with (
            (source or Path(os.devnull)).open("rb") as given,
            (target or Path(os.devnull)).open("wb") as taken,
        ):
            run = subprocess.run(
                [
                    "docker",
                    "compose",
                    "--project-name",
                    "keepa-test",
                    *files,
                    "exec",
                    "--no-TTY",
                    "postgres",
                    *command,
                ],
                cwd=ROOT,
                env=os.environ | self._settings,
                stdin=given,
                stdout=taken,
                stderr=subprocess.PIPE,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )
        assert run.returncode == 0, run.stderr.decode()

    def containers(self, service: str) -> list[str]:
        """Ids of the running containers of *service*."""
        return self.run("ps", "--quiet", service).split()

    def inspect(self, container: str, what: str) -> str:
        """One property of a container, as a Go template."""
        return docker("inspect", "--format", what, container).strip()

    def number(self, statement: str) -> int:
        """The number that a statement returns in the database."""
        psql = ("psql", "--username=deals", "--no-align", "--tuples-only", "--command")
        return int(self.run("exec", "--no-TTY", "postgres", *psql, statement))


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Blocks until *condition* holds; fails the test if it does not in time."""
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, f"no {what} within {DEADLINE_S} s"
        time.sleep(POLL_S)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """The built and running stack; removed afterwards, volumes included."""
    if reason := no_engine():
        pytest.skip(f"no Docker engine: {reason}")
    running = Stack()
    # Of all profiles: a container that stays behind would look for the network of its run.
    everything = ("--profile", "*", "down", "--volumes")
    running.run(*everything, "--remove-orphans")
    try:
        running.run("up", "--build", "--detach", timeout_s=BUILD_TIMEOUT_S)
        yield running
    finally:
        running.run(*everything, "--timeout", "5")


def test_deals_arrive(stack: Stack) -> None:
    """A fresh checkout without a key collects deals."""
    wait_for(lambda: stack.number("SELECT count(*) FROM deals") > 0, "deals")

    services = ("simulator", "postgres", "broker", "fetcher", "gateway", "console")

    assert [health(stack, name) for name in services] == [["healthy"]] * len(services)


def test_programs_share_the_account_through_the_gateway(stack: Stack) -> None:
    """Keepa's API on the published port: the call waits for its lease and is answered."""
    url = f"http://{published(stack, 'gateway', 8902)}/product?key=any&domain=1&asin=B0D8W1YVBX"
    with urlopen(url, timeout=DEADLINE_S) as reply:
        answer = json.load(reply)

    assert len(answer["products"]) == 1


def test_pages_show_tokens_and_deals(stack: Stack) -> None:
    """Both pages are there for this machine's browsers."""
    pages = [("broker", 9464, "tokens"), ("console", 9466, "deals")]
    shown = [
        urlopen(f"http://{published(stack, name, port)}/", timeout=DEADLINE_S).read().decode()
        for name, port, _ in pages
    ]

    assert [word in page.lower() for (_, _, word), page in zip(pages, shown, strict=True)] == [
        True,
        True,
    ]


def test_the_journal_accounts_for_every_token(stack: Stack) -> None:
    """README's commands: spend by holder, and the audit by Keepa's own count."""
    spend = json.loads(tokenbroker(stack, "spend", "--by", "holder", "-o", "json"))
    audit = json.loads(tokenbroker(stack, "audit", "-o", "json"))
    story = json.loads(tokenbroker(stack, "explain", spend["rows"][0]["holder"], "-o", "json"))

    assert spend["total_tokens"] > 0
    assert audit["explained"] is True
    assert story


def test_the_profiles_come_up(stack: Stack, tmp_path: Path) -> None:
    """Alerts, pruning and measuring run beside the rest, each as its own role."""
    channels = tmp_path / "alerts.toml"
    channels.write_text('[channels.team]\napprise = "json://simulator:8901/none"\n', "utf-8")
    channels.chmod(0o644)
    tmp_path.chmod(0o755)
    extended = Stack(ALERTS_FILE=str(channels))
    services = ("alert", "metrics", "prune")
    profiles = ("--profile", "alerts", "--profile", "retention", "--profile", "observability")
    extended.run(*profiles, "up", "--detach", "--no-build", "--no-deps", *services)
    states = [health(extended, name) for name in services]
    wait_for(lambda: "deleted: " in stack.run("logs", "prune"), "a run of the profile")
    extended.run(*profiles, "stop", "alert", "prune")

    assert states == [["healthy"]] * len(services)


def test_prometheus_scrapes_what_the_profile_starts(stack: Stack) -> None:
    """Broker and metrics are up under the job names of the alerts."""
    if not has_image(PROMETHEUS):
        pytest.skip(f"{PROMETHEUS} is not here, and no registry has it")
    observed = ("--profile", "observability", "up", "--detach", "--no-build", "--no-deps")
    stack.run(*observed, "metrics", "prometheus")
    url = f"http://{published(stack, 'prometheus', 9090)}/api/v1/query?query=up"

    def up() -> dict[str, str]:
        try:
            with urlopen(url, timeout=10) as reply:
                series = json.load(reply)["data"]["result"]
        except OSError:
            return {}
        return {one["metric"]["job"]: one["value"][1] for one in series}

    wanted = {"keepa-broker": "1", "keepa-fetcher-metrics": "1"}
    wait_for(lambda: up() == wanted, "both jobs scraped")
    stack.run("--profile", "observability", "stop", "metrics", "prometheus")


def test_images_are_small_and_without_root() -> None:
    """Each image adds less than 130 MB to its base, and starts as an ordinary user."""
    if reason := no_engine():
        pytest.skip(f"no Docker engine: {reason}")
    images = ["keepa-broker", "keepa-fetcher", "keepa-gateway", "keepa-simulator"]
    found = json.loads(docker("image", "inspect", BASE_IMAGE, *images))
    base, ours = found[0], found[1:]

    assert [image["Size"] - base["Size"] < ABOVE_BASE_MAX_BYTES for image in ours] == [True] * len(
        images
    )
    assert {image["Config"]["User"] for image in ours} == {"10001:10001"}


def test_fetchers_scale(stack: Stack) -> None:
    """Several fetchers work side by side."""
    stack.run("up", "--detach", "--no-build", "--no-recreate", "--scale", f"fetcher={FETCHERS}")

    alive = "SELECT count(*) FROM workers WHERE seen_at > now() - interval '30 seconds'"
    wait_for(lambda: stack.number(alive) == FETCHERS, "as many living fetchers")


def test_collection_survives_a_killed_broker(stack: Stack) -> None:
    """A killed broker restarts by itself, and fetchers read pages again."""
    broker = stack.containers("broker")[0]
    started = stack.inspect(broker, "{{.State.StartedAt}}")
    killed_at = stack.number("SELECT extract(epoch FROM now())::bigint")
    kill_from_outside(stack.inspect(broker, "{{.State.Pid}}"))
    wait_for(lambda: stack.inspect(broker, "{{.State.StartedAt}}") != started, "new broker")
    wait_for(
        lambda: stack.inspect(broker, "{{.State.Health.Status}}") == "healthy", "healthy broker"
    )

    read = f"SELECT count(*) FROM scan_pages WHERE done_at > to_timestamp({killed_at + 5})"
    wait_for(lambda: stack.number(read) > 0, "page read after the kill")


def test_a_standby_takes_over(stack: Stack) -> None:
    """Two brokers: the other one leads after a kill, deals go on, the audit explains both."""
    stack.run("up", "--detach", "--no-build", "--no-recreate", "--scale", f"fetcher={FETCHERS}",
              "--scale", "broker=2")  # fmt: skip
    assert health(stack, "broker") == ["healthy"] * 2
    leader, standby = leader_first(stack)
    kill_from_outside(stack.inspect(leader, "{{.State.Pid}}"))
    wait_for(lambda: bucket(standby)["state"] == "serving", "the standby's lead")
    taken_at = stack.number("SELECT extract(epoch FROM now())::bigint")
    wait_for(lambda: stack.inspect(leader, "{{.State.Health.Status}}") == "healthy", "a standby")
    follower = bucket(leader)
    read = f"SELECT count(*) FROM scan_pages WHERE done_at > to_timestamp({taken_at + 1})"
    wait_for(lambda: stack.number(read) > 0, "a page read after the kill")
    audit = json.loads(tokenbroker(stack, "audit", "--tolerance", "60", "-o", "json"))
    stack.run("up", "--detach", "--no-build", "--no-recreate", "--scale", f"fetcher={FETCHERS}",
              "--scale", "broker=1")  # fmt: skip

    assert follower["state"] == "standby"
    assert follower["leader"] == f"{standby[:12]}:50051"
    assert audit["epochs"] > 2


def test_roles_have_the_least_rights(stack: Stack) -> None:
    """No fetcher is the owner of the tables, and none can read the owner's password."""
    owner = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dealfetcher' AND"
    seen = stack.run("exec", "--no-TTY", "fetcher", "python", "-c", READ_CREDENTIALS)

    wait_for(lambda: stack.number(f"{owner} usename = 'fetcher'") > 0, "a fetcher's connection")
    assert stack.number(f"{owner} usename NOT IN ('fetcher', 'reader')") == 0
    assert seen.split() == ["fetcher"]


def test_nothing_shows_the_key(stack: Stack) -> None:
    """No log line and no environment holds the key."""
    containers = stack.run("ps", "--all", "--quiet").split()

    assert DEMO_KEY not in stack.run("logs")
    assert all(DEMO_KEY not in stack.inspect(one, "{{.Config.Env}}") for one in containers)


def test_everything_ends_when_asked_to(stack: Stack) -> None:
    """Each program ends by itself within seconds."""
    services = ("fetcher", "gateway", "console", "broker", "simulator")
    containers = [one for service in services for one in stack.containers(service)]
    took_s = [stop_time_s(stack, service) for service in services]

    assert [stack.inspect(one, "{{.State.ExitCode}}") for one in containers] == ["0"] * (
        FETCHERS + 4
    )
    assert max(took_s) < STOP_MAX_S, took_s


def test_mutual_tls_collects_pages(stack: Stack, tmp_path: Path) -> None:
    """Broker, fetcher and operator authenticate with certificates, also with renewed ones."""
    make = [ROOT / "deploy/tls/make-certificates.sh", tmp_path / "tls"]
    subprocess.run(make, check=True)
    secured = Stack(TLS_FILE, TLS_DIR=str(tmp_path / "tls"))
    secured.run("up", "--detach", "--no-build", "--scale", "fetcher=1")
    begun_at = stack.number("SELECT extract(epoch FROM now())::bigint")
    subprocess.run(make, check=True)
    bucket = json.loads(secured.run("run", "--rm", "operator", "sync", "--output", "json"))

    read = f"SELECT count(*) FROM scan_pages WHERE done_at > to_timestamp({begun_at})"
    wait_for(lambda: stack.number(read) > 0, "page read with mutual TLS")
    logs = secured.run("logs", "broker", "fetcher")

    assert health(secured, "broker") == health(secured, "fetcher") == ["healthy"]
    assert bucket["capacity"] > 0
    assert "mutual TLS" in logs
    assert "PRIVATE KEY" not in logs


def test_a_pooler_in_transaction_mode_carries_all_work(stack: Stack) -> None:
    """Migrations, repeated too, and fetchers work through PgBouncer with two connections."""
    pooled = Stack(PGBOUNCER_FILE)
    begun_at = stack.number("SELECT extract(epoch FROM now())::bigint")
    pooled.run("up", "--build", "--detach", "--scale", "fetcher=2", timeout_s=BUILD_TIMEOUT_S)
    again = pooled.run("run", "--rm", "migrate", "migrate")

    read = f"SELECT count(*) FROM scan_pages WHERE done_at > to_timestamp({begun_at})"
    wait_for(lambda: stack.number(read) > 3, "pages read through PgBouncer")
    logs = pooled.run("logs", "--since", "2m", "fetcher")

    assert "nothing to do" in again
    assert "login attempt" in pooled.run("logs", "pgbouncer")
    assert "prepared statement" not in logs
    assert "Postgres is away" not in logs
    assert json.loads(tokenbroker(pooled, "status", "-o", "json"))["journal"]["state"] == "writing"


def test_old_deals_are_pruned(stack: Stack) -> None:
    """The command of the profile deletes them, as the fetchers' role."""
    stack.run("stop", "fetcher")
    old = (
        "WITH old AS (UPDATE deals SET reply_time = now() - interval '400 days' WHERE asin IN"
        " (SELECT asin FROM deals ORDER BY asin LIMIT 10) RETURNING 1) SELECT count(*) FROM old"
    )
    count = stack.number(old)
    deleted = json.loads(stack.run("run", "--rm", "prune", "prune", "--output", "json"))

    assert count > 0
    assert deleted["deals"] == count


def test_a_backup_restores_what_was_deleted(stack: Stack, tmp_path: Path) -> None:
    """README's lines: dump while all runs, restore, and fetchers go on."""
    stack.run("up", "--detach", "--no-build", "--scale", "fetcher=1")
    wait_for(lambda: stack.number("SELECT count(*) FROM deals") > 0, "deals")
    stack.stream(*DUMP, target=tmp_path / "deals.dump")
    stack.run("stop", "fetcher", "broker")
    before = stack.number("SELECT count(*) FROM deals")
    stack.number("WITH gone AS (DELETE FROM listings RETURNING 1) SELECT count(*) FROM gone")
    lost = stack.number("SELECT count(*) FROM deals")
    restore(stack, tmp_path / "deals.dump")

    assert lost == 0
    # Pages that were read after the dump are read again.
    assert 0 < stack.number("SELECT count(*) FROM deals") <= before
    expect_new_pages(stack)


def test_a_newer_postgres_takes_over_the_data(stack: Stack, tmp_path: Path) -> None:
    """README's lines: dump, another folder of data, restore; the old volume stays."""
    newer = Stack(NEWER_POSTGRES_FILE)
    stack.run("stop", "fetcher", "broker")
    before = stack.number("SELECT count(*) FROM deals")
    stack.stream(*DUMP, target=tmp_path / "deals.dump")
    stack.run("down", "--timeout", "5")
    restore(newer, tmp_path / "deals.dump")

    assert newer.number("SELECT count(*) FROM deals") == before > 0
    expect_new_pages(newer)
    newer.run("down", "--volumes", "--timeout", "5")


READ_CREDENTIALS = """
from pathlib import Path
for found in Path("/run").rglob("database_url"):
    print(found.read_text().partition("://")[2].partition(":")[0])
"""


def published(stack: Stack, service: str, port: int) -> str:
    """The address on this machine of a service's port."""
    return stack.run("port", service, str(port)).strip()


def tokenbroker(stack: Stack, *command: str) -> str:
    """The output of a command beside the broker."""
    return stack.run("exec", "--no-TTY", "broker", "tokenbroker", *command)


def bucket(container: str) -> dict[str, Any]:
    """The bucket as the broker in *container* sees it; {} while it does not answer."""
    command = ("tokenbroker", "status", "--address", f"{container[:12]}:50051", "-o", "json")
    run = subprocess.run(
        ["docker", "exec", container, *command], capture_output=True, text=True, check=False
    )
    return dict(json.loads(run.stdout)) if run.returncode == 0 else {"state": ""}


def leader_first(stack: Stack) -> list[str]:
    """The containers of the two brokers, the leader's first."""
    brokers = stack.containers("broker")
    return sorted(brokers, key=lambda one: bucket(one)["state"] == "standby")


def has_image(name: str) -> bool:
    """Whether the engine has an image, or gets it from a registry."""
    for command in (["image", "inspect", name], ["pull", "--quiet", name]):
        if subprocess.run(["docker", *command], capture_output=True, check=False).returncode == 0:
            return True
    return False


def restore(stack: Stack, dump: Path) -> None:
    """Restores *dump* as README has it."""
    stack.run("up", "--detach", "--no-build", "--wait", "postgres")
    stack.run("run", "--rm", "migrate")
    stack.stream("psql", "--username=deals", "--command=DROP SCHEMA tokenbroker CASCADE")
    stack.stream(*RESTORE, source=dump)


def expect_new_pages(stack: Stack) -> None:
    """Starts the stack, and waits until a fetcher has read another page."""
    begun_at = stack.number("SELECT extract(epoch FROM now())::bigint")
    stack.run("up", "--detach", "--no-build", "--scale", "fetcher=1")
    read = f"SELECT count(*) FROM scan_pages WHERE done_at > to_timestamp({begun_at})"
    wait_for(lambda: stack.number(read) > 0, "a page read after the restore")


def stop_time_s(stack: Stack, service: str) -> float:
    """Stops *service*; returns the seconds that it took."""
    started_s = time.monotonic()
    stack.run("stop", service)
    return time.monotonic() - started_s


def health(stack: Stack, service: str) -> list[str]:
    """The engine's health states of the containers of *service*, once all are healthy."""

    def states() -> list[str]:
        return [
            stack.inspect(one, "{{.State.Health.Status}}") for one in stack.containers(service)
        ]

    # On a busy machine a check may take longer than it is given, so one verdict decides nothing.
    wait_for(lambda: set(states()) == {"healthy"}, f"health of {service}")
    return states()


def kill_from_outside(pid: str) -> None:
    """Kills a process like a crash; after `docker kill`, the engine would not restart it."""
    program = f"import os; os.kill({pid}, 9)"
    docker(
        *("run", "--rm", "--pid=host", "--network=none", "--user=0"),
        *("--entrypoint=python", "keepa-broker", "-c", program),
    )
