"""Pages: templates, headers, the stylesheet and the one script."""

import hashlib
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import jinja2
from aiohttp import web
from markupsafe import Markup

from protos.process.visible_text import visible
from protos.web.door import CALLER, FORM_FIELD, SIGN_IN, SIGN_OUT, Door

FOLDER: Final = Path(__file__).parent
ASSETS: Final = {
    "console.css": "text/css",
    "console.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
DAY_S: Final = 86_400
# Product images are Amazon's, by the names that Keepa serves.
IMAGES: Final = "https://m.media-amazon.com"
HSTS: Final = "max-age=31536000"


def policy(*, images: bool) -> str:
    """Returns the Content-Security-Policy: nothing inline, nothing from outside but images."""
    rules = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": f"'self' {IMAGES}" if images else "'self'",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def application(*, images: bool = False, secure: bool = False) -> web.Application:
    """Returns an application with the headers that protect pages in every reply."""
    headers = {
        "Content-Security-Policy": policy(images=images),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
    if secure:
        headers["Strict-Transport-Security"] = HSTS

    async def protect(_request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(headers)
        response.headers.setdefault("Cache-Control", "no-store")

    routes = web.Application()
    routes.on_response_prepare.append(protect)
    for name, kind in ASSETS.items():
        routes.router.add_get(f"/assets/{name}", _asset(FOLDER / "assets" / name, kind))
    return routes


def _asset(path: Path, kind: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    content = path.read_bytes()

    async def asset(_request: web.Request) -> web.Response:
        return web.Response(
            body=content,
            content_type=kind,
            charset="utf-8",
            # Pages name it with a digest of its content.
            headers={"Cache-Control": f"public, max-age={DAY_S}, immutable"},
        )

    return asset


class Pages:
    """Templates of one console on the common frame.

    Every value is escaped, and characters that are hidden or reorder text are shown as codes:
    no template can forget it.

    Args:
        folder: The console's own templates.
        console: Its name, for titles.
        links: The pages in the head, by address.
    """

    def __init__(self, folder: Path, *, console: str, links: dict[str, str]) -> None:
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader([folder, FOLDER / "templates"]),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_plain,
            auto_reload=False,
        )
        stamps = {
            name: hashlib.sha256((FOLDER / "assets" / name).read_bytes()).hexdigest()[:12]
            for name in ASSETS
        }
        self._environment.globals |= {
            "console": console,
            "links": links,
            "form_field": FORM_FIELD,
            "sign_out": SIGN_OUT,
            "assets": {name: f"/assets/{name}?{stamp}" for name, stamp in stamps.items()},
        }

    def filter(self, name: str, function: Callable[..., Any]) -> None:
        """Adds a filter for the templates."""
        self._environment.filters[name] = function

    def text(self, template: str, **values: object) -> str:
        """Returns a filled template."""
        return self._environment.get_template(template).render(**values)

    def page(
        self,
        request: web.Request,
        template: str,
        *,
        status: HTTPStatus = HTTPStatus.OK,
        **values: object,
    ) -> web.Response:
        """Answers *request* with a filled template."""
        text = self.text(template, caller=request.get(CALLER), path=request.path, **values)
        return web.Response(status=status, text=text, content_type="text/html", charset="utf-8")

    def add_sign_in(self, routes: web.Application, door: Door) -> None:
        """Adds the pages of signing in and out."""

        def form(request: web.Request, target: str, *, wrong: bool) -> web.Response:
            status = HTTPStatus.FORBIDDEN if wrong else HTTPStatus.OK
            return self.page(
                request,
                "sign_in.html",
                status=status,
                wrong=wrong,
                target=target,
                form_token=door.sign_in_form_token,
                address=SIGN_IN,
            )

        async def show(request: web.Request) -> web.Response:
            return form(request, request.query.get("next", "/"), wrong=False)

        async def take(request: web.Request) -> web.Response:
            if (answer := await door.sign_in(request)) is not None:
                return answer
            return form(request, str((await request.post()).get("next", "/")), wrong=True)

        routes.router.add_get(SIGN_IN, show)
        routes.router.add_post(SIGN_IN, take)
        routes.router.add_post(SIGN_OUT, door.sign_out)


def _plain(value: object) -> object:
    """Shows hidden characters of texts as codes, and nothing for None."""
    if value is None:
        return ""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
