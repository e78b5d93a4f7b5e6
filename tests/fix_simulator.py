"""Starts simulators: real processes on free ports, gone with the test that asked for them."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from deploy.keepa_simulator.options import DEMO_KEY, fingerprint
from deploy.local.tether import tethered

_ROOT = Path(__file__).parent.parent
_READY = "keepa-simulator listening on "
_STOP_TIMEOUT_S = 60
# A loaded machine may take minutes.
_CONTROL_TIMEOUT_S = 300

StartSimulator = Callable[..., "RunningSimulator"]


def price_type_of(call: Mapping[str, Any]) -> int:
    """The price type that a /deal call of the simulator's journal asked for."""
    return int(json.loads(call["selection"])["priceTypes"][0])


class RunningSimulator:
    """A simulator that a test can reach.

    Args:
        process: The server.
        base_url: Where it listens, without a trailing slash.
        api_key: The first key that has an account.
        options: The arguments of its start.
    """

    def __init__(
        self, process: subprocess.Popen[str], base_url: str, api_key: str, options: list[str]
    ) -> None:
        self.process = process
        self._options = options
        self.base_url = base_url
        self.api_key = api_key
        self.key_fingerprint = fingerprint(api_key)

    def stats(self) -> dict[str, Any]:
        """The reply of ``/_simulator/stats``: totals, and ``accounts`` in the keys' order."""
        return dict(self._control("GET", "stats"))

    def calls(self, since: int = 0) -> list[dict[str, Any]]:
        """Every call after number *since*, the oldest first."""
        calls: list[dict[str, Any]] = []
        while page := self._control("GET", f"calls?since={since}")["calls"]:
            calls += page
            since = page[-1]["seq"]
        return calls

    def served_deals(self) -> dict[tuple[int, str, int], int]:
        """The newest lastUpdate of every deal in a delivered reply.

        By (domain, asin, price type).
        """
        newest: dict[tuple[int, str, int], int] = {}
        for call in self.calls():
            for domain, asin, last_update, _ in call["rows"] if call["delivered"] else ():
                key = (domain, asin, price_type_of(call))
                newest[key] = max(last_update, newest.get(key, 0))
        return newest

    def set_fault(self, fault: str) -> int:
        """Sets a fault, such as ``error:status=503,path=/deal,count=3``; returns its id."""
        return int(self._control("POST", "faults", fault)["id"])

    def clear_faults(self) -> None:
        """Takes all faults back."""
        self._control("DELETE", "faults")

    def change_account(self, **changes: Any) -> dict[str, Any]:
        """Changes rate, token_flow_reduction or balance, or spend; returns the stats."""
        return dict(self._control("POST", "accounts", json.dumps(changes)))

    def start_again(self) -> None:
        """Starts it after its end, at the same address; see the option `state`."""
        self.stop()
        listen = self.base_url.removeprefix("http://")
        self.process, _ = _start(["--listen", listen, *self._options])

    def stop(self) -> int:
        """Ends the process and returns its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            code = self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def _control(self, method: str, path: str, body: str | None = None) -> Any:
        data = body.encode() if body is not None else None
        request = Request(f"{self.base_url}/_simulator/{path}", data=data, method=method)
        with urlopen(request, timeout=_CONTROL_TIMEOUT_S) as reply:
            return json.load(reply)


def launch_simulator(**options: Any) -> RunningSimulator:
    """Starts a simulator on a free port and waits until it is ready.

    Args:
        options: Those of ``keepa-simulator serve``, with underscores; a list repeats one.
    """
    arguments: list[str] = []
    for name, value in options.items():
        for item in value if isinstance(value, list | tuple) else [value]:
            arguments += [f"--{name.replace('_', '-')}", str(item)]
    process, base_url = _start(["--listen", "127.0.0.1:0", *arguments])
    keys = options.get("api_key", DEMO_KEY)
    api_key = keys if isinstance(keys, str) else keys[0]
    return RunningSimulator(process, base_url, api_key, arguments)


def _start(arguments: list[str]) -> tuple[subprocess.Popen[str], str]:
    """Starts a simulator; returns it and its address once it is ready."""
    process = subprocess.Popen(
        tethered([sys.executable, "-m", "deploy.keepa_simulator", "serve", *arguments]),
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line.startswith(_READY):
        process.kill()
        process.wait()
        process.stdout.close()
        raise RuntimeError(f"the simulator did not start: {line or 'see its standard error'}")
    return process, line.removeprefix(_READY)


@pytest.fixture
def start_simulator() -> Iterator[StartSimulator]:
    """A factory: ``start_simulator(rate=20, tick_seconds=1, …)`` starts one more simulator."""
    running: list[RunningSimulator] = []

    def start(**options: Any) -> RunningSimulator:
        running.append(launch_simulator(**options))
        return running[-1]

    yield start
    for simulator in running:
        simulator.stop()


@pytest.fixture(scope="module")
def simulator() -> Iterator[RunningSimulator]:
    """A Keepa that won't tick during a test."""
    simulator = launch_simulator(rate=20, tick_seconds=3600, products=100, deals=10)
    yield simulator
    simulator.stop()
