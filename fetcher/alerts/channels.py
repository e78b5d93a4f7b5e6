"""The channels file: where alerts go, as TOML.

    [channels.team]
    apprise = "discord://…"                # any service of apprise; apprise_file for a secret
    rate = "20/m"                          # most messages a minute; the default

    [channels.shop]
    webhook = "https://example.com/hook"   # a Standard Webhook; webhook_file for a secret
    secret_file = "/run/secrets/shop"      # whsec_…, signs each message

    [operators]
    channel = "team"                       # where troubles of the collection go
    troubles = ["stale", "foreign"]        # by default all

Law: an error names the key and the remedy, and never a value: most values are secrets.
"""

import base64
import binascii
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from fetcher.alerts.troubles import TROUBLES
from fetcher.queries.alerts import is_channel_name
from fetcher.queries.reader import BadKeyError, Section
from protos.channel.credential_files import CredentialError
from protos.process.text_file import NotUtf8Error, read_text

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - the mark of a key, no key
RATE_UNITS_S: Final = {"s": 1, "m": 60, "h": 3_600}
CHANNEL_KEYS: Final = (
    *("apprise", "apprise_file", "webhook", "webhook_file"),
    *("secret", "secret_file", "rate"),
)
_RATE: Final = re.compile(r"([1-9][0-9]{0,4}) ?/ ?([smh])\Z")
# A shorter part of an address is no secret, but a word that other texts hold too.
PART_CHARACTERS_MIN: Final = 6
WORD_CHARACTERS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Rate:
    """At most *messages* in any *period_s* seconds."""

    messages: int
    period_s: int


# Telegram takes 20 messages a minute in a group, Discord 30 from a webhook.
# Sources: Telegram's Bots FAQ, "My bot is hitting limits"; Discord's documentation.
DEFAULT_RATE: Final = Rate(20, 60)


@dataclass(frozen=True, slots=True)
class Channel:
    """Where messages go: the address of an apprise service, or of a webhook with its key."""

    name: str
    kind: Literal["apprise", "webhook"]
    address: SecretStr
    rate: Rate
    signing_key: SecretStr | None = None

    def secrets(self) -> Iterator[str]:
        """Yields what no log may show: the address, its parts, the key."""
        address = self.address.get_secret_value()
        yield address
        behind = address.partition("://")[2]
        for part in re.split(r"[/:@?&=#,]+", behind):
            if _may_be_secret(part) or part in behind.rpartition("@")[0].split(":"):
                yield part
                yield unquote(part)
        if self.signing_key is not None:
            yield self.signing_key.get_secret_value()


@dataclass(frozen=True, slots=True)
class Channels:
    """The channels by name; ``operators`` is the one for the ``troubles`` of operators."""

    by_name: Mapping[str, Channel]
    operators: str | None = None
    troubles: frozenset[str] = frozenset()


class ChannelsError(CredentialError):
    """The channels file can't be used; the message names the key and the remedy."""


def read_channels(path: Path) -> Channels:
    """Reads the channels file, and the secrets in the files that it names.

    Raises:
        ChannelsError: A file is unreadable, or a key unusable.
    """
    try:
        return _channels(tomllib.loads(_text(path)))
    except tomllib.TOMLDecodeError as exc:
        # The error quotes no value.
        problem = f"not TOML: {exc}"
    except BadKeyError as exc:
        problem = str(exc)
    # Outside the handler: no traceback shows the values.
    raise ChannelsError(f"ALERTS_FILE: {path}: {problem}")


def _may_be_secret(part: str) -> bool:
    """Returns whether a part of an address is no word: tokens hold digits, or are long."""
    if len(part) >= WORD_CHARACTERS_MAX:
        return True
    return len(part) >= PART_CHARACTERS_MIN and any(char.isdigit() for char in part)


def secrets_in(path: Path) -> Iterator[str]:
    """Yields the secrets of all channels; none if the file can't be used."""
    try:
        channels = read_channels(path)
    except ChannelsError:
        return
    for channel in channels.by_name.values():
        yield from channel.secrets()


def secret_files(path: Path) -> list[Path]:
    """Returns the channels file and the files that it names; only itself if it is unusable."""
    files = [path]
    try:
        written = tomllib.loads(_text(path)).get("channels", {})
        for values in written.values():
            files += [Path(values[key]) for key in values if key.endswith("_file")]
    except (BadKeyError, tomllib.TOMLDecodeError, AttributeError, TypeError):
        pass
    return files


def _channels(written: Mapping[str, object]) -> Channels:
    head = Section(written)
    head.allow_only(("channels", "operators"))
    tables = head.value("channels")
    if not isinstance(tables, Mapping) or not tables:
        raise BadKeyError("channels", "add at least one: [channels.team]")
    by_name = {}
    for name, values in tables.items():
        if not is_channel_name(name):
            raise BadKeyError("channels", "name each with up to 63 letters, digits, - or _")
        by_name[name] = _channel(name, Section(values, f"channels.{name}"))
    if not head.has("operators"):
        return Channels(by_name)
    operators = Section(head.value("operators"), "operators")
    operators.allow_only(("channel", "troubles"))
    channel = operators.choice("channel", tuple(by_name))
    if channel is None:
        raise BadKeyError("operators.channel", "name one of the channels above")
    troubles = operators.words("troubles") or tuple(TROUBLES)
    for trouble in troubles:
        if trouble not in TROUBLES:
            raise BadKeyError("operators.troubles", f"write some of {', '.join(TROUBLES)}")
    return Channels(by_name, channel, frozenset(troubles))


def _channel(name: str, section: Section) -> Channel:
    section.allow_only(CHANNEL_KEYS)
    service, webhook = _secret(section, "apprise"), _secret(section, "webhook")
    if (service is None) == (webhook is None):
        raise BadKeyError(section.key("apprise"), "give either apprise or webhook")
    rate = _rate(section)
    if service is not None:
        if section.has("secret") or section.has("secret_file"):
            raise BadKeyError(section.key("secret"), "only a webhook is signed; remove it")
        return Channel(name, "apprise", SecretStr(service), rate)
    assert webhook is not None
    if not _is_web_address(webhook):
        raise BadKeyError(section.key("webhook"), "write an address that begins with https://")
    key = _secret(section, "secret")
    if key is not None:
        _check_key(section.key("secret"), key)
    return Channel(
        name, "webhook", SecretStr(webhook), rate, None if key is None else SecretStr(key)
    )


def _is_web_address(text: str) -> bool:
    try:
        url = urlsplit(text)
    except ValueError:
        return False
    return url.scheme in {"http", "https"} and bool(url.hostname) and text.isprintable()


def _check_key(key: str, text: str) -> None:
    """Checks a key as the specification of Standard Webhooks wants it, in base64."""
    try:
        raw = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if not raw:
        raise BadKeyError(key, "write whsec_ and base64: openssl rand -base64 32 makes some")


def _rate(section: Section) -> Rate:
    raw = section.value("rate")
    if raw is None:
        return DEFAULT_RATE
    found = _RATE.match(raw.strip()) if isinstance(raw, str) else None
    if found is None:
        raise BadKeyError(section.key("rate"), 'write a rate such as "20/m", "1/s" or "100/h"')
    return Rate(int(found[1]), RATE_UNITS_S[found[2]])


def _secret(section: Section, name: str) -> str | None:
    """Returns the text of a key, or of the file that its twin names."""
    file_key = f"{name}_file"
    if section.has(name) and section.has(file_key):
        raise BadKeyError(section.key(name), f"given as {file_key} too; remove one")
    if section.has(file_key):
        path = section.value(file_key)
        if not isinstance(path, str) or "\0" in path:
            raise BadKeyError(section.key(file_key), "write the path of a file")
        text: object = _text(Path(path), section.key(file_key))
    else:
        text = section.value(name)
    if text is None:
        return None
    if not isinstance(text, str) or not text.strip():
        raise BadKeyError(section.key(name), "write a text that is not empty")
    return text.strip()


def _text(path: Path, key: str = "file") -> str:
    try:
        return read_text(path)
    except OSError as exc:
        reason = f"can't read {path}: {exc.strerror}"
    except NotUtf8Error as exc:
        reason = f"{path}: {exc}"
    raise BadKeyError(key, reason)
