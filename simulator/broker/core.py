"""Sessions, routing and timers: what the broker does whatever way its clients are connected."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from simulator.broker.message import Message, Will
from simulator.broker.session import NEVER_EXPIRES, Endpoint, Session, Subscription
from simulator.broker.topics import RetainedTree, SubscriptionTree
from simulator.clock import Milliseconds

# Reason codes (MQTT 5, 2.4) of an acknowledgement.
SUCCESS = 0x00
NO_MATCHING_SUBSCRIBERS = 0x10
NOT_AUTHORIZED = 0x87

SECOND = 1000.0  # in milliseconds of the clock
_FEW_ENDS = 1000


class Access(Protocol):
    """Who may do what, asked each time."""

    def may_connect(self, client_id: str, user: str | None, password: bytes | None) -> bool:
        """Whether a client is let in."""
        ...

    def may_publish(self, client_id: str, topic: str) -> bool:
        """Whether a publication, or a will, is taken."""
        ...

    def may_receive(self, client_id: str, topic: str) -> bool:
        """Whether a message goes to a client; any subscription is granted, as by Mosquitto."""
        ...


@dataclass(frozen=True)
class BrokerSettings:
    """As Mosquitto's options of these names, and with its defaults."""

    max_inflight_messages: int = 20
    """The receive maximum that clients are told, and that of clients which tell none."""
    max_queued_messages: int = 1000
    """So many messages of QoS 1 wait for a client, besides those under way."""
    max_packet_size: int = 268_435_455
    """Bytes without those of the length; who sends more is disconnected."""
    max_keepalive: int = 65535
    """Seconds, for clients that ask for none or more."""
    strict_receive_maximum: bool = False
    """Keep to a client's receive maximum. Mosquitto 2.0.11 doesn't (docs/design/simulator.md)."""


class Core:
    """The broker's state."""

    def __init__(
        self, clock: Milliseconds, settings: BrokerSettings, access: Access | None
    ) -> None:
        """Empty."""
        self.clock = clock
        self.settings = settings
        self.access = access
        self._number = 0
        self._forget()

    def _forget(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._subscriptions: SubscriptionTree[Session, Subscription] = SubscriptionTree()
        self._retained = RetainedTree()
        self._retained_ends: list[tuple[float, int, str]] = []
        self._most_retained_ends = _FEW_ENDS
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._endpoints: dict[Endpoint, None] = {}

    # ---- connections -----------------------------------------------------------------

    def opened(self, endpoint: Endpoint) -> None:
        """A connection was made; nobody has said who it is."""
        self._endpoints[endpoint] = None

    def closed(self, endpoint: Endpoint) -> None:
        """A connection has ended, whoever ended it."""
        self._endpoints.pop(endpoint, None)

    def forget_everything(self) -> None:
        """Begin again with nothing, and without any connection."""
        endpoints = list(self._endpoints)
        self._forget()
        for endpoint in endpoints:
            endpoint.vanish()

    def next_number(self) -> int:
        """Numbers that never come again, in order."""
        self._number += 1
        return self._number

    def begin(
        self,
        endpoint: Endpoint,
        client_id: str,
        *,
        clean_start: bool = True,
        expiry_seconds: int = 0,
        receive_maximum: int = 65535,
        will: Will | None = None,
    ) -> tuple[Session, bool]:
        """A client is let in: its session, and whether that is one from before."""
        old = self._sessions.get(client_id)
        resumes = old is not None and not clean_start and old.expiry_seconds > 0
        if old is not None:
            self._take_over(old, clean_start)
        if old is not None and resumes:
            session = old
        else:
            if old is not None:
                self._end(old)
            session = Session(
                client_id,
                self.settings.max_queued_messages,
                self.settings.strict_receive_maximum,
            )
            self._sessions[client_id] = session
        session.will = will
        session.expiry_seconds = expiry_seconds
        session.begin(endpoint, receive_maximum)
        return session, resumes

    def _take_over(self, old: Session, clean_start: bool) -> None:
        will, endpoint = old.will, old.endpoint
        old.will = old.will_due = old.ends = old.endpoint = None
        if endpoint is not None:
            endpoint.hang_up()
        # As Mosquitto: a will with a delay is never published when its client comes back, and one
        # without is where the session doesn't go on.
        if will and not will.delay_seconds and (clean_start or not old.expiry_seconds):
            self._publish_will(old.client_id, will)

    def lost(self, session: Session, *, with_will: bool) -> None:
        """A client's connection has ended."""
        session.endpoint = None
        will = session.will
        if not with_will:
            session.will = None
        elif will is not None and will.delay_seconds:
            session.will_due = self._later(session, will.delay_seconds)
        elif will is not None:
            session.will = None
            self._publish_will(session.client_id, will)
        # As Mosquitto: a session that ends with its connection stays until its will is published.
        if session.expiry_seconds == 0 and session.will is None:
            self._end(session)
        elif 0 < session.expiry_seconds < NEVER_EXPIRES:
            session.ends = self._later(session, session.expiry_seconds)

    def _later(self, session: Session, seconds: float) -> float:
        due = self.clock() + seconds * SECOND
        self.call_at(due, lambda: self._session_due(session))
        return due

    def _session_due(self, session: Session) -> None:
        """Its will or its end may be due; a timer of an earlier connection finds neither."""
        now = self.clock()
        ends = session.ends is not None and session.ends <= now
        due = session.will_due is not None and (ends or session.will_due <= now)
        if due and session.will is not None:
            will, session.will, session.will_due = session.will, None, None
            self._publish_will(session.client_id, will)
        if ends or (due and session.expiry_seconds == 0):
            self._end(session)

    def _end(self, session: Session) -> None:
        session.will = session.will_due = session.ends = None
        for pattern in session.subscriptions:
            self._subscriptions.remove(pattern, session)
        session.subscriptions = {}
        if self._sessions.get(session.client_id) is session:
            del self._sessions[session.client_id]

    # ---- messages --------------------------------------------------------------------

    def publish(self, message: Message) -> int:
        """Send a message to whom it concerns; the reason code that acknowledges it."""
        topic, access = message.topic, self.access
        if access is not None and not access.may_publish(message.publisher, topic):
            return NOT_AUTHORIZED
        now = self.clock()
        found = self._subscriptions.match(topic)
        for session, subscription in found:
            client_id = session.client_id
            if subscription.no_local and client_id == message.publisher:
                continue
            if access is not None and not access.may_receive(client_id, topic):
                continue
            qos = min(message.qos, subscription.qos)
            retain = message.retain and subscription.retain_as_published
            session.deliver(message, qos, retain, now)
        if message.retain:
            self._retain(message, now)
        return SUCCESS if found else NO_MATCHING_SUBSCRIBERS

    def _retain(self, message: Message, now: float) -> None:
        if message.payload:
            self._retained.put(message)
            if message.expires is not None:
                end = (message.expires, self.next_number(), message.topic)
                heapq.heappush(self._retained_ends, end)
                if len(self._retained_ends) > self._most_retained_ends:
                    self._forget_old_ends()
        else:
            self._retained.remove(message.topic)
        # Nobody waits for this, so it has no timer.
        while self._retained_ends and self._retained_ends[0][0] <= now:
            topic = heapq.heappop(self._retained_ends)[2]
            kept = self._retained.get(topic)
            if kept is not None and kept.expires is not None and kept.expires <= now:
                self._retained.remove(topic)

    def _forget_old_ends(self) -> None:
        """Those of messages that others have taken the place of, or that were cleared."""
        kept = []
        for end in self._retained_ends:
            message = self._retained.get(end[2])
            if message is not None and message.expires == end[0]:
                kept.append(end)
        heapq.heapify(kept)
        self._retained_ends = kept
        self._most_retained_ends = _FEW_ENDS + 2 * len(kept)

    def _publish_will(self, client_id: str, will: Will) -> None:
        expires = None
        if will.expiry_seconds is not None:
            expires = self.clock() + will.expiry_seconds * SECOND
        self.publish(
            Message(
                will.topic, will.payload, will.qos, will.retain, client_id, expires, will.properties
            )
        )

    # ---- subscriptions ---------------------------------------------------------------

    def subscribe(self, session: Session, pattern: str, wanted: Subscription) -> bool:
        """Subscribe; whether there was no such subscription before."""
        there = session.subscriptions.get(pattern)
        if there is not None:
            there.qos = wanted.qos  # as Mosquitto: the other options stay
            return False
        session.subscriptions[pattern] = wanted
        self._subscriptions.add(pattern, session, wanted)
        return True

    def unsubscribe(self, session: Session, pattern: str) -> bool:
        """End a subscription; whether there was one."""
        if session.subscriptions.pop(pattern, None) is None:
            return False
        self._subscriptions.remove(pattern, session)
        return True

    def deliver_retained(self, session: Session, pattern: str, qos: int) -> None:
        """Send what is retained under a filter."""
        now, access = self.clock(), self.access
        for message in self._retained.match(pattern):
            if message.expires is not None and message.expires <= now:
                continue
            if access is not None and not access.may_receive(session.client_id, message.topic):
                continue
            session.deliver(message, min(message.qos, qos), True, now)

    # ---- time ------------------------------------------------------------------------

    def call_at(self, due: float, function: Callable[[], None]) -> None:
        """Call it from ``tick`` when the clock is there; those of one instant in this order."""
        heapq.heappush(self._timers, (due, self.next_number(), function))

    def next_due(self) -> float:
        """When ``tick`` has something to do; infinity where there is nothing to wait for."""
        return self._timers[0][0] if self._timers else math.inf

    def tick(self) -> None:
        """Do what is due."""
        while self._timers and self._timers[0][0] <= self.clock():
            heapq.heappop(self._timers)[2]()
