"""Flower's SuperLink as other machines may reach it, a program.

It is the stock one with the stock options. But whoever reaches its control interface starts
runs, which is Python on every gateway, and it asks nobody for a password. So whoever isn't on this
machine gets at what SuperNodes need, and at nothing else.
"""

from __future__ import annotations

import ipaddress
import os
from typing import Any

from flwr.superlink import main
from flwr.superlink.cli import flower_superlink
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

FOR_SUPERNODES = "/v1/fleet/"
HEALTH = "/health"


class Guard:
    """In front of a SuperLink's application."""

    def __init__(self, app: ASGIApp) -> None:
        """`app` is what is guarded."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer that there is nothing."""
        if scope["type"] == "lifespan" or is_open(scope["path"]) or is_here(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await PlainTextResponse("not from another machine\n", 404)(scope, receive, send)


def is_open(path: str) -> bool:
    """Whether other machines may ask for this path."""
    return path == HEALTH or path.startswith(FOR_SUPERNODES)


def is_here(scope: Scope) -> bool:
    """Whether a request is of this machine: it comes from loopback, or from where it went to."""
    client, server = _address(scope.get("client")), _address(scope.get("server"))
    return client is not None and (client.is_loopback or client == server)


def _address(end: Any) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(end[0])
    except (TypeError, ValueError, IndexError):
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def run() -> None:
    """What `flower-superlink` does, behind a guard."""
    stock = main.create_app

    def create_app(*given: Any, **options: Any) -> Guard:
        return Guard(stock(*given, **options))

    # Whoever else were trusted to say for whom they ask could say that it is for this machine.
    os.environ["FORWARDED_ALLOW_IPS"] = "127.0.0.1"
    # It takes the application from there when it starts; a test dials it from elsewhere.
    main.create_app = create_app  # type: ignore[assignment]
    flower_superlink()


if __name__ == "__main__":
    run()
