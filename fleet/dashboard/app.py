"""The application behind /ui: who asks, which screen, and what is told when it can't be shown."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from fleet.dashboard import session
from fleet.dashboard.assets import Assets
from fleet.dashboard.errors import comes_again, status_of
from fleet.dashboard.page import Action, Context, GoTo, Page, Screen
from fleet.dashboard.rendering import Frame, Renderer
from fleet.dashboard.screens import ALL
from fleet.dashboard.shared import FRESH_SECONDS, Shared
from fleet.dashboard.transport import AppTransport
from fleet.errors import FleetError, UnknownTokenError
from fleet.service.client import Client
from fleet.service.schema import WhoAmI

logger = logging.getLogger(__name__)

PAGES_AT_ONCE = 8
"""Each takes a thread of its own and one of the API's."""
ASKED_WHO_AT_ONCE = 4
"""Apart from pages: whoever logs in doesn't wait for slow ones."""
LIVE = "X-Tinyfleet-Live"
VERSION = "X-Tinyfleet-Version"
_MOST_FIELDS = 200
_MOST_FORM_BYTES = 1 << 20
_ADDRESS = "http://dashboard"
"""Of the API as the client in this process names it; nothing listens there."""

_PART = re.compile(r"(?!\.+$)[A-Za-z0-9_.:-]{1,128}")
"""Of a path: names and ids of all kinds."""

_Done = TypeVar("_Done")

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # With no-referrer browsers send forms with `Origin: null`, which could be anybody's.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass
class _Filled:
    """A screen's context, and what of it is live: made once, when somebody first asks."""

    context: Context
    live: tuple[str, str] | None = None
    """HTML and its ETag."""


def mount(app: FastAPI, keep_seconds: float = FRESH_SECONDS) -> None:
    """Serve the dashboard of this API at /ui, and lead / there.

    What the API says is kept for `keep_seconds`, for all who look at the same page.
    """
    app.mount(session.ROOT, Dashboard(app, str(app.version), keep_seconds).app)

    @app.get("/", include_in_schema=False)
    def to_dashboard() -> Response:
        return RedirectResponse(f"{session.ROOT}/")


class Dashboard:
    """Pages over the API of an application."""

    def __init__(self, api: FastAPI, version: str, keep_seconds: float = FRESH_SECONDS) -> None:
        """`version` is what the API says too: pages of another one are told to load anew."""
        self._transport = AppTransport(api)
        self._assets = Assets()
        self.build = f"{version}+{self._assets.digest}"
        self._renderer = Renderer(self._assets, version=version, build=self.build)
        self._filled: Shared[_Filled] = Shared(keep_seconds)
        self._threads = anyio.CapacityLimiter(PAGES_AT_ONCE)
        self._doors = anyio.CapacityLimiter(ASKED_WHO_AT_ONCE)
        routes = [
            Route("/", self._first_page),
            Route("/login", self._log_in, methods=["GET", "POST"]),
            Route("/logout", self._log_out, methods=["POST"]),
            Route("/theme", self._theme, methods=["POST"]),
            Route("/assets/{digest}/{name}", self._assets.serve),
        ]
        pages, actions = ALL
        for screen in pages:
            routes.append(Route(screen.path, self._answered(self._look, screen)))
        for action in actions:
            routes.append(Route(action.path, self._answered(self._do, action), methods=["POST"]))
        self.app = Starlette(routes=routes, exception_handlers={HTTPException: self._not_there})
        self.app.add_middleware(_Headers, build=self.build)

    # Who asks

    async def _first_page(self, request: Request) -> Response:
        return RedirectResponse(session.url("/fleet"), 303)

    async def _log_in(self, request: Request) -> Response:
        if request.method == "GET":
            go_on = request.query_params.get("next", "")
            return self._login_page(request, "", session.local(go_on), status=200)
        if not session.is_from_us(request):
            return self._cross_site(request)
        form = await self._form(request)
        go_on, token = session.local(form.get("next", "")), form.get("token", "").strip()
        try:
            await self._whoami(token)
        except FleetError as error:
            return self._login_page(request, str(error), go_on, status=status_of(error))
        response = RedirectResponse(go_on, 303)
        session.log_in(request, response, token)
        return response

    def _login_page(self, request: Request, error: str, go_on: str, status: int) -> Response:
        content = self._renderer.page(
            "login.html", self._frame(request, "Log in"), {"error": error, "next": go_on}
        )
        response = _html(content, status)
        if status == 401:
            session.log_out(response)
        return response

    async def _log_out(self, request: Request) -> Response:
        if not session.is_from_us(request):
            return self._cross_site(request)
        response = RedirectResponse(session.url("/login"), 303)
        session.log_out(response)
        return response

    async def _theme(self, request: Request) -> Response:
        if not session.is_from_us(request):
            return self._cross_site(request)
        form = await self._form(request)
        response = RedirectResponse(session.local(form.get("next", "")), 303)
        session.keep_theme(request, response, form.get("theme", ""))
        return response

    def _client(self, token: str, why: str = "") -> Client:
        # Whoever looks is told at once, and the script asks again.
        return Client(_ADDRESS, token, why=why, transport=self._transport, retries=0)

    async def _whoami(self, token: str) -> WhoAmI:
        # What can't be a header is no token either.
        can_be_sent = token and token.isascii() and token.isprintable()

        def ask() -> WhoAmI:
            with self._client(token if can_be_sent else "-") as api:
                return api.whoami()

        return await anyio.to_thread.run_sync(ask, limiter=self._doors)

    # Screens

    def _answered(
        self, answer: Callable[..., Awaitable[Response]], what: Screen | Action
    ) -> Callable[[Request], Awaitable[Response]]:
        """A route that knows who asks, with its form read; what goes wrong is a page as well."""

        async def route(request: Request) -> Response:
            if not all(_PART.fullmatch(one) for one in request.path_params.values()):
                raise HTTPException(404)  # it would be another path of the API
            token = session.token_of(request)
            if not token:
                return self._without_token(request)
            form: Mapping[str, str] = {}
            if isinstance(what, Action):
                if not session.is_from_us(request):
                    return self._cross_site(request)
                form = await self._form(request)
            return await self._answer(answer, what, request, token, form)

        return route

    async def _in_thread(self, work: Callable[[], _Done]) -> _Done:
        """A page's work in a thread of the dashboard's own."""
        return await anyio.to_thread.run_sync(work, limiter=self._threads)

    async def _answer(
        self,
        answer: Callable[..., Awaitable[Response]],
        what: Screen | Action,
        request: Request,
        token: str,
        form: Mapping[str, str],
    ) -> Response:
        who: WhoAmI | None = None
        try:
            who = await self._whoami(token)
            with self._client(token, form.get("why", "")) as api:
                page = Page(
                    api=api,
                    role=who.role,
                    fleet=who.fleet,
                    path=request.path_params,
                    query=dict(request.query_params),
                    form=form,
                )
                return await answer(request, what, page, who)
        except UnknownTokenError as error:
            return self._ended(request, error)
        except FleetError as error:
            return self._failed(request, str(error), status_of(error), who, what.section, form)
        except Exception:
            logger.exception("the page %s meets a defect", request.url.path)
            text = "the dashboard has met a defect; the service's log says which"
            return self._failed(request, text, 500, who, what.section)

    async def _look(self, request: Request, screen: Screen, page: Page, who: WhoAmI) -> Response:
        async def fill() -> _Filled:
            return _Filled(await self._in_thread(functools.partial(screen.fill, page)))

        filled = await self._filled.get(f"{page.role} {_address(request)}", fill)
        return await self._in_thread(
            functools.partial(self._show, request, screen, page, who, filled)
        )

    def _show(
        self, request: Request, screen: Screen, page: Page, who: WhoAmI, filled: _Filled
    ) -> Response:
        title = screen.title.format_map(page.path)
        frame = self._frame(request, title, who, screen.section, page)
        if LIVE not in request.headers:
            response = _html(self._renderer.page(screen.template, frame, filled.context))
            if frame.notice:
                session.forget_notice(response)
            return response
        if filled.live is None:
            html = self._renderer.live(screen.template, frame, filled.context)
            filled.live = html, f'"{hashlib.sha256(html.encode()).hexdigest()[:24]}"'
        html, tag = filled.live
        if request.headers.get("If-None-Match") == tag:
            return Response(status_code=304, headers={"ETag": tag})
        return _html(html, headers={"ETag": tag})

    async def _do(self, request: Request, action: Action, page: Page, who: WhoAmI) -> Response:
        try:
            end = await self._in_thread(functools.partial(action.act, page))
        finally:
            self._filled.clear()
        if isinstance(end, GoTo):
            response: Response = RedirectResponse(session.url(end.path, **end.query), 303)
            if end.notice:
                session.notify(request, response, end.notice)
            return response
        frame = self._frame(request, end.title, who, action.section, page)
        if comes_again(end.status):
            # It may have been done after all: sent once more, it isn't done twice.
            frame = replace(frame, key=page.form.get("key") or frame.key)
        return _html(self._renderer.page(end.template, frame, end.context), end.status)

    # What can't be shown

    def _without_token(self, request: Request) -> Response:
        if LIVE in request.headers:
            return PlainTextResponse("you have logged out", 401)
        if session.is_link_from_elsewhere(request):
            # The same page asked for by a page of ours: then the browser sends its cookie.
            content = self._renderer.page(
                "again.html", self._frame(request, "One moment"), {"address": _address(request)}
            )
            return _html(content)
        go_on = _page_to_go_on_to(request)
        return RedirectResponse(session.url("/login", next=go_on), 303)

    def _ended(self, request: Request, error: UnknownTokenError) -> Response:
        if LIVE in request.headers:
            return PlainTextResponse(str(error), 401)
        go_on = _page_to_go_on_to(request)
        return self._login_page(request, str(error), go_on, status=401)

    def _cross_site(self, request: Request) -> Response:
        text = "this form doesn't come from a page of the dashboard; nothing was done"
        return self._failed(request, text, 403, None, "")

    async def _not_there(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        text = {
            404: f"the dashboard has no page {request.url.path}",
            405: f"{request.method} can't be done to {request.url.path}",
        }.get(status, getattr(error, "detail", ""))
        who: WhoAmI | None = None
        token = session.token_of(request)
        if token:
            with contextlib.suppress(FleetError):  # the page is without navigation then
                who = await self._whoami(token)
        return self._failed(request, text, status, who, "")

    def _failed(
        self,
        request: Request,
        text: str,
        status: int,
        who: WhoAmI | None,
        section: str,
        form: Mapping[str, str] | None = None,
    ) -> Response:
        """An error's page. A `form` that may be taken another time can be sent again from there."""
        if LIVE in request.headers:
            return PlainTextResponse(text, status)
        frame = self._frame(request, f"Error {status}", who, section)
        back = session.local(_path_of_referer(request))
        content = self._renderer.page(
            "error.html",
            frame,
            {
                "status": status,
                "error": text,
                "back": back,
                "comes_again": status == 503 and request.method == "GET",
                "form": form if form and comes_again(status) else {},
                "to": _address(request),
            },
        )
        return _html(content, status)

    # Parts

    async def _form(self, request: Request) -> dict[str, str]:
        # The API's application lets none pass without its length.
        if int(request.headers.get("Content-Length", "0")) > _MOST_FORM_BYTES:
            raise HTTPException(413, f"a form has {_MOST_FORM_BYTES} bytes at most")
        async with request.form(
            max_files=0, max_fields=_MOST_FIELDS, max_part_size=_MOST_FORM_BYTES
        ) as form:
            return {name: value for name, value in form.items() if isinstance(value, str)}

    def _frame(
        self,
        request: Request,
        title: str,
        who: WhoAmI | None = None,
        section: str = "",
        page: Page | None = None,
    ) -> Frame:
        return Frame(
            title=title,
            who=who,
            section=section,
            refusal=page.refusal if page else lambda permission: "nobody is logged in",
            address=_address(request) if request.method == "GET" else f"{session.ROOT}/",
            theme=session.theme_of(request),
            notice=session.take_notice(request),
            # What is live is the same for all of a role.
            key="" if LIVE in request.headers else secrets.token_hex(16),
        )


class _Headers:
    """What every answer has: how a browser may use it, and of which version it is."""

    def __init__(self, app: Any, build: str) -> None:
        self._app = app
        self._headers = {**_HEADERS, VERSION: build}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                wanted = {"Cache-Control": "no-store", **self._headers}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (name.lower().encode(), value.encode())
                        for name, value in wanted.items()
                        if name.lower().encode() not in names
                    ),
                ]
            await send(message)

        await self._app(scope, receive, with_headers)


def _html(content: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(content, status, headers, media_type="text/html")


def _address(request: Request) -> str:
    """Of a page, as a browser sees it."""
    query = request.url.query
    return request.url.path + (f"?{query}" if query else "")


def _page_to_go_on_to(request: Request) -> str:
    """After somebody has logged in: the page, or the one that a form was on."""
    if request.method == "GET":
        return _address(request)
    return session.local(_path_of_referer(request))


def _path_of_referer(request: Request) -> str:
    parts = session.split(request.headers.get("Referer", ""))
    return parts.path + (f"?{parts.query}" if parts.query else "")
