"""A way to one gateway without Flower between: the driver asks it as a ClientApp does."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from fleet.campaign import Operation
from fleet.coordinator.transport import Reply, Transport, read_replies
from fleet.gateway.client import GatewayClient


class SocketTransport(Transport):
    """Asks one gateway at its socket, and waits for the answer."""

    def __init__(self, gateway: str, client: GatewayClient) -> None:
        self._gateway, self._client = gateway, client
        self._cursor = 0
        self._replies: list[Reply] = []
        self.send(gateway, Operation.HELLO, {})

    def gateways(self) -> frozenset[str]:
        return frozenset({self._gateway})

    def send(self, gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        answers = []
        if operation is not Operation.HELLO:
            name = {"campaign": fields["campaign"], "round": fields["round"]}
            if operation is Operation.COLLECT:
                self._client.watch([(name["campaign"], name["round"])], 5.0)
            answer = self._client.request(operation.value, fields)
            answers.append({"op": operation.value, **name, "answer": answer})
        hello = self._client.hello(self._cursor)
        self._cursor = hello["cursor"]
        self._replies += read_replies(gateway, {"answers": answers, "hello": hello})

    def receive(self) -> list[Reply]:
        replies, self._replies = self._replies, []
        if not replies:
            time.sleep(0.1)
        return replies
