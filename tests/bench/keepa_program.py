"""A program on the unmodified PyPI client `keepa`: calls without end, then prints its tokens.

    python -m tests.bench.keepa_program BASE_URL KEY sync|async deals|mixed SPEED

Its address and its clock are the only things that are set from outside. Time passes SPEED
times as fast for it: the client reckons its waits in Keepa's minutes, which last a fraction
of one at the simulator. SIGTERM ends it.
"""

import asyncio
import json
import random
import signal
import sys
import time
from types import FrameType, SimpleNamespace
from typing import Any, Final

import aiohttp
import keepa
import requests
from keepa import keepa_async, keepa_sync

from deploy.keepa_simulator.asins import general_asin

CATALOGUE: Final = 2_000
KEEPA_URL: Final = "https://api.keepa.com"
DEALS: Final = {"page": 0, "domainId": 1, "priceTypes": [2]}
PRODUCTS: Final = 15
OFFERS: Final = 20
# One call in this many asks for offers, where both kinds are mixed.
MIXED: Final = 4
TIMEOUT_S: Final = 3600.0


class StopAskedError(Exception):
    """SIGTERM came."""


class Clock:
    """Keepa's time, *speed* times as fast as this machine's."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._began_s = time.time()

    def time(self) -> float:
        """Now, in seconds of Keepa's time."""
        return self._began_s + (time.time() - self._began_s) * self._speed

    def sleep(self, duration_s: float) -> None:
        """Sleeps for *duration_s* of Keepa's time."""
        time.sleep(duration_s / self._speed)

    def told(self, body: dict[str, Any]) -> dict[str, Any]:
        """*body* with its envelope in Keepa's time."""
        if "refillIn" in body:
            body["refillIn"] = round(body["refillIn"] * self._speed)
            body["timestamp"] = round(self.time() * 1000)
        return body


def redirect(base_url: str, clock: Clock) -> None:
    """Sends the client's calls to *base_url*, and gives it *clock*."""
    get, async_get, decode = requests.get, aiohttp.ClientSession.get, aiohttp.ClientResponse.json

    def sync_call(url: str, *args: Any, **named: Any) -> requests.Response:
        reply = get(url.replace(KEEPA_URL, base_url), *args, **named)
        reply._content = json.dumps(clock.told(reply.json())).encode()
        return reply

    def async_call(session: aiohttp.ClientSession, url: str, **named: Any) -> Any:
        # The client passes seconds; this version of aiohttp expects a ClientTimeout.
        named["timeout"] = aiohttp.ClientTimeout(named["timeout"])
        return async_get(session, url.replace(KEEPA_URL, base_url), **named)

    async def async_decode(reply: aiohttp.ClientResponse, **named: Any) -> Any:
        return clock.told(await decode(reply, **named))

    requests.get = sync_call  # type: ignore[assignment]
    aiohttp.ClientSession.get = async_call  # type: ignore[assignment,method-assign]
    aiohttp.ClientResponse.json = async_decode  # type: ignore[assignment,method-assign]
    ours: Any = SimpleNamespace(time=clock.time, sleep=clock.sleep)
    for module in (keepa_sync, keepa_async):
        vars(module)["time"] = ours


def asins(rng: random.Random) -> list[str]:
    """Products of the simulator's catalogue that are no books; the rest cost one token each."""
    return [general_asin(rng.randrange(CATALOGUE)) for _ in range(PRODUCTS)]


def call(client: Any, rng: random.Random, kind: str) -> Any:
    """One call of the client: the reply, or for the asynchronous client its coroutine."""
    if kind == "mixed" and rng.randrange(MIXED) == 0:
        found = asins(rng)
        return client.query(found, offers=OFFERS, history=False, progress_bar=False)
    # Each selection is another, so that no reply is shared.
    return client.deals({**DEALS, "titleSearch": f"x{rng.randrange(10**9)}"})


def run_sync(key: str, rng: random.Random, kind: str) -> None:
    """Calls until stopped."""
    client = keepa.Keepa(key, timeout=TIMEOUT_S)
    while True:
        call(client, rng, kind)


async def run_async(key: str, rng: random.Random, kind: str) -> None:
    """Calls until stopped."""
    client = await keepa.AsyncKeepa.create(key, timeout=TIMEOUT_S)
    while True:
        await call(client, rng, kind)


def main() -> None:
    """Runs the program."""
    base_url, key, style, kind, speed = sys.argv[1:]

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise StopAskedError

    signal.signal(signal.SIGTERM, stop)
    rng = random.Random(key)
    redirect(base_url, Clock(float(speed)))
    try:
        if style == "sync":
            run_sync(key, rng, kind)
        else:
            asyncio.run(run_async(key, rng, kind))
    except StopAskedError:
        pass


if __name__ == "__main__":
    main()
