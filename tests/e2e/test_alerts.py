"""From Keepa to the receiver: every crossing arrives, whatever is killed on the way."""

import json
import re
from email.message import Message
from functools import partial
from pathlib import Path

import psycopg
import pytest

from fetcher.postgres.alerts import end_first_run, standings_of_alerts
from fetcher.queries.query import parse_query
from tests.fetcher.alerts.receivers import WebhookReceiver, mail_receiver, webhook_receiver
from tests.fix_broker import StartProgram
from tests.fix_fetcher import SELECTION, StartWorld, World
from tests.waiting import wait_until

REPORTED = """
SELECT 'msg_' || message_id, asin FROM alerts a JOIN alert_messages m ON m.id = a.message
 WHERE m.channel = %s
"""
UNSENT = "SELECT count(*) FROM alert_messages WHERE state <> 'delivered'"
MESSAGE_ID = re.compile(r"msg_[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
ROUNDS = 3


def ask(world: World, name: str) -> None:
    """Adds a query with its alerts; their first run is over, so every deal of it crosses."""
    alerts = [{"channel": "hook"}, {"channel": "mail"}]
    text = {"selection": SELECTION, "interval": "1h", "max_pages": 4, "alerts": alerts}
    query = parse_query(name, json.dumps(text))
    with psycopg.connect(world.database_url) as connection:
        standings_of_alerts(connection, query)
        end_first_run(connection, query)
    world.write_query(name, text)


def words(mail: Message) -> str:
    """All texts of a mail."""
    parts = [part.get_payload(decode=True) for part in mail.walk() if not part.is_multipart()]
    return "".join(part.decode() for part in parts if isinstance(part, bytes))


def came_for(hook: WebhookReceiver, query: str) -> bool:
    """Whether a message about deals of *query* has come in."""
    return any(json.loads(each.body)["data"]["query"] == query for each in hook.received)


@pytest.mark.slow
def test_every_crossing_reaches_its_receivers(
    start_world: StartWorld, start_program: StartProgram, tmp_path: Path
) -> None:
    """Fetchers and senders are killed; the receivers of HTTP and SMTP miss nothing.

    What comes twice comes under the id of its first time: a deal of a query has one.
    """
    world = start_world()
    with webhook_receiver() as hook, mail_receiver() as post:
        channels = tmp_path / "alerts.toml"
        channels.write_text(
            f'[channels.hook]\nwebhook = "{hook.address}"\nrate = "100/s"\n'
            f'[channels.mail]\napprise = "{post.address}"\nrate = "100/s"\n'
        )
        settings = world.settings(alerts_file=channels, claim_ttl_s=2, alert_retry_delay_s=0.2)
        senders = []
        for number in range(ROUNDS):
            name = f"used-{number}"
            ask(world, name)
            pair = [start_program("fetcher", "alert", **settings) for _ in range(2)]
            senders += pair
            # It dies while the receiver holds a request, perhaps its own.
            hook.before = pair[0].kill
            fetcher = start_program("fetcher", "run", **settings)
            wait_until(partial(came_for, hook, name), f"a delivery for {name}")
            hook.before = None
            fetcher.kill()
        wait_until(lambda: world.value(UNSENT) == 0, "all deliveries")
        for sender in senders:
            sender.kill()
        reported = {name: set(world.rows(REPORTED, name)) for name in ("hook", "mail")}
        bodies = [(each.headers["webhook-id"], json.loads(each.body)) for each in hook.received]
        mailed = {key for mail in post.mails for key in MESSAGE_ID.findall(words(mail))}

    came = {(key, deal["asin"]) for key, body in bodies for deal in body["data"]["deals"]}
    deals = {
        (body["data"]["query"], deal["asin"])
        for _, body in bodies
        for deal in body["data"]["deals"]
    }

    assert came == reported["hook"]
    assert len(came) == len(deals)
    assert len({key for key, _ in came}) >= ROUNDS
    assert {key for key, _ in reported["mail"]} <= mailed
