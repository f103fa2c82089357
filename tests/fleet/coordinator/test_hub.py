"""Many campaigns over one hub: who hears what, and that they end as if they were alone."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from fleet.campaign import Operation
from fleet.campaign.answers import Hello, StartAnswer
from fleet.clock import VirtualClock
from fleet.coordinator.driver import CampaignDriver
from fleet.coordinator.hub import Channel, Hub
from fleet.coordinator.pace import Pace
from fleet.coordinator.transport import Reply, Transport, read_replies
from fleet.errors import StoreAwayError
from fleet.registry import NewDevice
from fleet.service.operations import Actor, Operations
from fleet.service.schema import DevicesToAdd, DeviceToAdd, GatewayToAdd
from fleet.store import Gateways, Logins, Registry, SqlStore, WeightsVersion
from tests.fleet.coordinator import small_model
from tests.fleet.coordinator.direct_transport import DirectTransport
from tests.fleet.coordinator.staged_fleet import StagedFleet
from tests.patience import PATIENCE_SECONDS, wait_until

A, B = "a" * 16, "b" * 16
EVERYBODY = {"name": "all", "share": 1.0}


class Scripted(Transport):
    """Notes what is sent, and hands out what the test has put into `replies`."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Operation, Mapping[str, Any]]] = []
        self.replies: list[Reply] = []

    def gateways(self) -> frozenset[str]:
        return frozenset({"g1", "g2"})

    def send(self, gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        self.sent.append((gateway, operation, fields))

    def receive(self) -> list[Reply]:
        replies, self.replies = self.replies, []
        return replies

    def hears(self, gateway: str, *devices: str, **fields: Any) -> None:
        entries = [small_model.device_entry(name, "a", last_seen=1.0, **fields) for name in devices]
        hello = {"version": 5, "gateway": gateway, "devices": entries, "rounds": []}
        self.replies += read_replies(gateway, {"hello": hello})


class World:
    """A hub over a scripted transport and an empty registry."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.store = SqlStore(clock=self.clock)
        self.registry, self.gateways = Registry(self.store), Gateways(self.store)
        self.transport = Scripted()
        self.hub = Hub(self.transport, self.store, self.clock)

    def registers(self, *devices: str) -> None:
        self.registry.add(NewDevice(device=name, site="barn") for name in devices)


@pytest.fixture
def world() -> World:
    return World()


def inbox(channel: Channel) -> list[Reply]:
    found: list[Reply] = []
    while not channel.inbox.empty():
        found += channel.inbox.get()
    return found


def devices(replies: list[Reply]) -> list[str]:
    return [one.device for reply in replies if reply.hello for one in reply.hello.devices]


def test_a_round_that_the_store_has_never_begun_is_cancelled_at_its_gateway(world: World) -> None:
    """What a coordinator had begun whose store was then restored to an older point."""
    version = WeightsVersion(0, "00" * 32, b"", b"")
    world.store.create_campaign(A, "{}", {}, version)
    world.store.claim(A, "me")
    world.store.begin_round(A, "me", 1, "train", {})
    world.store.begin_round(A, "me", 2, "train", {"offset": 5000})
    states = {
        (A, 1): "running",
        (A, 2): "running",
        (A, 3): "closed",
        (A, 5002): "running",
        (B, 1): "running",
    }
    rounds = [{"campaign": one, "round": at, "state": now} for (one, at), now in states.items()]
    hello = {"version": 5, "gateway": "g1", "devices": [], "rounds": rounds}
    world.transport.replies += read_replies("g1", {"hello": hello})
    world.hub.step()
    cancelled = [
        (gateway, fields)
        for gateway, operation, fields in world.transport.sent
        if operation is Operation.CANCEL
    ]
    assert cancelled == [
        ("g1", {"campaign": A, "round": 2}),
        ("g1", {"campaign": B, "round": 1}),
    ]


# ---- who hears what ----------------------------------------------------------------------


def test_a_reply_goes_to_its_campaign_only(world: World) -> None:
    channels = {name: world.hub.channel(name) for name in (A, B)}
    state = StartAnswer(state="running")
    world.transport.replies = [
        Reply("g1", (A, 1), started=state),
        Reply("g1", (B, 7), error="busy"),
        Reply("g1", ("c" * 16, 1), started=state),
    ]
    world.hub.step()
    assert [one.round for one in inbox(channels[A])] == [(A, 1)]
    assert [one.round for one in inbox(channels[B])] == [(B, 7)]


def test_what_came_while_the_store_was_away_is_told_when_it_is_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.registers("cow")
    channel = world.hub.channel(A)
    inbox(channel)
    observe = Registry.observe

    def away(*_: object) -> frozenset[str]:
        raise StoreAwayError("the database is away")

    world.transport.replies = [Reply("g1", (A, 1), started=StartAnswer(state="running"))]
    world.transport.hears("g1", "cow")
    world.transport.replies.append(Reply("g2", (A, 1), error="busy"))
    monkeypatch.setattr(Registry, "observe", away)
    with pytest.raises(StoreAwayError):
        world.hub.step()
    assert [(one.gateway, one.round) for one in inbox(channel)] == [("g1", (A, 1))]
    monkeypatch.setattr(Registry, "observe", observe)
    world.hub.step()
    late = inbox(channel)
    assert devices(late) == ["cow"]
    assert [one.error for one in late] == ["", "busy"]


def test_requests_of_all_campaigns_reach_the_transport_in_their_order(world: World) -> None:
    first, second = world.hub.channel(A), world.hub.channel(B)
    first.send("g1", Operation.START, {"campaign": A, "round": 1})
    second.send("g2", Operation.CANCEL, {"campaign": B, "round": 2})
    assert world.transport.sent == []
    world.hub.step()
    assert [(gateway, operation) for gateway, operation, _ in world.transport.sent[:2]] == [
        ("g1", Operation.START),
        ("g2", Operation.CANCEL),
    ]
    assert first.gateways() == {"g1", "g2"}


def test_an_odd_answer_is_everybodys_and_stays_as_the_gateways_problem(world: World) -> None:
    world.gateways.add("g1", "barn")
    channels = [world.hub.channel(name) for name in (A, B)]
    world.transport.replies = [Reply("g1", error="speaks Latin", is_odd=True)]
    world.hub.step()
    assert [[one.is_odd for one in inbox(channel)] for channel in channels] == [[True], [True]]
    assert world.gateways.list()[0].problem == "speaks Latin"
    world.transport.hears("g1")
    world.hub.step()
    assert world.gateways.list()[0].problem == ""


def test_devices_that_nobody_registered_are_nobodys_until_they_are_added(world: World) -> None:
    channel = world.hub.channel(A)
    world.registers("cow")
    world.transport.hears("g1", "cow", "stranger")
    world.hub.step()
    assert devices(inbox(channel)) == ["cow"]
    assert devices(inbox(world.hub.channel(B))) == ["cow"]
    world.registers("stranger")
    # It says nothing new; that its gateway says something is enough.
    world.transport.hears("g1")
    world.hub.step()
    assert devices(inbox(channel)) == ["stranger"]
    assert world.registry.get("stranger").observed is not None
    world.transport.hears("g1")
    world.hub.step()
    assert devices(inbox(channel)) == []


def test_why_a_device_began_anew_and_its_last_fault_are_kept(world: World) -> None:
    world.registers("cow", "hen")
    world.transport.hears("g1", "cow", reset_cause="fault", fault_code=3)
    world.transport.hears("g2", "hen")
    world.hub.step()
    cow, hen = (world.registry.get(name).observed for name in ("cow", "hen"))
    assert cow is not None
    assert (cow.reset_cause, cow.fault_code) == ("fault", 3)
    assert hen is not None
    assert (hen.reset_cause, hen.fault_code) == (None, None), "an older gateway doesn't tell"


def test_a_stranger_that_was_not_heard_again_is_what_was_heard_last(world: World) -> None:
    channel = world.hub.channel(A)
    for battery in (80, 30):
        world.transport.hears("g1", "stranger", battery_percent=battery)
        world.hub.step()
    world.registers("stranger")
    world.transport.hears("g1", "stranger", battery_percent=20)
    world.hub.step()
    told = [one for reply in inbox(channel) if reply.hello for one in reply.hello.devices]
    assert [one.battery_percent for one in told] == [20]


def test_a_campaign_that_joins_late_hears_of_all_devices_as_they_are_now(world: World) -> None:
    world.registers("cow", "hen")
    world.transport.hears("g1", "cow", battery_percent=80)
    world.hub.step()
    world.transport.hears("g2", "hen")
    world.transport.hears("g1", "cow", battery_percent=20)
    world.hub.step()
    replies = inbox(world.hub.channel(A))
    told = {
        (one.gateway, device.device, device.battery_percent)
        for one in replies
        if one.hello
        for device in one.hello.devices
    }
    assert told == {("g1", "cow", 20), ("g2", "hen", 90)}


def test_a_device_that_was_erased_is_not_told_to_those_that_join_after(world: World) -> None:
    world.registers("cow")
    world.transport.hears("g1", "cow")
    world.hub.step()
    world.registry.erase("cow")
    world.transport.hears("g1", "cow")
    world.hub.step()
    assert devices(inbox(world.hub.channel(A))) == []


def test_a_retired_gateway_is_everybodys_loss_at_once(world: World) -> None:
    world.registers("cow", "hen")
    for gateway in ("g1", "g2"):
        world.gateways.add(gateway, "barn")
    channel = world.hub.channel(A)
    world.transport.hears("g2", "hen", battery_percent=50)
    world.transport.hears("g1", "cow", "hen")
    world.hub.step()
    inbox(channel)
    world.gateways.retire("g1")
    world.clock.sleep(1.0)
    world.hub.step()
    (told,) = inbox(channel)
    assert (told.gateway, told.error, told.is_odd) == ("g1", "it was retired", True)
    assert channel.gateways() == {"g2"}
    assert devices(inbox(world.hub.channel(B))) == ["hen"]
    # What another gateway knows holds.
    assert world.registry.get("cow").observed is None
    known = world.registry.get("hen").observed
    assert known is not None
    assert (known.gateway, known.battery_percent) == ("g2", 50)


def test_a_retired_gateway_that_dials_in_is_left_alone_and_shown(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.registers("cow")
    world.gateways.add("g1", "barn")
    world.gateways.retire("g1")
    hub = Hub(world.transport, world.store, world.clock)
    channel = hub.channel(A)
    inbox(channel)
    for _ in range(2):
        world.transport.hears("g1", "cow")
        world.transport.replies.append(Reply("g1", (A, 1), started=StartAnswer(state="running")))
        hub.step()
        world.clock.sleep(60.0)
    assert inbox(channel) == []
    assert "g1" not in [gateway for gateway, *_ in world.transport.sent]
    assert world.registry.get("cow").observed is None
    (shown,) = world.gateways.list()
    assert "still dials in: stop it, or add it again" in shown.problem
    assert caplog.text.count("g1 is retired and dials in") == 1


def test_a_round_at_a_gateway_that_was_retired_while_nobody_drove_goes_on_without_it(
    world: World,
) -> None:
    world.gateways.add("g1", "barn")
    world.gateways.retire("g1")
    hub = Hub(world.transport, world.store, world.clock)
    channels = {name: hub.channel(name) for name in (A, B)}
    for channel in channels.values():
        inbox(channel)
    channels[A].send("g1", Operation.COLLECT, {"campaign": A, "round": 3, "cursor": 0})
    hub.step()
    (told,) = inbox(channels[A])
    assert (told.gateway, told.round, told.is_odd) == ("g1", (A, 3), True)
    assert inbox(channels[B]) == []


def test_a_gateway_that_is_brought_back_is_heard_though_nothing_has_changed_there(
    world: World,
) -> None:
    world.registers("cow")
    world.gateways.add("g1", "barn")
    world.transport.hears("g1", "cow")
    world.hub.step()
    world.gateways.retire("g1")
    world.clock.sleep(1.0)
    world.hub.step()
    world.gateways.add("g1", "barn")
    channel = world.hub.channel(A)
    inbox(channel)
    world.clock.sleep(60.0)
    world.hub.step()
    assert "g1" in [gateway for gateway, *_ in world.transport.sent]
    world.transport.hears("g1")
    world.hub.step()
    assert devices(inbox(channel)) == ["cow"]
    assert world.registry.get("cow").observed is not None


def test_a_campaign_that_has_left_hears_nothing_and_stops_nobody(world: World) -> None:
    channels = {name: world.hub.channel(name) for name in (A, B)}
    world.hub.leave(A)
    world.hub.leave(A)
    world.registers("cow")
    world.transport.hears("g1", "cow")
    world.transport.replies.append(Reply("g1", (A, 1), error="late"))
    world.hub.step()
    assert inbox(channels[A]) == []
    assert devices(inbox(channels[B])) == ["cow"]


def test_a_gateway_of_which_nothing_is_heard_is_asked_now_and_then(world: World) -> None:
    for _ in range(40):
        world.clock.sleep(1.0)
        world.transport.hears("g2")
        world.hub.step()
    asked = [gateway for gateway, operation, _ in world.transport.sent]
    assert asked == ["g1", "g1"]


def test_a_gateway_that_keeps_a_brokers_users_is_told_of_changes_until_it_has_them(
    world: World,
) -> None:
    world.gateways.add("g1", "barn")
    logins = Logins(world.store)
    logins.grant("cow", "barn", "device", "$7$hash")
    logins.grant("goat", "hill", "device", "$7$hash")

    def told() -> list[object]:
        return [fields["access"] for *_, fields in world.transport.sent if "access" in fields]

    world.transport.hears("g1")
    world.hub.step()
    assert told() == []  # it keeps no users
    for known in (0, 0, 1, 1):
        world.transport.replies = [
            Reply(
                "g1",
                hello=Hello(gateway="g1", version=5, devices=[], rounds=[], access_cursor=known),
            )
        ]
        world.hub.step()
        world.clock.sleep(2.0)
        world.hub.step()
    grant = {"entries": {"cow": {"role": "device", "hash": "$7$hash"}}, "cursor": 1}
    assert told() == [grant, grant]  # the first one got lost
    logins.revoke("cow")
    world.clock.sleep(2.0)
    world.hub.step()
    assert told()[2:] == [{"entries": {"cow": None}, "cursor": 3}]


def test_a_device_that_moved_is_taken_away_at_the_old_site_whenever_its_gateway_is_heard(
    world: World,
) -> None:
    operations, admin = Operations(world.store, "barn"), Actor("ann", "admin")
    for gateway, site in (("g1", "north"), ("g2", "south")):
        world.gateways.add(gateway, site)
    cow = DeviceToAdd(device="cow", site="north")
    operations.add_devices(admin, DevicesToAdd(devices=[cow]))
    # The north's gateway has that, and is away then.
    operations.retire_device(admin, "cow")
    operations.erase_device(admin, "cow")
    moved = cow.model_copy(update={"site": "south"})
    operations.add_devices(admin, DevicesToAdd(devices=[moved]))
    told: dict[str, Any] = {}
    for gateway, known in (("g2", 0), ("g1", 1)):
        hello = Hello(gateway=gateway, version=5, devices=[], rounds=[], access_cursor=known)
        world.transport.replies = [Reply(gateway, hello=hello)]
        world.hub.step()
        world.clock.sleep(2.0)
        world.hub.step()
    for gateway, _, fields in world.transport.sent:
        told |= {gateway: fields["access"]["entries"]} if "access" in fields else {}
    assert told["g1"] == {"cow": None}
    assert told["g2"]["cow"]["role"] == "device"


def test_a_gateway_is_told_hashes_and_never_a_password(world: World) -> None:
    operations = Operations(world.store, "barn")
    names = [DeviceToAdd(device=name, site="barn") for name in ("cow", "hen")]
    admin = Actor("ann", "admin")
    passwords = {
        one.device: one.password
        for one in operations.add_devices(admin, DevicesToAdd(devices=names)).devices
    }
    gateway = operations.add_gateway(admin, GatewayToAdd(gateway="g1", site="barn"))
    world.transport.replies = [
        Reply("g1", hello=Hello(gateway="g1", version=5, devices=[], rounds=[], access_cursor=0))
    ]
    world.hub.step()
    world.clock.sleep(2.0)
    world.hub.step()
    (told,) = [fields["access"]["entries"] for *_, fields in world.transport.sent if fields]
    assert told.keys() >= {"cow", "hen"}
    # What Mosquitto compares with: iterations, salt and digest.
    assert all(one["hash"].startswith("$7$") for one in told.values())
    everything = repr(world.transport.sent)
    assert [one for one in (*passwords.values(), gateway.password) if one in everything] == []


# ---- campaigns over a hub ----------------------------------------------------------------

PACE = Pace(stop_check=0.05, retry=0.05, hello=0.2, news=0.05)


class Patient(DirectTransport):
    """Gives other threads time where there is nothing to hear."""

    def receive(self) -> list[Reply]:
        replies = super().receive()
        if not replies:
            time.sleep(0.002)
        return replies


class Running:
    """A hub in a thread of its own, and campaigns in theirs."""

    def __init__(self, fleet: StagedFleet) -> None:
        self.fleet = fleet
        self.registry = Registry(fleet.store)
        self.registry.add(NewDevice(device=one, site="barn") for one in fleet.current())
        self.hub = Hub(
            Patient(fleet.gateways, clock=fleet.clock),
            fleet.store,
            fleet.clock,
        )
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ended.is_set():
            self.hub.step()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def drive(self, *names: str) -> list[str]:
        """All campaigns at once; their states."""
        states = dict.fromkeys(names, "")

        def run(name: str) -> None:
            channel = self.hub.channel(name)
            states[name] = CampaignDriver(
                self.fleet.store, name, channel, PACE, registry=self.registry
            ).run()
            self.hub.leave(name)

        threads = [threading.Thread(target=run, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        return list(states.values())


@pytest.fixture
def running(fleet: StagedFleet) -> Iterator[Running]:
    one = Running(fleet)
    yield one
    one.close()


def of(gateway: str) -> dict[str, Any]:
    return {"target": f'gateway == "{gateway}"', "min_devices": 8, "base": ""}


def trained(fleet: StagedFleet, name: str) -> bytes:
    return fleet.store.latest_weights(name).master


def test_two_campaigns_at_once_end_as_each_does_alone(fleet: StagedFleet, running: Running) -> None:
    names = [fleet.campaign(EVERYBODY, **of(gateway)) for gateway in ("g1", "g2")]
    assert running.drive(*names) == ["finished", "finished"]
    alone = [fleet.campaign(EVERYBODY, **of(gateway)) for gateway in ("g1", "g2")]
    for name, single in zip(names, alone, strict=True):
        assert running.drive(single) == ["finished"]
        assert trained(fleet, name) == trained(fleet, single)
        assert fleet.asked(name) == fleet.asked(single)


def test_no_device_is_in_rounds_of_two_campaigns_at_once(
    fleet: StagedFleet, running: Running
) -> None:
    names = [
        fleet.campaign(EVERYBODY, target=f'device.endsWith("{end}")', base="")
        for end in ("-1", "-2", "-3")
    ]
    greedy = [fleet.campaign(EVERYBODY, base="", min_devices=1) for _ in range(2)]
    campaigns = (*names, *greedy)
    for name, state in zip(campaigns, running.drive(*campaigns), strict=True):
        if state != "finished":
            assert (state, fleet.store.rounds(name)) == ("failed", ())
            assert "leased by another campaign" in fleet.reason(name)
    times: dict[str, list[tuple[float, float]]] = {}
    for name in campaigns:
        for number, asked in fleet.asked(name).items():
            begin, end = fleet.store.round_times(name, number)
            assert end is not None
            for device in asked:
                times.setdefault(device, []).append((begin, end))
    assert len(times) >= 6
    for spans in times.values():
        spans.sort()
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))


def test_a_campaign_that_joins_while_another_waits_is_not_held_up_by_it(
    fleet: StagedFleet, running: Running
) -> None:
    waiting = fleet.campaign(EVERYBODY, approval=True, **of("g1"))
    thread = threading.Thread(target=running.drive, args=(waiting,))
    thread.start()
    wait_until(lambda: fleet.store.campaign(waiting).state == "waiting")
    quick = fleet.campaign(EVERYBODY, **of("g2"))
    assert running.drive(quick) == ["finished"]
    assert fleet.store.rounds(waiting) == ()
    fleet.store.ask(waiting, "stop")
    thread.join(PATIENCE_SECONDS)
    assert fleet.store.campaign(waiting).state == "cancelled"


def test_a_campaign_goes_on_without_a_gateway_that_is_retired_in_the_middle_of_a_round(
    fleet: StagedFleet, running: Running
) -> None:
    gateways = Gateways(fleet.store)
    for gateway in fleet.gateways:
        gateways.add(gateway, "barn")
    name = fleet.campaign(EVERYBODY, base="", min_devices=4, deadline_seconds=86_400)
    fleet.gateways["g1"].round_seconds = float("inf")
    states: list[str] = []
    thread = threading.Thread(target=lambda: states.extend(running.drive(name)))
    thread.start()
    wait_until(lambda: fleet.store.rounds(name), "the round to begin")
    gateways.retire("g1")
    thread.join(PATIENCE_SECONDS)
    assert states == ["finished"]
    assert fleet.store.quarantined(name) == {"g1": "it was retired"}
    assert fleet.store.round(name, 0).result["lost"] == {"g1": "it was retired"}
    # Whoever begins after that doesn't know of it.
    after = fleet.campaign(EVERYBODY, base="", min_devices=4)
    assert running.drive(after) == ["finished"]
    assert {one[:2] for names in fleet.asked(after).values() for one in names} == {"g2"}
    assert fleet.store.quarantined(after) == {}
