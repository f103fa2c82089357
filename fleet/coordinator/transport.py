"""The driver's seam to the gateways: requests out, checked replies in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fleet.campaign import Operation
from fleet.campaign.answers import CollectAnswer, Hello, StartAnswer
from fleet.errors import AnswerError


@dataclass(frozen=True)
class Reply:
    """What came back from a gateway: each part where it was asked for, or an error.

    A start that waited for the round's end has a `collected` as well. With `is_odd` the gateway did
    answer, but not as the specification says; `error` tells how.
    """

    gateway: str
    started: StartAnswer | None = None
    collected: CollectAnswer | None = None
    cancelled: StartAnswer | None = None
    hello: Hello | None = None
    error: str = ""
    is_odd: bool = False


def read_reply(gateway: str, reply: Mapping[str, Any]) -> Reply:
    """The reply of a gateway's ClientApp (`gateway_call`); never an exception."""
    try:
        parts = {
            name: form.parse(gateway, reply[part])
            for name, part, form in (
                ("started", "start", StartAnswer),
                ("collected", "collect", CollectAnswer),
                ("cancelled", "cancel", StartAnswer),
                ("hello", "hello", Hello),
            )
            if part in reply
        }
    except AnswerError as error:
        return Reply(gateway, error=str(error), is_odd=True)
    hello = parts.get("hello")
    if isinstance(hello, Hello) and hello.gateway != gateway:
        why = (
            f"gateway {gateway} says that it is {hello.gateway}: check its SuperNode's node-config"
        )
        return Reply(gateway, error=why, is_odd=True)
    return Reply(gateway, **parts)  # type: ignore[arg-type]  # each has the form of its name


class Transport(ABC):
    """Carries requests to gateways. One request per gateway is under way at a time."""

    @abstractmethod
    def gateways(self) -> frozenset[str]:
        """Names of the gateways that have been reached."""

    @abstractmethod
    def send(self, gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        """Send a request; its reply comes from `receive`, an error where it can't be sent."""

    @abstractmethod
    def receive(self) -> list[Reply]:
        """What came since; waits a moment where nothing did. Also greets new gateways.

        A `hello` has what changed since the one before from the same gateway.
        """
