"""What a caller asks for: a request to Keepa's API, read without trust.

The caller's own key is taken out, so that it never reaches Keepa. All other parameters
go on as they were written.
"""

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, unquote_plus

from fetcher.broker_client import Priority
from fetcher.gateway.costs import Price, price

HOLDER_HEADER: Final = "X-Holder"
PRIORITY_HEADER: Final = "X-Priority"
MAX_WAIT_HEADER: Final = "X-Max-Wait"

ENDPOINT: Final = re.compile(r"/([A-Za-z][A-Za-z0-9_-]{0,63}(?:/[A-Za-z0-9_-]{1,64}){0,3})/?")
BEARER: Final = "bearer "
KEY_LENGTH_MAX: Final = 512
HOLDER_LENGTH_MAX: Final = 60
# Keepa's key is found out also where it is not the value of `key`.
SHOWN_KEY: Final = (
    "this is Keepa's own key, which the gateway keeps to itself: give your token of the broker"
    " in its place, or any name of your own if the broker has no identities"
)


class AskedError(Exception):
    """The request can't be passed on; *status* is the HTTP status of the answer."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Asked:
    """One request.

    Args:
        method: GET or POST.
        path: As the caller wrote it, with or without a slash at the end.
        endpoint: The path without slashes around it, such as "deal".
        query: The query string as the caller wrote it, without its key.
        parameters: The same, decoded; of repeated names the first.
        body: Of a POST.
        content_type: Of a POST; empty if there was none.
        key: The caller's token or name; may be empty.
        holder: The name that the caller gave itself; may be empty.
        priority: Class of the request.
        max_wait_s: Longest wait for tokens, in seconds.
    """

    method: str
    path: str
    endpoint: str
    query: str
    parameters: Mapping[str, str]
    body: bytes
    content_type: str
    key: str = field(repr=False)
    holder: str
    priority: Priority
    max_wait_s: float

    @property
    def price(self) -> Price:
        """What the call is expected to cost."""
        return price(self.endpoint, self.parameters, self.body)

    @property
    def identical(self) -> tuple[str, ...]:
        """Equal for requests to which Keepa gives the same answer; for GET only."""
        return (self.endpoint, *sorted(filter(None, self.query.split("&"))))


def read(
    *,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: bytes,
    keepa_key: str,
    max_wait_s: float,
) -> Asked:
    """Reads a request.

    Args:
        method: The HTTP method.
        target: Path and query, as in the request line.
        headers: Headers, by names in any case.
        body: The whole body.
        keepa_key: Keepa's real key, which no caller may use.
        max_wait_s: Longest wait in seconds; a header may ask for less.

    Raises:
        AskedError: It can't be passed on.
    """
    path, _, raw_query = target.partition("?")
    if method not in {"GET", "POST"}:
        raise AskedError(f"{method[:20]} is not allowed: use GET or POST", status=405)
    found = ENDPOINT.fullmatch(path)
    own, others, parameters = _split(raw_query.partition("#")[0])
    authorization = headers.get("Authorization", "")
    if not own and authorization.lower().startswith(BEARER):
        own = authorization[len(BEARER) :].strip()
    _refuse_keepas_key(keepa_key, own, target, *headers.values(), body)
    if found is None:
        raise AskedError("Keepa's API has no such path", status=404)
    if len(own) > KEY_LENGTH_MAX or not own.isascii() or (own and not own.isprintable()):
        raise AskedError("key holds odd characters, or too many")
    return Asked(
        method=method,
        path=path,
        endpoint=found.group(1).lower(),
        query="&".join(others),
        parameters=parameters,
        body=body,
        content_type=headers.get("Content-Type", ""),
        key=own,
        holder=_holder(headers.get(HOLDER_HEADER, "")),
        priority=_priority(headers.get(PRIORITY_HEADER, "")),
        max_wait_s=_max_wait_s(headers.get(MAX_WAIT_HEADER, ""), max_wait_s),
    )


def _split(raw_query: str) -> tuple[str, list[str], dict[str, str]]:
    """Returns the caller's key, the other pairs as written, and these decoded."""
    own, others = "", []
    parameters: dict[str, str] = {}
    for pair in raw_query.split("&"):
        raw_name, _, raw_value = pair.partition("=")
        name = unquote_plus(raw_name)
        # In any spelling: none must go on to Keepa beside the real one.
        if name.strip().lower() == "key":
            own = own or unquote_plus(raw_value)
        elif pair:
            others.append(pair)
            parameters.setdefault(name, unquote_plus(raw_value))
    return own, others, parameters


def _refuse_keepas_key(keepa_key: str, own: str, *places: str | bytes) -> None:
    if hmac.compare_digest(own.encode(), keepa_key.encode()):
        raise AskedError(SHOWN_KEY)
    for place in places:
        text = place.decode("latin-1") if isinstance(place, bytes) else place
        if keepa_key in text or keepa_key in unquote(text):
            raise AskedError(SHOWN_KEY)


def _holder(text: str) -> str:
    if len(text) > HOLDER_LENGTH_MAX or not text.isprintable() or not text.isascii():
        raise AskedError(f"{HOLDER_HEADER} must be at most {HOLDER_LENGTH_MAX} plain characters")
    return text


def _priority(text: str) -> Priority:
    try:
        return Priority[text.upper()] if text else Priority.NORMAL
    except KeyError:
        raise AskedError(f"{PRIORITY_HEADER} must be high, normal or low") from None


def _max_wait_s(text: str, most_s: float) -> float:
    if not text:
        return most_s
    try:
        wanted_s = float(text)
    except ValueError:
        wanted_s = -1.0
    if not 0 <= wanted_s < float("inf"):
        raise AskedError(f"{MAX_WAIT_HEADER} must be a number of seconds")
    return min(wanted_s, most_s)
