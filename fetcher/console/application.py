"""The console as one application: pages, sign-in, the API of deals."""

from collections.abc import Awaitable, Callable

from aiohttp import web

from fetcher.console.context import ConsoleContext
from fetcher.console.deals import DealPages
from fetcher.console.work import WorkPages
from fetcher.deals.api import deal_routes
from fetcher.postgres.measures import ask_nothing
from protos.web.pages import application


def console(context: ConsoleContext, *, secure: bool) -> web.Application:
    """Returns the routes of *context*; *secure* if the port speaks TLS."""
    routes = application(images=context.images, secure=secure)
    routes.router.add_get("/healthz", _healthz(context))
    context.pages.add_sign_in(routes, context.door)
    routes.add_routes(DealPages(context).routes())
    WorkPages(context).add_to(routes)
    routes.add_routes(
        web.route(route.method, route.path, context.viewing(route.handler))
        for route in deal_routes(context.reading)
    )
    return routes


def _healthz(context: ConsoleContext) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Answers 200 while pages can be read; open to all, and without any detail."""

    async def healthz(_request: web.Request) -> web.Response:
        await context.read(ask_nothing)
        return web.Response(text="ok\n")

    return healthz
