"""The callers: the broker's identity behind a key, or a name where there are no identities.

The broker is the one judge. The gateway hands on the caller's token in every RPC; the
identity that it looks up here serves to share answers and to count.
"""

import asyncio
import hashlib
import re
import time
from dataclasses import dataclass
from typing import Final

from cachetools import TTLCache

from fetcher.broker_client import (
    AsyncBrokerClient,
    BrokerAwayError,
    BrokerRefusedError,
    CallerView,
    OnBehalf,
)
from fetcher.gateway.answers import rejected, unavailable
from fetcher.gateway.asked import Asked

# How long an identity that was taken away may still read cached answers. Leases are judged
# by the broker each time.
REMEMBERED_S: Final = 5.0
REMEMBERED_MAX: Final = 10_000
LOOK_UP_TIMEOUT_S: Final = 5.0
PAUSE_S: Final = 0.25

# A key that reads as a name is shown as it is; any other may be a secret of some account.
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
NAMELESS: Final = "anyone"
DEFAULT_HOLDER: Final = "gateway"

NO_KEY: Final = "the broker serves identities only: give your token as key=, or as a bearer token"
NOT_HERE: Final = (
    "the broker has no identities, so the gateway serves this machine only: give the broker"
    " BROKER_IDENTITIES_FILE, or set GATEWAY_ALLOW_ANYONE=true where the network is protected"
)


@dataclass(frozen=True, slots=True)
class Caller:
    """One caller.

    Args:
        identity: Its name at the broker; at a broker without identities, its own.
        role: Its role at the broker; else empty.
        behalf: The holder and token with which the gateway leases for it.
    """

    identity: str
    role: str
    behalf: OnBehalf


class Callers:
    """Maps keys to callers.

    Args:
        broker: The broker, which has the identities.
        hands_on: Whether the way to the broker protects tokens. Without that they stay here.
        anyone: Whether callers need no identity at a broker without identities.
        away_max_s: Longest time in seconds for which a caller waits for a broker that is away.
    """

    def __init__(
        self, broker: AsyncBrokerClient, *, hands_on: bool, anyone: bool, away_max_s: float
    ) -> None:
        self._broker = broker
        self._hands_on = hands_on
        self._anyone = anyone
        self._away_max_s = away_max_s
        self._known: TTLCache[str, CallerView] = TTLCache(REMEMBERED_MAX, REMEMBERED_S)

    async def find(self, asked: Asked) -> Caller:
        """Returns the caller that asks.

        Raises:
            Refusal: The broker has no identity for the key, or is away.
        """
        view = await self._look_up(asked.key) if self._hands_on else CallerView("", "")
        if view.identity and not asked.key:
            # The identity is the gateway's own.
            raise rejected(NO_KEY, reason="no_key")
        if view.identity:
            holder = asked.holder or DEFAULT_HOLDER
            return Caller(view.identity, view.role, OnBehalf(holder, asked.key))
        if not self._anyone:
            raise rejected(NOT_HERE, reason="no_identities")
        name = asked.holder or _name(asked.key)
        return Caller(name, "", OnBehalf(name))

    async def _look_up(self, key: str) -> CallerView:
        # Memory holds no tokens.
        digest = hashlib.sha256(key.encode()).hexdigest()
        view: CallerView | None = self._known.get(digest)
        if view is None:
            view = self._known[digest] = await self._ask(OnBehalf(DEFAULT_HOLDER, key))
        return view

    async def _ask(self, behalf: OnBehalf) -> CallerView:
        give_up_s = time.monotonic() + self._away_max_s
        while True:
            try:
                return await self._broker.get_caller(behalf, timeout_s=LOOK_UP_TIMEOUT_S)
            except BrokerRefusedError as exc:
                message = NO_KEY if not behalf.token else f"this key is no identity's: {exc}"
                raise rejected(message, reason="unknown_key") from None
            except BrokerAwayError as exc:
                if time.monotonic() >= give_up_s:
                    raise unavailable(str(exc), reason="broker_away") from None
            await asyncio.sleep(PAUSE_S)


def _name(key: str) -> str:
    if not key:
        return NAMELESS
    if NAME.fullmatch(key):
        return key
    return f"key-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
