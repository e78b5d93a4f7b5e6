"""One try to deliver a message: to a service through apprise, or as a Standard Webhook.

Law: an error's text names what happened, and holds no part of the channel's address or key.

Source: standardwebhooks.com, specification 1.0: headers, signature, 2xx, 410.
"""

import base64
import hashlib
import hmac
import json
import logging
import time
import warnings
from functools import cache
from typing import Final

import requests

from fetcher.alerts.channels import SECRET_PREFIX, Channel
from fetcher.alerts.messages import Message, for_people, for_programs
from protos.process.redaction import Redaction
from protos.process.visible_text import visible

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 10.0
SEND_TIMEOUT_S: Final = 20.0
REASON_CHARACTERS_MAX: Final = 300
# A receiver may ask for a pause; a longer one is its mistake.
PAUSE_MOST_S: Final = 3_600.0
GONE: Final = 410
OK_CLASS: Final = 2

# The sender logs each failure once, without secrets; apprise's own lines hold addresses. They
# are collected with each result, so that the level must let them pass.
logging.getLogger("apprise").addHandler(logging.NullHandler())
logging.getLogger("apprise").propagate = False


class DeliveryError(Exception):
    """A message was not accepted, as far as is known; a try later may succeed.

    ``pause_s`` is the pause that the receiver asks for. ``is_final``: no try will succeed.
    """

    def __init__(
        self, reason: str, *, pause_s: float | None = None, is_final: bool = False
    ) -> None:
        super().__init__(reason)
        self.pause_s = pause_s
        self.is_final = is_final


def deliver(channel: Channel, message: Message) -> None:
    """Sends *message* to *channel*, once; returns when the receiver has accepted it.

    Raises:
        DeliveryError: It has not, or nothing is known about it.
    """
    if channel.kind == "webhook":
        _call_webhook(channel, message)
    else:
        _notify(channel, message)


@cache
def load_services() -> None:
    """Loads apprise and its hundred services, which takes a second; the first message would."""
    with warnings.catch_warnings():
        # Some of its services use modules that Python will drop.
        warnings.simplefilter("ignore", DeprecationWarning)
        # Imported late: only a process that delivers needs it.
        from apprise import Apprise  # noqa: PLC0415 - see above

        Apprise().add("json://localhost")


def _notify(channel: Channel, message: Message) -> None:
    load_services()
    from apprise import Apprise, NotifyFormat  # noqa: PLC0415 - as in load_services

    text = for_people(message)
    # A new one for each message: it rests up to 5.5 s between two, and the channel has its rate.
    service = Apprise()
    if not service.add(channel.address.get_secret_value()):
        reason = "apprise has no service for this address: see its documentation for the form"
        raise DeliveryError(reason, is_final=True)
    result = service.notify(
        text.body, title=text.title, body_format=NotifyFormat.TEXT, timeout=SEND_TIMEOUT_S
    )
    if not result:
        lines = "; ".join(entry.message for entry in result.logs())
        reason = Redaction(channel.secrets())(lines) or "the service did not take it"
        raise DeliveryError(visible(reason)[:REASON_CHARACTERS_MAX])


def _call_webhook(channel: Channel, message: Message) -> None:
    body = json.dumps(for_programs(message), separators=(",", ":")).encode()
    headers = webhook_headers(channel, message.id, body, now_s=int(time.time()))
    try:
        with requests.post(
            channel.address.get_secret_value(),
            data=body,
            headers=headers,
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
            allow_redirects=False,
            stream=True,
        ) as response:
            status, pause = response.status_code, response.headers.get("Retry-After", "")
    except (OSError, ValueError) as exc:
        # The error's own text quotes the address.
        late = isinstance(exc, requests.Timeout)
        reason = "no answer in time" if late else f"no connection ({type(exc).__name__})"
    else:
        if status // 100 == OK_CLASS:
            return
        pause_s = min(float(pause), PAUSE_MOST_S) if pause.isdecimal() else None
        raise DeliveryError(f"HTTP {status}", pause_s=pause_s, is_final=status == GONE)
    raise DeliveryError(reason)


def webhook_headers(
    channel: Channel, message_id: str, body: bytes, *, now_s: int
) -> dict[str, str]:
    """Returns the headers of one try at *now_s*, Unix seconds; signed if there is a key."""
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "keepa-token-broker",
        "webhook-id": message_id,
        "webhook-timestamp": str(now_s),
    }
    if channel.signing_key is not None:
        text = channel.signing_key.get_secret_value().removeprefix(SECRET_PREFIX)
        signed = f"{message_id}.{now_s}.".encode() + body
        digest = hmac.new(base64.b64decode(text), signed, hashlib.sha256).digest()
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return headers
