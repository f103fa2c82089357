"""Many campaigns over one transport: each has a channel of its own, gateways are asked once.

The transport, what is heard of devices, and the registry belong to the hub's thread; campaigns run
in threads of their own and meet it at their channels.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from fleet.campaign import Operation
from fleet.campaign.answers import DeviceEntry, Hello
from fleet.clock import Clock, SystemClock
from fleet.coordinator.pace import HELLO_SECONDS
from fleet.coordinator.transport import Reply, Transport
from fleet.registry import Observed
from fleet.store import Gateways, Logins, Registry, SqlStore

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.4
STORE_LOOK_SECONDS = 1.0
RETIRED = "it was retired"


class Channel(Transport):
    """A campaign's side of the hub."""

    def __init__(self, hub: Hub, campaign: str) -> None:
        """Made by the hub."""
        self._hub = hub
        self.campaign = campaign
        # What came together: who hears that a round has begun hears with it that it has ended.
        self.inbox: queue.Queue[list[Reply]] = queue.Queue()

    def gateways(self) -> frozenset[str]:
        """See `Transport`."""
        return self._hub.reached

    def send(self, gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        """See `Transport`."""
        self._hub.outbox.put((gateway, operation, fields))

    def receive(self) -> list[Reply]:
        """See `Transport`."""
        try:
            replies = list(self.inbox.get(timeout=LOOK_SECONDS))
        except queue.Empty:
            return []
        while not self.inbox.empty():
            replies += self.inbox.get()
        return replies


class Hub:
    """Hands requests of campaigns to the transport, and replies to the campaigns they are for.

    Devices that aren't in the registry are nobody's.
    """

    def __init__(
        self,
        transport: Transport,
        store: SqlStore,
        clock: Clock | None = None,
        hello_seconds: float = HELLO_SECONDS,
    ) -> None:
        """Nothing is sent before the first `step`."""
        self._transport = transport
        self._store = store
        self._registry = Registry(store)
        self._gateways = Gateways(store)
        self._logins = Logins(store)
        self._retired = self._gateways.retired()
        self._left_alone: set[str] = set()
        self._clock = clock or SystemClock()
        self._hello_seconds = hello_seconds
        self._lock = threading.Lock()
        self._channels: dict[str, Channel] = {}
        self._known: dict[str, dict[str, DeviceEntry]] = {}
        self._strangers: dict[str, dict[str, DeviceEntry]] = {}
        self._heard: dict[str, float] = {}
        self._access: dict[str, int] = {}
        self._told_access: dict[str, int] = {}
        self._looked_at_store = float("-inf")
        self._pending: deque[Reply] = deque()
        self.outbox: queue.Queue[tuple[str, Operation, Mapping[str, Any]]] = queue.Queue()
        self.reached: frozenset[str] = frozenset()

    def channel(self, campaign: str) -> Channel:
        """A campaign joins; it hears at once of all devices that are known."""
        one = Channel(self, campaign)
        with self._lock:
            one.inbox.put(
                [
                    Reply(gateway, hello=_hello(gateway, devices))
                    for gateway, devices in self._known.items()
                ]
            )
            self._channels[campaign] = one
        return one

    def leave(self, campaign: str) -> None:
        """A campaign has ended, or somebody else drives it."""
        with self._lock:
            self._channels.pop(campaign, None)

    def step(self) -> None:
        """Send what there is to send, and hand out what came; waits a moment where nothing did."""
        now = self._clock.monotonic()
        is_time = now - self._looked_at_store >= STORE_LOOK_SECONDS
        if is_time:
            self._looked_at_store = now
            self._let_go_of_retired()
        self.reached = self._transport.gateways() - self._retired
        while not self.outbox.empty():
            self._send(*self.outbox.get())
        self._ask_for_news()
        if is_time:
            self._tell_access()
        self._pending.extend(self._transport.receive())
        noted: list[Reply] = []
        try:
            # Where the store is away for a moment, what isn't noted is left for the next step.
            while self._pending:
                if self._pending[0].gateway in self._retired:
                    self._leave_alone(self._pending[0])
                else:
                    noted.append(self._note(self._pending[0]))
                self._pending.popleft()
        finally:
            self._deliver(noted)

    def _note(self, reply: Reply) -> Reply:
        """Keep what a reply says of devices and gateways; returns what campaigns get of it."""
        self._heard[reply.gateway] = self._clock.monotonic()
        if reply.is_odd:
            self._gateways.note_problem(reply.gateway, reply.error)
        if reply.hello is None:
            return reply
        return Reply(reply.gateway, hello=self._observe(reply.gateway, reply.hello))

    def _ask_for_news(self) -> None:
        now = self._clock.monotonic()
        for gateway in self.reached:
            if now - self._heard.get(gateway, 0.0) >= self._hello_seconds:
                self._heard[gateway] = now
                self._transport.send(gateway, Operation.HELLO, {})

    def _send(self, gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        if gateway not in self._retired:
            self._transport.send(gateway, operation, fields)
        elif "campaign" in fields:
            # A round of before: its campaign is to go on without it.
            name = (str(fields["campaign"]), int(fields["round"]))
            self._deliver([Reply(gateway, name, error=RETIRED, is_odd=True)])

    def _let_go_of_retired(self) -> None:
        retired = self._gateways.retired()
        for gateway in retired - self._retired:
            self._let_go(gateway)
        self._left_alone &= retired
        self._retired = retired

    def _let_go(self, gateway: str) -> None:
        """A gateway was retired: campaigns forget it, and what others know of its devices holds."""
        gone = self._known.get(gateway, {})
        others = [
            (name, at, devices[name])
            for at, devices in self._known.items()
            if at != gateway
            for name in gone.keys() & devices.keys()
        ]
        others.sort(key=lambda one: one[2].last_seen or 0.0)
        # It may have been heard since it was retired.
        self._gateways.forget_devices(gateway)
        self._registry.observe({name: _observed(at, entry) for name, at, entry in others})
        with self._lock:
            self._known.pop(gateway, None)
        # Should it come back, it doesn't tell of what hasn't changed.
        self._strangers[gateway] = {**self._strangers.get(gateway, {}), **gone}
        self._access.pop(gateway, None)
        self._told_access.pop(gateway, None)
        self._deliver([Reply(gateway, error=RETIRED, is_odd=True)])
        logger.info("gateway %s is retired, and left alone", gateway, extra={"gateway": gateway})

    def _leave_alone(self, reply: Reply) -> None:
        """What a retired gateway says is nobody's."""
        if reply.hello is None:
            return
        strangers = self._strangers.setdefault(reply.gateway, {})
        strangers.update((one.device, one) for one in reply.hello.devices)
        self._gateways.seen_though_retired(reply.gateway)
        if reply.gateway not in self._left_alone:
            self._left_alone.add(reply.gateway)
            about = {"gateway": reply.gateway}
            logger.warning("gateway %s is retired and dials in", reply.gateway, extra=about)

    def _tell_access(self) -> None:
        """Tell gateways that keep a broker's users what has changed."""
        for gateway, known in self._access.items():
            site = self._gateways.site_of(gateway)
            if site is None or gateway not in self.reached:
                continue
            page = self._logins.changes(site, known)
            if not page or self._told_access.get(gateway) == page[-1].revision:
                continue
            self._told_access[gateway] = page[-1].revision
            entries = {
                one.name: None if one.hash is None else {"role": one.role, "hash": one.hash}
                for one in page
            }
            access = {"entries": entries, "cursor": page[-1].revision}
            self._transport.send(gateway, Operation.HELLO, {"access": access})

    def _deliver(self, replies: Sequence[Reply]) -> None:
        with self._lock:
            for campaign, channel in self._channels.items():
                its = [one for one in replies if one.round is None or one.round[0] == campaign]
                if its:
                    channel.inbox.put(its)

    def _observe(self, gateway: str, hello: Hello) -> Hello:
        """Note in the registry what was heard; returns what is of registered devices."""
        self._gateways.seen(gateway)
        if hello.access_cursor is not None:
            if self._told_access.get(gateway, 0) > hello.access_cursor:
                self._told_access.pop(gateway)  # it didn't arrive, or was refused
            self._access[gateway] = hello.access_cursor
        self._end_unknown_rounds(gateway, hello)
        # A stranger of before may have been added meanwhile.
        heard = {**self._strangers.get(gateway, {}), **{one.device: one for one in hello.devices}}
        if not heard:
            return hello
        unknown = self._registry.observe(
            {name: _observed(gateway, one) for name, one in heard.items()}
        )
        self._strangers[gateway] = {name: heard[name] for name in unknown}
        known = {name: one for name, one in heard.items() if name not in unknown}
        with self._lock:
            of_gateway = self._known.setdefault(gateway, {})
            of_gateway.update(known)
            for name in unknown:
                of_gateway.pop(name, None)  # erased since
        return hello.model_copy(update={"devices": list(known.values())})

    def _end_unknown_rounds(self, gateway: str, hello: Hello) -> None:
        """A round is stored before its first message: one that the store doesn't know was begun
        before it was restored, and keeps devices busy for nobody."""
        for one in hello.rounds:
            if one.state == "running" and not self._store.knows_round(one.campaign, one.round):
                about = {"campaign": one.campaign, "round": one.round, "gateway": gateway}
                logger.warning("a round that the store doesn't know is cancelled", extra=about)
                fields = {"campaign": one.campaign, "round": one.round}
                self._transport.send(gateway, Operation.CANCEL, fields)


def _hello(gateway: str, devices: Mapping[str, DeviceEntry]) -> Hello:
    return Hello(gateway=gateway, devices=list(devices.values()), rounds=[])


def _observed(gateway: str, one: DeviceEntry) -> Observed:
    values = {name: getattr(one, name) for name in Observed.model_fields if hasattr(one, name)}
    last_seen = one.last_seen or 0.0
    return Observed.model_construct(
        **{**values, "gateway": gateway, "last_seen": last_seen, "online": one.online}
    )
