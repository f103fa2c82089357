"""The one module that speaks Flower's message interface for the coordinator.

Gateways are known by the name in their SuperNode's reply, not by node id: an anonymous SuperNode
that restarts has a new one. A name stays with the node that had it first for as long as Flower
takes that node for online; another one that claims it meanwhile is left alone, and asked again
later. A SuperNode handles one message at a time, each in a fresh process, so that a message (a
*sync*) carries all that there is for a gateway, of all campaigns, and waits there until one of
their rounds ends, or as many deltas have arrived as an asynchronous campaign wants; it doesn't wait
where a part of a round is to be taken. Messages that nobody will read any more expire.

A SuperNode without a message sleeps for three seconds. A start can't interrupt a wait. So where a
round has ended at a gateway whose campaign has no newer one there yet, the waits for other
campaigns' rounds are short (`expecting_wait`), and where there are no others, nothing is sent and
the SuperNode looks every three seconds, which costs next to nothing. Once that round has ended at
all its gateways the next start is a moment away: what there is to ask of other campaigns, and their
starts, go with it (`hold`). Rounds of several campaigns that end within a moment of each other
(`linger`) come in one reply, and then go on together.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cbor2
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fleet.campaign import Operation
from fleet.campaign.answers import CollectAnswer
from fleet.clock import Clock, SystemClock
from fleet.coordinator.gateway_call import RECORD
from fleet.coordinator.pace import FlowerPace
from fleet.coordinator.transport import Reply, RoundName, Transport, read_replies

logger = logging.getLogger(__name__)

SYNC = "query.sync"
MOST_UNDER_WAY = 2
"""Messages of a gateway: one that waits there, and one that waits for that."""


@dataclass(frozen=True)
class _Sent:
    gateway: str
    node: int
    expires: float
    # Rounds that somebody waits to hear of.
    asked: frozenset[RoundName] = frozenset()
    # Rounds whose end it waits for.
    rounds: frozenset[RoundName] = frozenset()


@dataclass
class _Outbox:
    """What a gateway is to be asked with the next message."""

    starts: dict[RoundName, Mapping[str, Any]] = field(default_factory=dict)
    cancels: dict[RoundName, Mapping[str, Any]] = field(default_factory=dict)
    collects: dict[RoundName, Mapping[str, Any]] = field(default_factory=dict)
    traces: dict[RoundName, str] = field(default_factory=dict)
    hello: bool = False
    extras: dict[str, Any] = field(default_factory=dict)

    @property
    def takes(self) -> bool:
        """Whether a part of a round is wanted: at once."""
        return any("part" in one for one in self.collects.values())

    @property
    def is_urgent(self) -> bool:
        return bool(self.starts or self.cancels or self.extras or self.takes)

    @property
    def is_empty(self) -> bool:
        return not (self.is_urgent or self.collects or self.hello)

    @property
    def rounds(self) -> frozenset[RoundName]:
        return frozenset({*self.starts, *self.cancels, *self.collects})


def _is_end(answer: CollectAnswer | None) -> bool:
    return answer is not None and answer.state == "closed" and not answer.more


class GridTransport(Transport):
    """`Transport` over a Flower `Grid`."""

    def __init__(
        self,
        grid: Grid,
        pace: FlowerPace | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Nothing is sent before the first `receive`."""
        self._grid = grid
        self._pace = pace or FlowerPace()
        self._clock = clock or SystemClock()
        self._nodes: dict[str, int] = {}
        self._online: set[int] = set()
        self._greeted: set[int] = set()
        self._outboxes: dict[str, _Outbox] = {}
        self._sent: dict[str, _Sent] = {}
        self._unsent: list[Reply] = []
        self._looked = float("-inf")
        # Up to where each gateway's devices are known.
        self._cursors: dict[str, int] = {}
        # By campaign and gateway: when a round ended there that no newer one has followed.
        self._ended: dict[str, dict[str, float]] = {}

    def gateways(self) -> frozenset[str]:
        """See `Transport`."""
        return frozenset(self._nodes)

    def nodes(self) -> dict[str, int]:
        """Node id of every gateway that has been reached."""
        return dict(self._nodes)

    def send(self, gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        """See `Transport`. It goes with the next `receive`."""
        outbox = self._outboxes.setdefault(gateway, _Outbox())
        if operation is Operation.HELLO:
            outbox.hello = True
            outbox.extras.update(fields)
            return
        name = (str(fields["campaign"]), int(fields["round"]))
        box = {
            Operation.START: outbox.starts,
            Operation.CANCEL: outbox.cancels,
            Operation.COLLECT: outbox.collects,
        }[operation]
        box[name] = {key: value for key, value in fields.items() if key != "traceparent"}
        if "traceparent" in fields:
            outbox.traces[name] = str(fields["traceparent"])
        if operation is Operation.START:
            self._ended.get(name[0], {}).pop(gateway, None)

    # Sending

    def _flush(self) -> None:
        for gateway in list(self._outboxes):
            outbox = self._outboxes[gateway]
            node = self._nodes.get(gateway)
            if node is None:
                del self._outboxes[gateway]
                self._unsent += [
                    Reply(gateway, name, error=f"no SuperNode of {gateway} is online")
                    for name in sorted(outbox.rounds)
                ]
                continue
            under_way = sum(one.gateway == gateway for one in self._sent.values())
            if outbox.hello and under_way and not outbox.extras:
                outbox.hello = False  # every reply has one
            if outbox.is_empty:
                del self._outboxes[gateway]
            elif not (outbox.cancels or outbox.extras) and self._start_is_near(gateway):
                continue
            elif not under_way or (outbox.is_urgent and under_way < MOST_UNDER_WAY):
                del self._outboxes[gateway]
                self._sync(gateway, node, outbox)

    def _start_is_near(self, gateway: str) -> bool:
        """Whether a campaign's round that ran here has just ended at the last of its gateways."""
        now = self._clock.monotonic()
        return any(
            now < max(self._ended[campaign].values()) + self._pace.hold
            for campaign in self._expected(gateway) - self._asked_campaigns()
        )

    def _expected(self, gateway: str) -> set[str]:
        """Campaigns whose next round may begin here at any moment."""
        since = self._clock.monotonic() - self._pace.expecting
        for campaign, ended in list(self._ended.items()):
            self._ended[campaign] = {at: when for at, when in ended.items() if when > since}
            if not self._ended[campaign]:
                del self._ended[campaign]
        return {campaign for campaign, ended in self._ended.items() if gateway in ended}

    def _asked_campaigns(self) -> set[str]:
        """Campaigns that a gateway is asked about, or is going to be."""
        asked = [one.asked for one in self._sent.values()]
        waiting = [one.rounds for one in self._outboxes.values()]
        return {campaign for names in (*asked, *waiting) for campaign, _ in names}

    def _sync(self, gateway: str, node: int, outbox: _Outbox) -> None:
        watched = frozenset({*outbox.starts, *outbox.collects})
        # Another campaign's round may end in a message before this one.
        mine = {campaign for campaign, _ in outbox.rounds}
        is_behind = any(
            one.gateway == gateway and {campaign for campaign, _ in one.rounds} - mine
            for one in self._sent.values()
        )
        is_short = is_behind or self._expected(gateway)
        wait = self._pace.expecting_wait if is_short else self._pace.sync_wait
        request = {
            "starts": [dict(one) for one in outbox.starts.values()],
            "cancels": [dict(one) for one in outbox.cancels.values()],
            "rounds": [dict(one) for one in outbox.collects.values()],
            "linger_seconds": self._pace.linger if len(watched) > 1 else 0.0,
            # Another message for them would take another process.
            "all_pages": True,
            **outbox.extras,
        }
        if outbox.traces:
            request["traces"] = [
                {"campaign": campaign, "round": number, "traceparent": text}
                for (campaign, number), text in outbox.traces.items()
            ]
        wait = wait if watched and not outbox.takes else 0.0
        self._push(gateway, node, request, wait, outbox.rounds, watched)

    def _push(
        self,
        gateway: str,
        node: int,
        request: Mapping[str, Any],
        wait: float = 0.0,
        asked: frozenset[RoundName] = frozenset(),
        rounds: frozenset[RoundName] = frozenset(),
    ) -> None:
        payload = cbor2.dumps(
            {
                **request,
                "wait_seconds": wait,
                "hello_cursor": self._cursors.get(gateway, 0),
            }
        )
        # It waits for its forerunner first.
        lifetime = 2 * wait + self._pace.answer
        message = Message(
            RecordDict({RECORD: ConfigRecord({"payload": payload})}),
            dst_node_id=node,
            message_type=SYNC,
            ttl=lifetime,
        )
        (identifier,) = self._grid.push_messages([message])
        if not identifier:
            error = f"SuperNode {node} is not online"
            self._unsent += [Reply(gateway, name, error=error) for name in sorted(asked)]
            return
        expires = self._clock.monotonic() + lifetime
        self._sent[identifier] = _Sent(gateway, node, expires, asked, rounds)

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
            self._push("", node, {})

    # Receiving

    def receive(self) -> list[Reply]:
        """See `Transport`."""
        self._look_for_nodes()
        self._flush()
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
                replies.extend(self._lost(sent, "no answer to a message in time"))
        if not replies:
            self._clock.sleep(self._pace.pull)
        return replies

    def _lost(self, sent: _Sent, error: str) -> list[Reply]:
        if not sent.gateway:
            # A greeting: greet again at the next look.
            self._greeted.discard(sent.node)
            logger.warning("SuperNode %d: %s", sent.node, error)
        return [Reply(sent.gateway, name, error=error) for name in sorted(sent.asked)]

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
                extra={"gateway": gateway},
            )
            return []
        read = read_replies(gateway, data)
        if read and read[0].is_odd:
            return self._odd(sent, gateway, read[0].error)
        # What it says of rounds that it wasn't asked about isn't heard.
        read = [one for one in read if one.round is None or one.round in sent.asked]
        replies = [
            Reply(gateway, name, error="its answer says nothing about the round")
            for name in sorted(sent.asked - {one.round for one in read})
        ]
        for reply in read:
            if reply.hello is not None:
                replies += self._meet(gateway, sent.node)
                self._cursors[gateway] = reply.hello.cursor
                if reply.hello.more:
                    self._push(gateway, sent.node, {})
            elif reply.round is not None and _is_end(reply.collected):
                ended = self._ended.setdefault(reply.round[0], {})
                ended[gateway] = self._clock.monotonic()
        # Whoever hears of a round's end then knows the devices as they are now.
        return replies + sorted(read, key=lambda one: one.hello is None)

    def _odd(self, sent: _Sent, gateway: str, error: str) -> list[Reply]:
        """An answer that isn't one; a node that doesn't even say its name isn't asked again."""
        if not gateway:
            logger.error("SuperNode %d is left alone: %s", sent.node, error)
            return []
        return [Reply(gateway, error=error, is_odd=True)]

    def _meet(self, gateway: str, node: int) -> list[Reply]:
        self._nodes[gateway] = node
        # Where the SuperNode restarted under a new id, what was under way to the old one is lost.
        lost = [
            key for key, one in self._sent.items() if one.gateway == gateway and one.node != node
        ]
        return [
            Reply(gateway, name, error="its SuperNode restarted")
            for one in [self._sent.pop(key) for key in lost]
            for name in sorted(one.asked)
        ]
