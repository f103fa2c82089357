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

    def hello(self) -> dict[str, Any]:
        """Who the gateway is, its devices and rounds."""
        return self.request("hello")

    def start(
        self,
        *,
        campaign: str,
        round: int,
        blobs: Sequence[Mapping[str, Any]],
        tasks: Mapping[str, Mapping[str, str]],
        plans: Mapping[str, Mapping[str, int]],
        epochs: int,
        learning_rate: float,
        seed: int,
        deadline_seconds: int,
        max_score_drop_permille: int,
        check_in_seconds: int,
        target: int,
    ) -> dict[str, Any]:
        """Begin a round; with the same content again it only tells the state."""
        return self.request(
            "start",
            {
                "campaign": campaign,
                "round": round,
                "blobs": [dict(blob) for blob in blobs],
                "tasks": {device: dict(task) for device, task in tasks.items()},
                "plans": {plan: dict(size) for plan, size in plans.items()},
                "epochs": epochs,
                "learning_rate": float(learning_rate),
                "seed": seed,
                "deadline_seconds": deadline_seconds,
                "max_score_drop_permille": max_score_drop_permille,
                "check_in_seconds": check_in_seconds,
                "target": target,
            },
        )

    def collect(self, campaign: str, round: int, wait_seconds: float = 0.0) -> dict[str, Any]:
        """Where a round stands, after at most ``wait_seconds`` (≤ 5); sums once it is closed."""
        return self.request(
            "collect", {"campaign": campaign, "round": round, "wait_seconds": wait_seconds}
        )

    def cancel(self, campaign: str, round: int) -> dict[str, Any]:
        """End a round without using it."""
        return self.request("cancel", {"campaign": campaign, "round": round})
