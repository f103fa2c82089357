"""The driver's seam to the gateways: requests out, checked replies in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fleet.campaign import Operation
from fleet.campaign.answers import CollectAnswer, Hello, StartAnswer
from fleet.errors import AnswerError
from fleet.gateway.frames import SOCKET_VERSION

RoundName = tuple[str, int]
"""Campaign and number of a round."""


@dataclass(frozen=True)
class Reply:
    """What came back from a gateway: the answer to one request about a round, news, or an error.

    `round` is None for a `hello`, and for an error that isn't about one request. With `is_odd` the
    gateway did answer, but not as the specification says; `error` tells how.
    """

    gateway: str
    round: RoundName | None = None
    started: StartAnswer | None = None
    collected: CollectAnswer | None = None
    cancelled: StartAnswer | None = None
    hello: Hello | None = None
    error: str = ""
    is_odd: bool = False


_FORMS: dict[str, tuple[str, type[StartAnswer] | type[CollectAnswer]]] = {
    Operation.START: ("started", StartAnswer),
    Operation.COLLECT: ("collected", CollectAnswer),
    Operation.CANCEL: ("cancelled", StartAnswer),
}


def read_replies(gateway: str, reply: Mapping[str, Any]) -> list[Reply]:
    """The parts of a reply to a sync (`gateway_call`); never an exception. Odd ones come alone."""
    replies = []
    try:
        answers = reply.get("answers", [])
        if not isinstance(answers, list):
            raise AnswerError(f"gateway {gateway}: answers: not a list")
        for one in answers:
            replies.append(_read_answer(gateway, one))
        if "hello" in reply:
            hello = Hello.parse(gateway, reply["hello"])
            if hello.version != SOCKET_VERSION:
                raise AnswerError(
                    f"gateway {gateway} speaks version {hello.version} of the gateway's language, "
                    f"this coordinator {SOCKET_VERSION}: install the same tinyfleet on both"
                )
            if hello.gateway != gateway:
                raise AnswerError(
                    f"gateway {gateway} says that it is {hello.gateway}: "
                    "check its SuperNode's node-config"
                )
            replies.append(Reply(gateway, hello=hello))
    except AnswerError as error:
        return [Reply(gateway, error=str(error), is_odd=True)]
    return replies


def _read_answer(gateway: str, one: object) -> Reply:
    if not isinstance(one, Mapping):
        raise AnswerError(f"gateway {gateway}: answers: not a list of maps")
    campaign, number, operation = one.get("campaign"), one.get("round"), one.get("op")
    if not isinstance(campaign, str) or not isinstance(number, int) or operation not in _FORMS:
        raise AnswerError(f"gateway {gateway}: answers: one is about no request of ours")
    name = (campaign, number)
    if "answer" not in one:
        return Reply(gateway, name, error=str(one.get("error", "no reason given")))
    part, form = _FORMS[str(operation)]
    return Reply(gateway, name, **{part: form.parse(gateway, one["answer"])})  # type: ignore[arg-type]


class Transport(ABC):
    """Carries requests to gateways, at most one about a round and gateway at a time."""

    @abstractmethod
    def gateways(self) -> frozenset[str]:
        """Names of the gateways that have been reached."""

    @abstractmethod
    def send(self, gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        """Send a request; its reply comes from `receive`, an error where it can't be sent.

        A hello's fields go with the message as they are (`access`: see `gateway_call`). The
        `traceparent` of a start or a collect goes beside it, as `traces`.
        """

    @abstractmethod
    def receive(self) -> list[Reply]:
        """What came since; waits a moment where nothing did. Also greets new gateways.

        A `hello` has what changed since the one before from the same gateway.
        """
