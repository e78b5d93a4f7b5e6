"""``/_simulator/…``: shows what happened so far, and sets faults. It needs no key."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from aiohttp import web

from deploy.keepa_simulator.account import Account
from deploy.keepa_simulator.faults import FaultError, parse_fault
from deploy.keepa_simulator.simulator import Simulator

_CALLS_PER_PAGE = 1_000


class _Control:
    """The handlers.

    Args:
        simulator: The simulator to show and to change.
        now_ms: The server's clock.
    """

    def __init__(self, simulator: Simulator, now_ms: Callable[[], int]) -> None:
        self._simulator = simulator
        self._now_ms = now_ms

    async def stats(self, _: web.Request) -> web.Response:
        """Tokens by account, calls by path and status."""
        return web.json_response(self._simulator.stats(self._now_ms()))

    async def calls(self, request: web.Request) -> web.Response:
        """Calls after ``since``; ``next`` is the ``since`` of the next page."""
        try:
            since = int(request.query.get("since", 0))
            limit = int(request.query.get("limit", _CALLS_PER_PAGE))
        except ValueError:
            raise web.HTTPBadRequest(text="since and limit must be numbers") from None
        return web.json_response(self._simulator.journal.since(since, max(1, limit)))

    async def faults(self, _: web.Request) -> web.Response:
        """Lists the active faults."""
        return web.json_response([asdict(fault) for fault in self._simulator.faults])

    async def set_fault(self, request: web.Request) -> web.Response:
        """Sets the fault in the body: ``kind:name=value,…`` as text."""
        try:
            fault = parse_fault((await request.text()).strip())
        except FaultError as exc:
            raise web.HTTPBadRequest(text=str(exc)) from exc
        return web.json_response(asdict(self._simulator.faults.set(fault, self._now_ms())))

    async def clear_faults(self, request: web.Request) -> web.Response:
        """Removes the fault ``id``, or all of them."""
        number = request.query.get("id")
        self._simulator.faults.clear(int(number) if number else None)
        return await self.faults(request)

    async def change_account(self, request: web.Request) -> web.Response:
        """Changes an account: JSON with any of rate, token_flow_reduction, spend, balance.

        ``key_fingerprint`` chooses one; without it all accounts are changed.
        """
        try:
            wanted = json.loads(await request.text())
            name = wanted.pop("key_fingerprint", None)
            accounts = self._simulator.accounts
            for account in [accounts[name]] if name else accounts.values():
                self._change(account, wanted)
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise web.HTTPBadRequest(text=f"can't change that: {exc!r}") from exc
        return await self.stats(request)

    def _change(self, account: Account, wanted: dict[str, Any]) -> None:
        now_ms = self._now_ms()
        self._simulator.advance(now_ms)
        changes: dict[str, Callable[[Any], None]] = {
            "rate": lambda value: account.change_plan(int(value), now_ms),
            "token_flow_reduction": lambda value: account.reduce_flow(float(value), now_ms),
            "spend": lambda value: account.spend_elsewhere(int(value), now_ms),
            "balance": lambda value: account.spend_elsewhere(account.balance - int(value), now_ms),
        }
        for field, value in wanted.items():
            changes[field](value)
        self._simulator.keep()


def add_control_routes(
    app: web.Application, simulator: Simulator, now_ms: Callable[[], int]
) -> None:
    """Adds the routes below ``/_simulator``."""
    control = _Control(simulator, now_ms)
    app.router.add_get("/_simulator/stats", control.stats)
    app.router.add_get("/_simulator/calls", control.calls)
    app.router.add_get("/_simulator/faults", control.faults)
    app.router.add_post("/_simulator/faults", control.set_fault)
    app.router.add_delete("/_simulator/faults", control.clear_faults)
    app.router.add_post("/_simulator/accounts", control.change_account)
