"""Client of the gateway's socket, for Flower's ClientApp and for tests.

Replies are the maps of docs/specification/gateway.md without ``ok``.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fleet.errors import GatewayError
from fleet.gateway import frames

TIMEOUT_SECONDS = 40.0


class GatewayClient:
    """One request per connection: cheap on a unix socket, and nothing to keep alive."""

    def __init__(self, socket_path: Path | str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """``socket_path`` is the gateway's ``socket``."""
        self.socket_path = Path(socket_path)
        self._timeout = timeout_seconds

    def request(self, operation: str, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Any operation; GatewayError for a refusal or a gateway that isn't there."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(self._timeout)
                connection.connect(str(self.socket_path))
                frames.send(connection, {"op": operation, **(fields or {})})
                reply = frames.receive(connection)
        except OSError as error:
            raise GatewayError(
                f"gateway socket {self.socket_path}: no answer ({error}); "
                f"is the gateway daemon running? python -m fleet.gateway --config FILE"
            ) from None
        if reply is None:
            raise GatewayError(
                f"gateway socket {self.socket_path}: closed without an answer; "
                f"the gateway's log says why"
            )
        if reply.pop("ok", None) is not True:
            raise GatewayError(str(reply.get("error", "the gateway refuses without a reason")))
        return reply

    def hello(self, cursor: int = 0) -> dict[str, Any]:
        """Who the gateway is; devices and rounds that changed since ``cursor``, one page."""
        return self.request("hello", {"cursor": cursor})

    def devices(self) -> list[dict[str, Any]]:
        """All devices, page by page."""
        found: list[dict[str, Any]] = []
        cursor, more = 0, True
        while more:
            reply = self.hello(cursor)
            found += reply["devices"]
            cursor, more = reply["cursor"], reply["more"]
        return found

    def start(self, **fields: Any) -> dict[str, Any]:
        """Begin a round; with the same content again it only tells the state."""
        return self.request("start", fields)

    def watch(
        self,
        rounds: Sequence[tuple[str, int]],
        wait_seconds: float,
        arrivals: Mapping[str, int] | None = None,
    ) -> tuple[int, bool]:
        """How many of these (campaign, round) don't run (any more), and whether so many deltas
        of a campaign have arrived; at once where there is such a round or campaign, else after
        ``wait_seconds`` (≤ 5) at the latest."""
        wanted = dict(arrivals or {})
        reply = self.request(
            "watch",
            {
                "rounds": [list(one) for one in rounds],
                "wait_seconds": wait_seconds,
                **({"arrivals": wanted} if wanted else {}),
            },
        )
        arrived = any(reply["arrived"][one] >= number for one, number in wanted.items())
        return int(reply["ended"]), arrived

    def collect(
        self, campaign: str, round: int, cursor: int = 0, part: int | None = None
    ) -> dict[str, Any]:
        """Where a round stands, and a page of its reports. Sums come once it is closed, with the
        last page; where its fold is by arrival, those of the ``part`` that is named."""
        fields = {"campaign": campaign, "round": round, "cursor": cursor}
        return self.request("collect", fields if part is None else {**fields, "part": part})

    def access(self, entries: Mapping[str, Any], cursor: int) -> dict[str, Any]:
        """Change who may log in at the site's broker; comes back when the broker has read it.

        ``entries`` are ``{name: {"role": …, "hash": …} or None to remove}``.
        """
        return self.request("access", {"entries": dict(entries), "cursor": cursor})

    def cancel(self, campaign: str, round: int) -> dict[str, Any]:
        """End a round without using it."""
        return self.request("cancel", {"campaign": campaign, "round": round})
