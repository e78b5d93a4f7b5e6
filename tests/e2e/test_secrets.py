"""No output of a full run, with or without failures, holds a key or a password."""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote, quote_plus
from urllib.request import urlopen

import psycopg
from psycopg import sql
from structlog.processors import JSONRenderer

from deploy.local.ports import free_port
from deploy.local.program import Program, stop_together
from protos.channel.access import Access
from protos.process.logs import Renderer
from protos.process.redaction import REDACTED
from tests.e2e.collection import fetch, write_query
from tests.e2e.otlp_receiver import receiving
from tests.fix_broker import StartBroker, StartProgram, environment
from tests.fix_certificates import table
from tests.fix_simulator import StartSimulator
from tests.waiting import wait_until

# Each has a core that no other text contains and no quoting changes, and characters that
# URLs, JSON and SQL write differently.
KEY_CORE, PASSWORD_CORE = "k3ycore0123456789abcdef", "passwordcore4711"
KEY, PASSWORD = f'/{KEY_CORE}+"\\=', f'"{PASSWORD_CORE}@/ \\é'
OTHER_KEY = f"{KEY}other"
TOKEN_CORE = "tokencore0815"
# Each fault with its words in a log.
FAULTS = {
    "error:status=503,path=/deal,count=2": "HTTP 503",
    "reset:path=/deal,count=1": "the connection broke",
    "garbage:path=/product,count=1": "the reply is cut or no JSON",
    "garbage:path=/token,count=1": "cannot read Keepa's balance",
}
COMMANDS = {
    "broker": ("status", "leases", "sync"),
    "fetcher": (
        *("scans", "deals", "rejections", "pages dead", "pages requeue", "queries check"),
        *("doctor", "prune --force", "verify-sort"),
    ),
}


def pages(*urls: str) -> Iterator[tuple[str, str]]:
    """The body of each URL, also of an error."""
    for url in urls:
        try:
            with urlopen(url, timeout=10) as reply:
                yield url, reply.read().decode()
        except HTTPError as exc:
            yield url, exc.read().decode()


def printed(module: str, arguments: str, **settings: object) -> tuple[str, str]:
    """The output of a command."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments.split()],
        env=environment(**settings),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return f"{module} {arguments}", done.stdout + done.stderr


def command_outputs(wrong: Path, **settings: object) -> Iterator[tuple[str, str]]:
    """The output of every command, also of failing ones and those with a *wrong* token."""
    password = quote(PASSWORD, safe="")
    away = f"postgresql://postgres:{password}@127.0.0.1:{free_port()}/deals"
    with ThreadPoolExecutor(4) as pool:
        # The failing ones first, because they wait for a while.
        tasks = [
            pool.submit(printed, "fetcher", "doctor", **{**settings, "database_url": away}),
            pool.submit(
                printed, "fetcher", "doctor -o json", **{**settings, "keepa_api_key": OTHER_KEY}
            ),
            pool.submit(printed, "broker", "serve", **settings),
            pool.submit(printed, "broker", "status", **{**settings, "broker_token_file": wrong}),
        ]
        tasks += [
            pool.submit(printed, module, f"{command} --output json", **settings)
            for module, commands in COMMANDS.items()
            for command in commands
        ]
    yield from (task.result() for task in tasks)
    # One after the other, because a pause must end in a resume.
    for command in ("pause", "resume"):
        yield printed("broker", f"{command} --output json", **settings)


def dump(database_url: str) -> str:
    """Every row of every table as text."""
    tables = fetch(database_url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    select = sql.SQL("SELECT t::text FROM {} AS t")
    with psycopg.connect(database_url) as connection:
        rows = [
            connection.execute(select.format(sql.Identifier(table))).fetchall()
            for (table,) in tables
        ]
    return str(rows)


def words_missing(programs: Iterable[Program]) -> set[str]:
    """Faults that no log contains yet."""
    logs = "".join(program.output() for program in programs)
    return {words for words in FAULTS.values() if words not in logs}


def test_no_output_of_a_full_run_holds_a_secret(
    start_simulator: StartSimulator,
    start_broker: StartBroker,
    start_program: StartProgram,
    database_url: str,
    tmp_path: Path,
) -> None:
    """Logs, metrics, commands, spans and the database never hold key, password or token."""
    token, wrong = tmp_path / "token", tmp_path / "wrong-token"
    token.write_text(f"{TOKEN_CORE}-fetcher\n")
    wrong.write_text(f"{TOKEN_CORE}-nobody\n")
    identities = tmp_path / "identities.toml"
    identities.write_text(table("fetchers", "fetcher", token=token.read_text()))
    # So few tokens at first that fetchers must wait.
    simulator = start_simulator(
        api_key=KEY, initial_tokens=6, rate=200, tick_seconds=1, deals=300, cache_seconds=1
    )
    metrics = f"127.0.0.1:{free_port()}"
    with receiving() as receiver:
        tracing = {"otel_exporter_otlp_endpoint": receiver.url, "otel_bsp_schedule_delay": 100}
        served = start_broker(
            simulator.base_url,
            KEY,
            access=Access(token_file=token),
            broker_identities_file=identities,
            log_level="debug",
            **tracing,
        )
        settings = {
            "keepa_base_url": simulator.base_url,
            "keepa_api_key": KEY,
            "database_url": database_url.replace("@", f":{quote(PASSWORD, safe='')}@"),
            "broker_address": served.address,
            "broker_listen": served.address,
            "broker_token_file": token,
            "queries": write_query(
                tmp_path / "queries", "wide", {}, interval="1s", enrichment={"stats_days": 90}
            ),
            "poll_speed": 60,
            "retry_delay_s": 0.1,
            "metrics_listen": metrics,
            "log_level": "debug",
        }
        for fault in FAULTS:
            simulator.set_fault(fault)
        programs = [start_program("fetcher", "run", **settings, **tracing) for _ in range(2)]
        programs.append(start_program("fetcher", "metrics", **settings))
        programs.append(start_program("broker", "watch", "--output", "json", **settings))
        observed = (*programs, served.program)
        wait_until(lambda: words_missing(observed) == set(), "every fault in the logs")
        wait_until(lambda: fetch(database_url, "SELECT 1 FROM products") != [], "details")
        outputs = dict(command_outputs(wrong, **settings))
        urls = [f"{served.http_url}/{page}" for page in ("metrics", "healthz", "readyz")]
        outputs.update(pages(*urls, f"http://{metrics}/metrics"))
        outputs["database"] = dump(database_url)
        stop_together(observed)
        outputs |= {f"log of {program.name}": program.output() for program in observed}
        outputs["spans"] = "\n".join(span.text for span in receiver.spans)

    assert [source for source, text in outputs.items() if KEY_CORE in text] == []
    assert [source for source, text in outputs.items() if PASSWORD_CORE in text] == []
    assert [source for source, text in outputs.items() if TOKEN_CORE in text] == []
    assert [source for source, text in outputs.items() if not text] == []


def test_a_line_is_blanked_however_a_secret_is_written() -> None:
    """The log blanks a secret that a library logs, plain, quoted or in JSON."""
    redaction = Renderer(JSONRenderer(), [KEY, PASSWORD])
    written = [form(secret) for secret in (KEY, PASSWORD) for form in (str, quote, quote_plus)]
    line = redaction(None, "info", {"event": " ".join(written), "more": {"key": KEY}})

    assert KEY_CORE not in line
    assert PASSWORD_CORE not in line
    assert json.loads(line)["more"] == {"key": REDACTED}
