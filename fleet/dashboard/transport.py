"""The typed client's way to the API in the same process."""

from __future__ import annotations

import anyio.from_thread
import httpx
from starlette.types import ASGIApp


class AppTransport(httpx.BaseTransport):
    """Hands requests to an ASGI application, from a worker thread of its event loop."""

    def __init__(self, app: ASGIApp) -> None:
        """`app` answers on the event loop that this thread was started from."""
        self._app = httpx.ASGITransport(app, raise_app_exceptions=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """The application's answer, whole."""
        return anyio.from_thread.run(self._handle, request)

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        answer = await self._app.handle_async_request(request)
        content = await answer.aread()
        return httpx.Response(answer.status_code, headers=answer.headers, content=content)
