"""What a ClientApp does for one message: ask the gateway daemon beside it, and answer.

A ClientApp is a fresh process per message, so this module imports no more than it needs.
A message and its reply carry one packed CBOR map each. A request is `fields` (those of
docs/specification/gateway.md), `wait_seconds`, `hello_cursor`, up to which the coordinator knows
the devices, and `all_pages`, with which the answer has every report, however many they are. A reply
has `ok` and either `error`, or the gateway's name and what its socket answered to each operation:
`start`, `collect`, `cancel`, `hello`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import cbor2

from fleet.errors import GatewayError
from fleet.gateway.client import GatewayClient

# The gateway answers a collect within this; longer waits are several requests.
COLLECT_WAIT_SECONDS = 5.0


def handle(operation: str, payload: bytes, node_config: Mapping[str, Any]) -> bytes:
    """Reply to a message of type `query.hello`, `train.start`, `train.collect`, `train.cancel`.

    A failure is a reply too: an exception would end the ClientApp with a traceback and tell
    the coordinator less.
    """
    gateway = str(node_config.get("gateway", ""))
    try:
        socket_path = node_config.get("socket")
        if not socket_path:
            raise GatewayError(
                "this SuperNode's config names no socket; start it with --node-config "
                '\'gateway="NAME" socket="PATH"\''
            )
        request = cbor2.loads(payload) if payload else {}
        reply = _ask(
            GatewayClient(str(socket_path)),
            operation,
            request.get("fields", {}),
            float(request.get("wait_seconds", 0.0)),
            {"cursor": int(request.get("hello_cursor", 0))},
            bool(request.get("all_pages", False)),
        )
        return cbor2.dumps({"ok": True, "gateway": gateway, **reply})
    except GatewayError as error:
        return cbor2.dumps({"ok": False, "gateway": gateway, "error": str(error)})


def _ask(
    client: GatewayClient,
    operation: str,
    fields: Mapping[str, Any],
    wait_seconds: float,
    hello: Mapping[str, Any],
    all_pages: bool,
) -> dict[str, Any]:
    if operation == "hello":
        return {"hello": client.request("hello", hello)}
    if operation == "cancel":
        return {"cancel": client.request("cancel", fields)}
    if operation not in ("start", "collect"):
        raise GatewayError(f"no such operation: {operation}; gateway and app differ in version")
    reply: dict[str, Any] = {}
    if operation == "start":
        reply["start"] = client.request("start", fields)
        if wait_seconds <= 0:
            return reply
    names = ("campaign", "round", "cursor")
    collect = {name: fields[name] for name in names if name in fields}
    deadline = time.monotonic() + wait_seconds
    while True:
        left = max(0.0, deadline - time.monotonic())
        # Always from the same cursor: only the last answer goes back.
        answer = client.request(
            "collect", {**collect, "wait_seconds": min(COLLECT_WAIT_SECONDS, left)}
        )
        if answer.get("state") != "running" or time.monotonic() >= deadline:
            break
    reports = list(answer.get("reports", ()))
    while all_pages and answer.get("more"):
        page = {**collect, "cursor": answer["cursor"], "wait_seconds": 0.0}
        answer = client.request("collect", page)
        reports += answer.get("reports", ())
    reply["collect"] = {**answer, "reports": reports}
    if answer.get("state") == "closed":
        # The next round is planned with what devices say now; saves a message for it.
        reply["hello"] = client.request("hello", hello)
    return reply
