"""The one module that speaks Flower's message interface for the coordinator.

Gateways are known by the name in their SuperNode's reply, not by node id: an anonymous SuperNode
that restarts has a new one. A name stays with the node that had it first for as long as Flower
takes that node for online; another one that claims it meanwhile is left alone, and asked again
later. A SuperNode handles one message at a time, so each gateway has one under way, and messages
that nobody will read any more expire.

A SuperNode without a message sleeps for three seconds, but looks for the next one at once
when it has answered one. With `spare_collects` a collect is sent ahead (the *spare*): it takes
over where its forerunner's wait ended without the round's end, and after the end it keeps the
SuperNode awake until the next start is there. That saves one to two seconds a round and costs
one ClientApp process (about one second of CPU) per gateway and round.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import cbor2
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fleet.campaign import Operation
from fleet.clock import Clock, SystemClock
from fleet.coordinator.transport import Reply, Transport, read_reply

logger = logging.getLogger(__name__)

RECORD = "tinyfleet"
MESSAGE_TYPES = {
    Operation.HELLO: "query.hello",
    Operation.START: "train.start",
    Operation.COLLECT: "train.collect",
    Operation.CANCEL: "train.cancel",
}


@dataclass(frozen=True)
class FlowerPace:
    """Waiting times in seconds.

    `pull`: between looks for replies. `nodes`: between looks for new SuperNodes.
    `collect_wait`: how long one start or collect stays at the gateway; each message costs a
    process at the site, so long is cheap, and short shows progress. `answer`: beyond the
    wait, until a message counts as lost. `spare_collects`: send a collect ahead.
    """

    pull: float = 0.4
    nodes: float = 1.5
    collect_wait: float = 10.0
    answer: float = 45.0
    spare_collects: bool = False


@dataclass(frozen=True)
class _Sent:
    gateway: str
    node: int
    operation: Operation
    expires: float
    # Campaign and round; None for a greeting.
    key: tuple[str, int] | None = None
    # Sent ahead: nobody has asked for its reply yet.
    spare: bool = False


class GridTransport(Transport):
    """`Transport` over a Flower `Grid`."""

    def __init__(
        self, grid: Grid, pace: FlowerPace | None = None, clock: Clock | None = None
    ) -> None:
        """Nothing is sent before the first `receive`."""
        self._grid = grid
        self._pace = pace or FlowerPace()
        self._clock = clock or SystemClock()
        self._nodes: dict[str, int] = {}
        self._online: set[int] = set()
        self._greeted: set[int] = set()
        self._sent: dict[str, _Sent] = {}
        self._unsent: list[Reply] = []
        self._looked = float("-inf")
        # Up to where each gateway's devices are known.
        self._cursors: dict[str, int] = {}

    def gateways(self) -> frozenset[str]:
        """See `Transport`."""
        return frozenset(self._nodes)

    def nodes(self) -> dict[str, int]:
        """Node id of every gateway that has been reached."""
        return dict(self._nodes)

    def send(self, gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        """See `Transport`."""
        node = self._nodes.get(gateway)
        if node is None:
            self._unsent.append(Reply(gateway, error=f"no SuperNode of {gateway} is online"))
            return
        if operation is Operation.HELLO:
            if not any(one.gateway == gateway for one in self._sent.values()):
                self._push(gateway, node, operation, fields)
            return
        key = (str(fields["campaign"]), int(fields["round"]))
        waits = operation in (Operation.START, Operation.COLLECT)
        if not (operation is Operation.COLLECT and self._promote(gateway, node, key)):
            sent = self._push(gateway, node, operation, fields, key)
            waits = waits and sent
        if waits and self._pace.spare_collects:
            # Promoted, it may repeat reports of its forerunner: a round takes each once.
            spare = {"campaign": key[0], "round": key[1], "cursor": fields.get("cursor", 0)}
            self._push(gateway, node, Operation.COLLECT, spare, key, spare=True)

    def _promote(self, gateway: str, node: int, key: tuple[str, int]) -> bool:
        """Make the spare collect of this round, where one is under way, the one asked for."""
        for identifier, one in self._sent.items():
            if one.spare and (one.gateway, one.node, one.key) == (gateway, node, key):
                self._sent[identifier] = replace(one, spare=False)
                return True
        return False

    def _push(
        self,
        gateway: str,
        node: int,
        operation: Operation,
        fields: Mapping[str, Any],
        key: tuple[str, int] | None = None,
        spare: bool = False,
    ) -> bool:
        waits = operation in (Operation.START, Operation.COLLECT)
        wait = self._pace.collect_wait if waits else 0.0
        payload = cbor2.dumps(
            {
                "fields": dict(fields),
                "wait_seconds": wait,
                "hello_cursor": self._cursors.get(gateway, 0),
            }
        )
        # A spare waits for its forerunner first.
        lifetime = wait * (2 if spare else 1) + self._pace.answer
        message = Message(
            RecordDict({RECORD: ConfigRecord({"payload": payload})}),
            dst_node_id=node,
            message_type=MESSAGE_TYPES[operation],
            ttl=lifetime,
        )
        (identifier,) = self._grid.push_messages([message])
        if not identifier:
            if not spare:
                self._unsent.append(Reply(gateway, error=f"SuperNode {node} is not online"))
            return False
        self._sent[identifier] = _Sent(
            gateway, node, operation, self._clock.monotonic() + lifetime, key, spare
        )
        return True

    def _look_for_nodes(self) -> None:
        now = self._clock.monotonic()
        if now - self._looked < self._pace.nodes:
            return
        self._looked = now
        self._online = set(self._grid.get_node_ids())
        for gateway, node in list(self._nodes.items()):
            if node not in self._online:
                del self._nodes[gateway]
                # Whoever has claimed the name in vain may have it now.
                self._greeted &= set(self._nodes.values())
        self._greeted &= self._online
        for node in self._online - self._greeted:
            self._greeted.add(node)
            self._push("", node, Operation.HELLO, {})

    def receive(self) -> list[Reply]:
        """See `Transport`."""
        self._look_for_nodes()
        replies, self._unsent = self._unsent, []
        if self._sent:
            for message in self._grid.pull_messages(list(self._sent)):
                sent = self._sent.pop(message.metadata.reply_to_message_id, None)
                if sent is not None:
                    replies.extend(self._read(sent, message))
        now = self._clock.monotonic()
        for identifier, sent in list(self._sent.items()):
            if now > sent.expires:
                del self._sent[identifier]
                replies.extend(self._lost(sent, f"no answer to {sent.operation} in time"))
        if not replies:
            self._clock.sleep(self._pace.pull)
        return replies

    def _lost(self, sent: _Sent, error: str) -> list[Reply]:
        if sent.spare:
            return []
        if not sent.gateway:
            # A greeting: greet again at the next look.
            self._greeted.discard(sent.node)
            logger.warning("SuperNode %d: %s", sent.node, error)
            return []
        return [Reply(sent.gateway, error=error)]

    def _read(self, sent: _Sent, message: Message) -> list[Reply]:
        if message.has_error():
            return self._lost(sent, f"Flower: {message.error.reason} ({message.error.code})")
        record = message.content.config_records.get(RECORD)
        payload = None if record is None else record.get("payload")
        data: Any = None
        if isinstance(payload, bytes):
            with contextlib.suppress(ValueError, EOFError):
                data = cbor2.loads(payload)
        if not isinstance(data, dict):
            return self._odd(
                sent, "", "the SuperNode runs another app: its reply isn't one of ours"
            )
        gateway = sent.gateway or str(data.get("gateway", ""))
        if not data.get("ok"):
            return self._lost(sent, str(data.get("error", "no reason given")))
        holder = self._nodes.get(gateway, sent.node)
        if holder != sent.node and holder in self._online:
            logger.error(
                "SuperNode %d says that it is gateway %s, which SuperNode %d is; it is left alone",
                sent.node,
                gateway,
                holder,
            )
            return []
        reply = read_reply(gateway, data)
        if reply.is_odd:
            return self._odd(sent, gateway, reply.error)
        replies: list[Reply] = []
        if reply.hello is not None:
            replies.extend(self._meet(gateway, sent.node))
            self._cursors[gateway] = reply.hello.cursor
            if reply.hello.more:
                self._push(gateway, sent.node, Operation.HELLO, {})
        # A spare's answer about a round that has ended is old; its devices are news.
        if sent.spare:
            reply = replace(reply, started=None, collected=None)
        return [*replies, reply]

    def _odd(self, sent: _Sent, gateway: str, error: str) -> list[Reply]:
        """An answer that isn't one; a node that doesn't even say its name isn't asked again."""
        if not gateway:
            logger.error("SuperNode %d is left alone: %s", sent.node, error)
            return []
        return [Reply(gateway, error=error, is_odd=True)]

    def _meet(self, gateway: str, node: int) -> list[Reply]:
        before = self._nodes.get(gateway)
        self._nodes[gateway] = node
        if before in (None, node):
            return []
        # The SuperNode restarted under a new id: what was under way to the old one is lost.
        lost = [key for key, one in self._sent.items() if one.node == before]
        return [
            Reply(gateway, error="its SuperNode restarted")
            for one in [self._sent.pop(key) for key in lost]
            if one.operation is not Operation.HELLO and not one.spare
        ]
