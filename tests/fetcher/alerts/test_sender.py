"""The sender delivers what the outbox holds: at least once, under one id, within the rate."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fetcher.alerts.channels import Channels, Rate, read_channels
from fetcher.alerts.sender import Sender, SendLimits
from fetcher.broker_client import BrokerClient
from fetcher.postgres import Database
from fetcher.postgres.alerts import end_first_run, post, standings_of_alerts
from fetcher.postgres.outbox import (
    MessageClaim,
    MustWait,
    claim_message,
    count_messages,
    list_messages,
    retry_messages,
    senders_of,
)
from fetcher.postgres.retention import prune_some
from fetcher.query_folder import QueryFolder
from fetcher.reports.metrics import CollectionCollector, Measuring, measure
from fetcher.work.page_commit import write_deals
from protos.process.watched_files import Followed
from tests.fetcher.alerts.receivers import (
    WebhookReceiver,
    mail_receiver,
    webhook_receiver,
)
from tests.fetcher.keepa_pages import MINUTE_MS, NOON_MS, asin, query, reply, row
from tests.fix_broker import StartProgram
from tests.fix_fetcher import ROOT
from tests.waiting import DEADLINE_S, wait_until

ASKED = query(alerts=[{"channel": "team"}])
FAST = "100/s"
TTL_S = 30.0


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database, with the first run of the alert behind it."""
    with Database(database_url, connections_max=10) as database:
        with database.connection() as connection:
            standings_of_alerts(connection, ASKED)
            end_first_run(connection, ASKED)
        yield database


@pytest.fixture
def hook() -> Iterator[WebhookReceiver]:
    """A receiver of webhooks."""
    with webhook_receiver() as receiver:
        yield receiver


def cross(database: Database, *numbers: int) -> None:
    """Lets deals cross, each on a page of its own."""
    for number in numbers:
        paid = reply([row(number)], NOON_MS + number * MINUTE_MS)
        with database.connection() as connection:
            write_deals(connection, ASKED, paid, scan_id=None)


def channels_file(folder: Path, *, rate: str = FAST, **addresses: str) -> Path:
    """A file with a channel for each address."""
    path = folder / "alerts.toml"
    path.write_text(
        "".join(
            f"[channels.{name}]\n{'apprise' if 'mailto' in address else 'webhook'} ="
            f' "{address}"\nrate = "{rate}"\n'
            for name, address in addresses.items()
        )
    )
    return path


@contextmanager
def sending(
    database: Database, path: Path, *, attempts_max: int = 5, operators: bool = False
) -> Iterator[Sender]:
    """A sender in a thread of this process."""
    channels: Followed[Channels] = Followed([path], partial(read_channels, path))
    with BrokerClient("127.0.0.1:1") as broker:
        sender = Sender(
            holder="here-1",
            version="1",
            database=database,
            channels=channels,
            folder=QueryFolder(path.parent),
            broker=broker,
            limits=SendLimits(claim_ttl_s=TTL_S, attempts_max=attempts_max, retry_delay_s=0.05),
            fetcher_silent_s=30.0,
        )
        thread = threading.Thread(target=sender.run)
        thread.start()
        try:
            yield sender
        finally:
            sender.stop.set()
            thread.join()


def messages(database: Database, state: str | None = None) -> list[dict[str, Any]]:
    """The messages, the newest first."""
    with database.connection() as connection:
        return list_messages(connection, channel=None, state=state, limit=1000)


def series(database: Database, folder: Path) -> dict[str, float]:
    """The metrics of the channel "team", by their names."""
    measuring = Measuring(
        database, QueryFolder(folder), silent_s=30.0, retention=timedelta(days=1)
    )
    with database.connection() as connection:
        measuring.latest = measure(connection, [], [], silent_s=30.0)
    measuring.database_up = True
    return {
        sample.name: sample.value
        for family in CollectionCollector(measuring).collect()
        for sample in family.samples
        if sample.labels.get("channel") == "team"
    }


def works(database: Database) -> bool:
    """Whether a sender has reported."""
    with database.connection() as connection:
        return bool(senders_of(connection, "here"))


def delivered(receiver: WebhookReceiver) -> list[str]:
    """The ASINs in all requests."""
    bodies = [json.loads(request.body) for request in receiver.received]
    return [deal["asin"] for body in bodies for deal in body["data"]["deals"]]


def test_every_crossing_is_delivered_once(
    database: Database, hook: WebhookReceiver, tmp_path: Path
) -> None:
    """Two senders share the work; it is done seconds after the commit."""
    path = channels_file(tmp_path, team=hook.address)
    with sending(database, path), sending(database, path):
        wait_until(lambda: works(database), "a sender at work")
        cross(database, *range(30))
        wait_until(lambda: len(messages(database, "delivered")) == 30, "30 deliveries")
    with database.connection() as connection:
        [counts] = count_messages(connection)

    assert sorted(delivered(hook)) == [asin(number) for number in range(30)]
    assert len(set(hook.ids())) == 30
    assert (counts.waiting, counts.dead, counts.delivered) == (0, 0, 30)
    assert counts.lag_s is not None
    # tests/bench/bench_alerts.py measures it; here the machine may be busy.
    assert counts.lag_s <= 60.0


def test_a_failed_delivery_is_repeated_under_its_id(
    database: Database, hook: WebhookReceiver, tmp_path: Path
) -> None:
    """Each try has the same id and body; the time of the try differs."""
    hook.statuses += [500, 503, 404]
    with sending(database, channels_file(tmp_path, team=hook.address)):
        cross(database, 1)
        wait_until(lambda: messages(database, "delivered"), "a delivery")

    assert len(hook.received) == 4
    assert len(set(hook.ids())) == 1
    assert len({request.body for request in hook.received}) == 1
    assert messages(database)[0]["attempts"] == 3


def test_a_message_that_fails_too_often_is_set_aside(
    database: Database, hook: WebhookReceiver, tmp_path: Path
) -> None:
    """It is listed with its error, stops nothing behind it, and can be retried."""
    hook.statuses += [500] * 3
    with sending(database, channels_file(tmp_path, team=hook.address), attempts_max=3):
        cross(database, 1)
        wait_until(lambda: messages(database, "dead"), "a dead letter")
        cross(database, 2)
        [dead] = messages(database, "dead")
        wait_until(lambda: messages(database, "delivered"), "the next one")
        seen = series(database, tmp_path)
        with database.connection() as connection:
            retried = retry_messages(connection, channel="team")
        wait_until(lambda: len(messages(database, "delivered")) == 2, "the first one")

    assert (dead["error"], dead["attempts"], retried) == ("HTTP 500", 3, 1)
    assert 0 < seen.pop("dealfetcher_alerts_lag_seconds") < DEADLINE_S
    assert seen == {
        "dealfetcher_alerts_waiting": 0,
        "dealfetcher_alerts_dead": 1,
        "dealfetcher_hour_alerts": 1,
        "dealfetcher_alerts_late_seconds": 0,
    }
    assert hook.ids()[0] == hook.ids()[2] == hook.ids()[-1]


def test_a_receiver_that_is_gone_gets_no_second_try(
    database: Database, hook: WebhookReceiver, tmp_path: Path
) -> None:
    """410 sets the message aside at once."""
    hook.statuses.append(410)
    with sending(database, channels_file(tmp_path, team=hook.address)):
        cross(database, 1)
        wait_until(lambda: messages(database, "dead"), "a dead letter")

    assert len(hook.received) == 1


def test_a_failing_channel_delays_no_other(
    database: Database, hook: WebhookReceiver, tmp_path: Path
) -> None:
    """Nor does a channel that the file lacks; its messages wait."""
    with database.connection() as connection:
        for channel in ("broken", "unknown", "team"):
            post(connection, channel=channel, kind="test", content={})
    path = channels_file(tmp_path, broken="http://127.0.0.1:9/", team=hook.address)
    with sending(database, path, attempts_max=99):
        wait_until(lambda: len(hook.received) == 1, "a delivery")
        wait_until(
            lambda: any(one["attempts"] for one in messages(database, "waiting")), "a failed try"
        )
    states = {one["channel"]: (one["state"], one["attempts"] > 0) for one in messages(database)}

    assert states["unknown"] == ("waiting", False)
    assert states["team"] == ("delivered", False)
    assert states["broken"][1] is True


def test_mails_are_delivered(database: Database, tmp_path: Path) -> None:
    """Each crossing comes as one mail, also after a refusal."""
    with mail_receiver() as mail:
        mail.refusals = 1
        with sending(database, channels_file(tmp_path, team=mail.address)):
            cross(database, 1, 2, 3)
            wait_until(lambda: len(messages(database, "delivered")) == 3, "3 mails")
        bodies = [one.get_body(("plain", "html")).get_content() for one in mail.mails]  # type: ignore[attr-defined]

    assert len(bodies) == 3
    assert all(sum(asin(number) in body for body in bodies) == 1 for number in (1, 2, 3))


def test_a_rate_holds_for_all_senders(database: Database) -> None:
    """A burst is allowed once; then the next message waits for its turn."""
    with database.connection() as connection:
        for _ in range(5):
            post(connection, channel="team", kind="test", content={})
    rate = Rate(messages=3, period_s=3600)
    outcomes = []
    for holder in ("one", "two", "one", "two"):
        with database.connection() as connection:
            outcomes.append(claim_message(connection, "team", rate, holder=holder, ttl_s=TTL_S))

    assert [type(outcome) for outcome in outcomes] == [MessageClaim] * 3 + [MustWait]
    assert isinstance(outcomes[-1], MustWait)
    assert 1100 < outcomes[-1].delay_s <= 1200
    assert len(messages(database, "waiting")) == 2


def test_operators_are_alerted_and_told_of_the_end(
    database: Database, hook: WebhookReceiver, tmp_path: Path
) -> None:
    """A trouble that lasted is reported once; its end is reported too."""
    path = channels_file(tmp_path, team=hook.address)
    path.write_text(
        path.read_text() + '[operators]\nchannel = "team"\ntroubles = ["dead_pages"]\n'
    )
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO scans (query, selection_hash, selection, sort_type, kind, background,"
            " plan) VALUES ('q', 'h', '{}', 1, 'full', false, '{}')"
        )
        connection.execute("INSERT INTO scan_pages (scan_id, page, state) VALUES (1, 0, 'dead')")
        connection.execute(
            "INSERT INTO alert_troubles (trouble, subject, since)"
            " VALUES ('dead_pages', '', now() - interval '1 hour')"
        )
    for _ in range(2):
        with sending(database, path):
            wait_until(lambda: hook.received, "a report")
    with database.connection() as connection:
        connection.execute("DELETE FROM scan_pages")
    with sending(database, path):
        wait_until(lambda: len(hook.received) == 2, "the end")
    titles = [json.loads(request.body)["data"]["title"] for request in hook.received]

    assert titles == ["dead pages", "over: dead pages"]


@contextmanager
def dying_senders(database_url: str, path: Path) -> Iterator[Callable[[int], int]]:
    """Senders in processes of their own: takes the deadly statement, gives the exit code."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.fetcher.alerts.dying_sender", database_url, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        orders, codes = process.stdin, process.stdout

        def send(deadly: int) -> int:
            orders.write(f"{deadly}\n")
            orders.flush()
            return int(codes.readline())

        yield send
        orders.close()


def test_a_kill_at_any_statement_loses_nothing(
    database: Database, database_url: str, hook: WebhookReceiver, tmp_path: Path
) -> None:
    """Killed anywhere, a sender leaves the message to the next; its receiver sees one id."""
    kills = 0
    with dying_senders(database_url, channels_file(tmp_path, team=hook.address)) as send:
        for deadly in range(100):
            cross(database, deadly)
            code = send(deadly)
            if code != -signal.SIGKILL:
                break
            kills += 1
        # What the killed ones claimed lapses soon.
        wait_until(lambda: send(10_000) == 0 and not pending(database), "the rest")
    ids_by_asin: dict[str, set[str]] = {}
    for request in hook.received:
        for deal in json.loads(request.body)["data"]["deals"]:
            ids_by_asin.setdefault(deal["asin"], set()).add(request.headers["webhook-id"])

    assert kills >= 5
    assert ids_by_asin.keys() == {asin(number) for number in range(kills + 1)}
    assert all(len(ids) == 1 for ids in ids_by_asin.values())


def test_what_was_delivered_long_ago_is_pruned(database: Database) -> None:
    """With its reports; what waits stays, and a deal that was reported is not reported again."""
    cross(database, 1, 2, 3, 4)
    with database.connection() as connection:
        for state, days in (("delivered", 31), ("dead", 31), ("delivered", 29)):
            connection.execute(
                "UPDATE alert_messages SET state = %s, created_at = now() - %s * interval '1 day',"
                " delivered_at = now() - %s * interval '1 day' WHERE id ="
                " (SELECT min(id) FROM alert_messages WHERE state = 'waiting')",
                (state, days, days),
            )
        deleted = prune_some(connection, "alerts", timedelta(days=30))
        rest = prune_some(connection, "alerts", timedelta(days=30))
        reports = connection.execute("SELECT count(*) FROM alerts").fetchone()
    cross(database, 1)

    assert (deleted, rest, reports) == (2, 0, (2,))
    assert sorted(one["state"] for one in messages(database)) == ["delivered", "waiting"]


def pending(database: Database) -> list[dict[str, Any]]:
    """The messages that are not delivered."""
    return [one for one in messages(database) if one["state"] != "delivered"]


@pytest.mark.slow
def test_a_sender_killed_by_its_receiver_delivers_again(
    database: Database,
    database_url: str,
    hook: WebhookReceiver,
    start_program: StartProgram,
    tmp_path: Path,
) -> None:
    """Between delivery and note, the process dies: the next one repeats it under the same id."""
    path = channels_file(tmp_path, team=hook.address)
    settings = {"database_url": database_url, "alerts_file": path, "claim_ttl_s": 1}
    first = start_program("fetcher", "alert", **settings, log_format="json")
    hook.before = first.kill
    cross(database, 1)
    wait_until(lambda: hook.received, "a request")
    first.wait(DEADLINE_S)
    hook.before = None
    second = start_program("fetcher", "alert", **settings, log_format="json")
    wait_until(lambda: messages(database, "delivered"), "a delivery")
    # It judges by the time of a claim, and a busy machine may stand still for a second.
    patient = settings | {"claim_ttl_s": DEADLINE_S}
    alive = start_program("fetcher", "alerts", "alive", **patient).wait(DEADLINE_S)
    second.stop()

    assert len(hook.received) == 2
    assert len(set(hook.ids())) == 1
    assert alive == 0
    assert "sesame" not in second.output()


def test_commands_list_retry_and_test(
    database: Database,
    database_url: str,
    hook: WebhookReceiver,
    start_program: StartProgram,
    tmp_path: Path,
) -> None:
    """None of them shows the address of a channel."""
    path = channels_file(tmp_path, team=hook.address, broken="http://127.0.0.1:9/sesame-4711")
    with database.connection() as connection:
        post(connection, channel="team", kind="test", content={})
        connection.execute("UPDATE alert_messages SET state = 'dead', error = 'HTTP 500'")
    settings = {"database_url": database_url, "alerts_file": path}
    commands = {
        name: start_program("fetcher", "alerts", *name.split(), **settings)
        for name in ("list -o json", "test team", "test broken", "test none", "retry -o json")
    }
    codes = {name: program.wait(DEADLINE_S) for name, program in commands.items()}
    with psycopg.connect(database_url) as connection:
        states = connection.execute("SELECT state, attempts FROM alert_messages").fetchall()

    assert codes == {
        "list -o json": 0,
        "test team": 0,
        "test broken": 1,
        "test none": 2,
        "retry -o json": 0,
    }
    assert "HTTP 500" in commands["list -o json"].output()
    assert '"retried": 1' in commands["retry -o json"].output()
    assert "no connection" in commands["test broken"].output()
    assert states == [("waiting", 0)]
    assert not any("sesame" in program.output() for program in commands.values())
