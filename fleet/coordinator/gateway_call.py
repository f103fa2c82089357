"""What a ClientApp does for one message: ask the gateway daemon beside it, and answer.

A ClientApp is a fresh process per message, so this module imports no more than it needs, and one
message, a *sync*, carries all that the coordinator wants of a gateway. It and its reply are one
packed CBOR map each.

Of the request: `starts` and `cancels`, requests as in docs/specification/gateway.md; `rounds`,
whose standing is told (`[{campaign, round, cursor, part, arrivals}]`, the last two if wanted);
`wait_seconds`, so long until one of these rounds, or of those that were started, has ended or so
many deltas of its campaign have arrived, and then at most `linger_seconds` for the others;
`hello_cursor`, up to which the coordinator knows the devices; `access`, changes of the broker's
users; `traces`, where spans of rounds belong (`[{campaign, round, traceparent}]`); `all_pages`,
with which an answer has every report, however many they are.

A reply has `ok` and either `error`, or the gateway's name, `answers` (`[{op, campaign, round}` with
either `answer`, what the socket said, or `error`) and `hello`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import cbor2

from fleet.errors import GatewayError
from fleet.gateway.client import GatewayClient
from fleet.gateway.frames import MAX_WAIT_SECONDS

RECORD = "tinyfleet"
"""The record of a message that holds it."""
LINGER_LOOK_SECONDS = 0.2
MOST_PAGES = 10
"""Of devices, that one reply has: 2 MB. What is left over takes another message, that is, another
process; all of a gateway's devices have changed after a round."""


def handle(payload: bytes, node_config: Mapping[str, Any]) -> bytes:
    """Reply to a sync.

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
        reply = _sync(GatewayClient(str(socket_path)), request)
        return cbor2.dumps({"ok": True, "gateway": gateway, **reply})
    except GatewayError as error:
        return cbor2.dumps({"ok": False, "gateway": gateway, "error": str(error)})


def _sync(client: GatewayClient, request: Mapping[str, Any]) -> dict[str, Any]:
    access = request.get("access")
    if access:
        # It takes effect first; that it is refused shows in the cursor, which stays.
        with contextlib.suppress(GatewayError):
            client.access(access["entries"], access["cursor"])
    for one in request.get("traces", ()):
        # A daemon of before that knows nothing of it says so, and does without.
        with contextlib.suppress(GatewayError):
            client.request("trace", one)
    answers = []
    rounds: dict[tuple[str, int], Mapping[str, Any]] = {
        (str(one["campaign"]), int(one["round"])): one for one in request.get("rounds", ())
    }
    arrivals = {
        str(one["campaign"]): int(one["arrivals"]) for one in rounds.values() if "arrivals" in one
    }
    for one in request.get("cancels", ()):
        answers.append(_answer(client, "cancel", one))
    for one in request.get("starts", ()):
        answers.append(_answer(client, "start", one))
        if "answer" in answers[-1]:
            rounds.setdefault((str(one["campaign"]), int(one["round"])), one)
    wait = float(request.get("wait_seconds", 0.0))
    if rounds and wait > 0:
        linger = float(request.get("linger_seconds", 0.0))
        _wait(client, list(rounds), arrivals, wait, linger)
        for one in rounds.values():
            answers.append(_collect(client, one, request))
    else:
        # What was started a moment ago has nothing to tell.
        for one in request.get("rounds", ()):
            answers.append(_collect(client, one, request))
    return {"answers": answers, "hello": _hello(client, int(request.get("hello_cursor", 0)))}


def _hello(client: GatewayClient, cursor: int) -> dict[str, Any]:
    hello = client.request("hello", {"cursor": cursor})
    for _ in range(MOST_PAGES - 1):
        if not hello.get("more"):
            break
        page = client.request("hello", {"cursor": hello["cursor"]})
        for part in ("devices", "rounds"):
            page[part] = [*hello[part], *page[part]]
        hello = page
    return hello


def _answer(client: GatewayClient, operation: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the gateway says to one request; that it refuses one leaves the others alone."""
    named = {"op": operation, "campaign": fields.get("campaign"), "round": fields.get("round")}
    try:
        return {**named, "answer": client.request(operation, fields)}
    except GatewayError as error:
        return {**named, "error": str(error)}


def _wait(
    client: GatewayClient,
    rounds: Sequence[tuple[str, int]],
    arrivals: Mapping[str, int],
    seconds: float,
    linger: float,
) -> None:
    deadline = time.monotonic() + seconds
    while True:
        left = max(0.0, deadline - time.monotonic())
        ended, has_arrived = client.watch(rounds, min(MAX_WAIT_SECONDS, left), arrivals)
        if has_arrived:
            return
        if ended or time.monotonic() >= deadline:
            break
    # Rounds that end together are told of together: each telling takes a process.
    deadline = time.monotonic() + linger
    while 0 < ended < len(rounds) and time.monotonic() < deadline:
        time.sleep(LINGER_LOOK_SECONDS)
        ended, _ = client.watch(rounds, 0.0)


def _collect(
    client: GatewayClient, asked: Mapping[str, Any], request: Mapping[str, Any]
) -> dict[str, Any]:
    names = ("campaign", "round", "cursor", "part")
    fields = {name: asked[name] for name in names if name in asked}
    answered = _answer(client, "collect", fields)
    if not request.get("all_pages") or "answer" not in answered:
        return answered
    reports: list[Any] = []
    while True:
        answer = answered["answer"]
        reports += answer.get("reports", ())
        if not answer.get("more"):
            return {**answered, "answer": {**answer, "reports": reports}}
        answered = _answer(client, "collect", {**fields, "cursor": answer["cursor"]})
        if "answer" not in answered:
            return answered
