"""One try to deliver: what receivers get, and what an error may show."""

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import standardwebhooks
from pydantic import SecretStr

from fetcher.alerts.channels import DEFAULT_RATE, Channel
from fetcher.alerts.delivery import DeliveryError, deliver
from fetcher.alerts.messages import DealReport, Message, for_people, for_programs
from tests.fetcher.alerts.receivers import (
    MailReceiver,
    WebhookReceiver,
    mail_receiver,
    webhook_receiver,
)

KEY = "whsec_" + base64.b64encode(b"a key of the receiver's own!").decode()
HOSTILE = "<b>@everyone</b> [x](http://evil.example) \x1b[31m\u202egnp.exe\0\n*`" + "y" * 10_000
DEAL: dict[str, Any] = {
    "domain_id": 1,
    "asin": "B000000001",
    "price_type": 2,
    "title": "A title",
    "state": "accepted",
    "value": 1299,
    "price_minor": 1299,
    "average_minor": 2150,
    "drop_percent": 40,
    "date_range": 3,
    "rank": 5000,
    "rating": 45,
    "reviews": 10,
    "profit_minor": 500,
    "roi_percent": 38,
    "served_ms": 1_763_899_200_000,
}


def message(*titles: str | None, kind: str = "deals", **content: object) -> Message:
    """A message with one deal per title."""
    deals = [
        DealReport(number, "crossing", DEAL | {"title": title})
        for number, title in enumerate(titles, 1)
    ]
    created_at = datetime(2025, 11, 23, 12, tzinfo=UTC)
    return Message("msg_1", kind, "books", content, created_at, deals, len(deals))


def channel(address: str, *, kind: Any = "webhook", key: str | None = None) -> Channel:
    """A channel to *address*."""
    secret = None if key is None else SecretStr(key)
    return Channel("team", kind, SecretStr(address), DEFAULT_RATE, secret)


@pytest.fixture(scope="module")
def hook() -> Iterator[WebhookReceiver]:
    """A receiver of webhooks."""
    with webhook_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def mail() -> Iterator[MailReceiver]:
    """A receiver of mail."""
    with mail_receiver() as receiver:
        yield receiver


def test_a_webhook_is_signed_and_holds_the_deals(hook: WebhookReceiver) -> None:
    """The receiver's library verifies it; amounts have their currency."""
    deliver(channel(hook.address, key=KEY), message("A title"))
    got = hook.received[-1]
    verified = standardwebhooks.Webhook(KEY).verify(got.body, got.headers)
    [deal] = verified["data"]["deals"]

    assert got.headers["webhook-id"] == "msg_1"
    assert (verified["type"], verified["timestamp"]) == (
        "deals.matched",
        "2025-11-23T12:00:00+00:00",
    )
    assert (deal["asin"], deal["price_minor"], deal["currency"]) == ("B000000001", 1299, "USD")
    assert deal["url"] == "https://www.amazon.com/dp/B000000001"


def test_a_changed_webhook_is_detected(hook: WebhookReceiver) -> None:
    """The signature covers id, time and body."""
    deliver(channel(hook.address, key=KEY), message("A title"))
    got = hook.received[-1]
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(KEY).verify(got.body + b" ", got.headers)


def test_without_a_key_a_webhook_is_not_signed(hook: WebhookReceiver) -> None:
    """An unsigned webhook still has its id."""
    deliver(channel(hook.address), message("A title"))

    assert "webhook-signature" not in hook.received[-1].headers
    assert hook.received[-1].headers["webhook-id"] == "msg_1"


@pytest.mark.parametrize(
    ("status", "is_final"), [(500, False), (404, False), (302, False), (410, True)]
)
def test_a_refusal_is_an_error(hook: WebhookReceiver, status: int, *, is_final: bool) -> None:
    """Only "gone" is final; the address is in no error."""
    hook.statuses.append(status)
    with pytest.raises(DeliveryError) as caught:
        deliver(channel(hook.address), message("A title"))

    assert str(caught.value) == f"HTTP {status}"
    assert caught.value.is_final is is_final


def test_a_receiver_may_ask_for_a_pause(hook: WebhookReceiver) -> None:
    """Retry-After is kept, up to an hour."""
    hook.reply_headers["Retry-After"] = "99999"
    hook.statuses.append(429)
    with pytest.raises(DeliveryError) as caught:
        deliver(channel(hook.address), message("A title"))
    hook.reply_headers.clear()

    assert caught.value.pause_s == 3600


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:9/hook/sesame-4711",
        "http://sesame-4711.invalid/hook",
        "http://user:sesame-4711@127.0.0.1:9/",
    ],
)
def test_no_connection_shows_no_address(address: str) -> None:
    """An error of the HTTP library quotes the address; ours does not."""
    with pytest.raises(DeliveryError) as caught:
        deliver(channel(address), message("A title"))

    assert "no connection" in str(caught.value)
    assert "sesame" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_mail_has_the_deals_and_the_id(mail: MailReceiver) -> None:
    """The subject names the query, the text the deals, and the id of the message."""
    deliver(channel(mail.address, kind="apprise"), message("A title", "Another"))
    got = mail.mails[-1]
    body = got.get_body(("plain", "html")).get_content()  # type: ignore[attr-defined]

    assert got["Subject"] == "books: 2 deals"
    assert "A title" in body
    assert "12.99 USD" in body
    assert "msg_1" in body


def test_a_refused_mail_is_an_error(mail: MailReceiver) -> None:
    """The reason is the service's, without the parts of the address."""
    mail.refusals = 1
    with pytest.raises(DeliveryError) as caught:
        deliver(channel(mail.address, kind="apprise"), message("A title"))
    address = f"mailto://user:sesame-4711@127.0.0.1:{mail.port}/?from=a@b.com&to=me@example.com"
    with pytest.raises(DeliveryError) as no_login:
        deliver(channel(address, kind="apprise"), message("A title"))

    assert "failed" in str(caught.value)
    assert "error" in str(no_login.value)
    assert "sesame" not in str(no_login.value)


def test_an_unknown_service_is_final() -> None:
    """An address that apprise can't read will not become one."""
    with pytest.raises(DeliveryError) as caught:
        deliver(channel("nosuch://sesame-4711", kind="apprise"), message("A title"))

    assert caught.value.is_final
    assert "sesame" not in str(caught.value)


def test_a_hostile_title_is_harmless_in_a_text() -> None:
    """No mention, link, tag, escape sequence or hidden character, and not ten thousand letters."""
    text = for_people(message(HOSTILE))

    assert len(text.body) < 1_000
    assert not set("@<>[]`*\x1b\u202e\0") & set(text.body + text.title)
    assert text.body.count("\n") == 4


def test_a_hostile_title_is_escaped_in_a_mail(mail: MailReceiver) -> None:
    """A mail's HTML holds no tag of the title."""
    deliver(channel(mail.address, kind="apprise"), message(HOSTILE))

    assert b"<b>" not in mail.mails[-1].as_bytes()
    assert b"\x1b" not in mail.mails[-1].as_bytes()


def test_a_program_gets_the_title_as_it_is() -> None:
    """JSON escapes what it holds; a long title is cut."""
    text = json.dumps(for_programs(message(HOSTILE)))

    assert json.loads(text)["data"]["deals"][0]["title"] == HOSTILE[:1_000]
    assert text.isascii()


def test_a_large_message_names_the_rest() -> None:
    """Twenty deals are shown, and the others are counted."""
    text = for_people(message(*["title"] * 25))

    assert "and 5 more" in text.body


def test_a_deal_without_values_is_reported_too() -> None:
    """Unknown is no number, in no message."""
    deal = dict.fromkeys(DEAL) | {"domain_id": 77, "asin": "B000000001", "price_type": 3}
    report = DealReport(1, "again", deal)
    bare = Message("msg_1", "deals", "books", {}, datetime.now(UTC), [report], 1)

    assert "value unknown" in for_people(bare).body
    assert for_programs(bare)["data"]["deals"][0]["currency"] == "???"  # type: ignore[index]


@pytest.mark.parametrize(
    ("kind", "content", "title"),
    [
        ("summary", {"matches": 42, "alert": "to team"}, "books: alerts are on"),
        ("operators", {"title": "stale data", "text": "old", "remedy": "look"}, "stale data"),
        ("test", {}, "a test of this channel"),
    ],
)
def test_other_messages_have_their_texts(kind: str, content: dict[str, Any], title: str) -> None:
    """Summaries, troubles and tests are messages without deals."""
    other = message(kind=kind, **content)

    assert for_people(other).title == title
    assert for_programs(other)["data"]["id"] == "msg_1"  # type: ignore[index]
