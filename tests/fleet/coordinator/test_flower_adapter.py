"""The transport over a Flower grid whose SuperNodes are scripted, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import cbor2
import pytest
from flwr.app import ConfigRecord, Error, Message, Metadata, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fleet.campaign import Operation
from fleet.clock import VirtualClock
from fleet.coordinator.flower_adapter import GridTransport
from fleet.coordinator.gateway_call import RECORD
from fleet.coordinator.pace import FlowerPace
from fleet.coordinator.transport import Reply
from tests.fleet.coordinator import small_model

A, B = "a" * 16, "b" * 16
Answer = Callable[[Mapping[str, Any]], dict[str, Any]]


class Grid:
    """SuperNodes by id, with the gateways that they say they are.

    What asks for news only is answered at once; all else waits until the test answers it.
    """

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.online: dict[int, str] = {}
        self.pushed: list[tuple[int, dict[str, Any]]] = []
        self.waiting: dict[str, tuple[int, Message, dict[str, Any]]] = {}
        self.replies: dict[str, Message] = {}
        self.devices: dict[str, list[dict[str, Any]]] = {}
        self.looks = 0

    # What `GridTransport` asks of it

    def get_node_ids(self) -> Iterable[int]:
        self.looks += 1
        return list(self.online)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        identifiers = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node not in self.online:
                identifiers.append("")
                continue
            identifier = f"m{len(self.pushed)}"
            payload = message.content.config_records[RECORD]["payload"]
            assert isinstance(payload, bytes)
            request = cbor2.loads(payload)
            self.pushed.append((node, request))
            self.waiting[identifier] = (node, message, request)
            if not any(request.get(part) for part in ("rounds", "starts", "cancels")):
                self.finish(identifier)
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.replies.pop(one) for one in message_ids if one in self.replies]

    # What SuperNodes do

    def hello(self, gateway: str, request: Mapping[str, Any]) -> dict[str, Any]:
        cursor = int(request["hello_cursor"])
        devices = self.devices.get(gateway, [])[cursor : cursor + 2]
        end = cursor + len(devices)
        more = end < len(self.devices.get(gateway, []))
        return {
            "version": 5,
            "gateway": gateway,
            "devices": devices,
            "rounds": [],
            "cursor": end,
            "more": more,
        }

    def answer(self, identifier: str, data: object) -> None:
        node, _, _ = self.waiting.pop(identifier)
        payload = data if isinstance(data, bytes) else cbor2.dumps(data)
        self._reply(identifier, node, RecordDict({RECORD: ConfigRecord({"payload": payload})}))

    def finish(self, identifier: str, *answers: dict[str, Any]) -> None:
        """A gateway's reply, with these answers."""
        node, _, request = self.waiting[identifier]
        gateway = self.online.get(node, "?")
        hello = self.hello(gateway, request)
        self.answer(
            identifier,
            {"ok": True, "gateway": gateway, "answers": list(answers), "hello": hello},
        )

    def fail(self, identifier: str) -> None:
        node, _, _ = self.waiting.pop(identifier)
        self._reply(identifier, node, Error(code=3, reason="the node broke"))

    def _reply(self, identifier: str, node: int, content: RecordDict | Error) -> None:
        metadata = Metadata(1, f"r{identifier}", node, 0, identifier, "", 0.0, 60.0, "query.sync")
        if isinstance(content, Error):
            self.replies[identifier] = Message(metadata=metadata, error=content)
        else:
            self.replies[identifier] = Message(metadata=metadata, content=content)

    def last(self) -> str:
        """The newest message that nobody has answered."""
        return list(self.waiting)[-1]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def grid(clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> Grid:
    # Messages are made in a process that Flower has started.
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    one = Grid(clock)
    one.online = {7: "g1"}
    return one


def over(grid: Grid, **pace: Any) -> GridTransport:
    return GridTransport(grid, FlowerPace(**pace), grid.clock)  # type: ignore[arg-type]


@pytest.fixture
def transport(grid: Grid) -> GridTransport:
    """It has met g1."""
    one = over(grid)
    hears(one)
    assert one.nodes() == {"g1": 7}
    grid.pushed.clear()
    return one


def hears(transport: GridTransport, looks: int = 3) -> list[Reply]:
    return [reply for _ in range(looks) for reply in transport.receive()]


def errors(replies: Iterable[Reply]) -> dict[tuple[str, int] | None, str]:
    return {one.round: one.error for one in replies if one.error}


def start(transport: GridTransport, campaign: str, number: int = 1) -> None:
    transport.send("g1", Operation.START, {"campaign": campaign, "round": number})


def collect(transport: GridTransport, campaign: str, number: int = 1, cursor: int = 0) -> None:
    fields = {"campaign": campaign, "round": number, "cursor": cursor}
    transport.send("g1", Operation.COLLECT, fields)


def started(campaign: str, number: int = 1) -> dict[str, Any]:
    return {"op": "start", "campaign": campaign, "round": number, "answer": {"state": "running"}}


def collected(campaign: str, number: int = 1, state: str = "closed") -> dict[str, Any]:
    return {"op": "collect", "campaign": campaign, "round": number, "answer": {"state": state}}


# ---- meeting gateways --------------------------------------------------------------------


def test_nodes_are_greeted_once_and_known_by_what_they_say(grid: Grid) -> None:
    grid.online = {7: "g1", 8: "g2"}
    transport = over(grid)
    replies = hears(transport, 20)
    assert transport.gateways() == {"g1", "g2"}
    assert sorted(one.gateway for one in replies if one.hello) == ["g1", "g2"]
    assert len(grid.pushed) == 2


def test_a_hello_that_has_more_asks_for_the_next_page_until_all_is_there(grid: Grid) -> None:
    grid.devices["g1"] = [small_model.device_entry(f"d{number}", "a") for number in range(7)]
    replies = hears(over(grid), 8)
    told = [one.device for reply in replies if reply.hello for one in reply.hello.devices]
    assert told == [f"d{number}" for number in range(7)]
    assert [request["hello_cursor"] for _, request in grid.pushed] == [0, 2, 4, 6]


def test_a_request_for_a_gateway_that_was_never_met_is_an_error(transport: GridTransport) -> None:
    transport.send("g9", Operation.START, {"campaign": A, "round": 1})
    transport.send("g9", Operation.HELLO, {})
    assert errors(hears(transport)) == {(A, 1): "no SuperNode of g9 is online"}


def test_a_second_node_that_claims_a_name_is_left_alone_until_the_first_is_gone(
    grid: Grid, transport: GridTransport
) -> None:
    grid.online[8] = "g1"
    hears(transport, 10)
    assert transport.nodes() == {"g1": 7}
    assert len(grid.pushed) == 1
    del grid.online[7]
    hears(transport, 10)
    assert transport.nodes() == {"g1": 8}


def test_what_was_under_way_to_a_node_is_lost_where_its_gateway_comes_back_as_another(
    grid: Grid, transport: GridTransport, clock: VirtualClock
) -> None:
    start(transport, A)
    hears(transport)
    began = clock.monotonic()
    grid.online = {8: "g1"}
    replies = hears(transport, 10)
    assert errors(replies) == {(A, 1): "its SuperNode restarted"}
    assert clock.monotonic() - began < 10
    start(transport, A)
    hears(transport)
    node, request = grid.pushed[-1]
    assert (node, len(request["starts"])) == (8, 1)


@pytest.mark.parametrize("nonsense", [b"\xff", [], {"ok": True}, {"ok": True, "hello": {}}])
def test_a_node_with_another_app_is_left_alone(
    grid: Grid, monkeypatch: pytest.MonkeyPatch, nonsense: object
) -> None:
    monkeypatch.setattr(grid, "finish", lambda identifier: grid.answer(identifier, nonsense))
    transport = over(grid)
    assert hears(transport, 10) == []
    assert transport.gateways() == frozenset()
    assert len(grid.pushed) == 1


# ---- what goes in a message --------------------------------------------------------------


def test_requests_of_several_campaigns_go_in_one_message(
    grid: Grid, transport: GridTransport
) -> None:
    start(transport, A)
    collect(transport, B, 4, cursor=500)
    transport.send("g1", Operation.CANCEL, {"campaign": "c" * 16, "round": 2})
    hears(transport)
    ((node, request),) = grid.pushed
    assert node == 7
    assert [one["campaign"] for one in request["starts"]] == [A]
    assert request["rounds"] == [{"campaign": B, "round": 4, "cursor": 500}]
    assert [one["campaign"] for one in request["cancels"]] == ["c" * 16]
    assert request["wait_seconds"] == FlowerPace().sync_wait
    cancelled = {**started("c" * 16, 2), "op": "cancel", "answer": {"state": "cancelled"}}
    grid.finish(grid.last(), cancelled, started(A), collected(B, 4))
    replies = hears(transport)
    # Whoever hears of a round's end knows the devices as they are then.
    assert replies[0].hello is not None
    assert [one.round for one in replies[1:]] == [("c" * 16, 2), (A, 1), (B, 4)]


def test_where_spans_belong_goes_beside_the_requests_that_gateways_know(
    grid: Grid, transport: GridTransport
) -> None:
    start(transport, A)
    fields = {"campaign": B, "round": 2, "traceparent": "00-…-01"}
    transport.send("g1", Operation.START, fields)
    hears(transport)
    ((_, request),) = grid.pushed
    # A gateway of before refuses a start with a field that it doesn't know, and ignores `traces`.
    assert request["starts"] == [{"campaign": A, "round": 1}, {"campaign": B, "round": 2}]
    assert request["traces"] == [fields]


def test_without_traces_a_message_is_as_it_was(grid: Grid, transport: GridTransport) -> None:
    start(transport, A)
    hears(transport)
    assert "traces" not in grid.pushed[0][1]


def test_what_is_only_asked_for_waits_until_the_message_before_is_back(
    grid: Grid, transport: GridTransport
) -> None:
    collect(transport, A)
    hears(transport)
    collect(transport, B)
    transport.send("g1", Operation.HELLO, {})
    hears(transport, 5)
    assert len(grid.pushed) == 1
    grid.finish(grid.last(), collected(A, state="running"))
    hears(transport)
    assert [one["campaign"] for one in grid.pushed[1][1]["rounds"]] == [B]


def test_a_start_does_not_wait_for_the_message_before_but_a_third_message_does(
    grid: Grid, transport: GridTransport
) -> None:
    collect(transport, A)
    hears(transport)
    start(transport, B)
    hears(transport)
    assert len(grid.pushed) == 2
    start(transport, "c" * 16)
    hears(transport, 5)
    assert len(grid.pushed) == 2
    grid.finish(next(iter(grid.waiting)), collected(A, state="running"))
    hears(transport)
    assert [one["campaign"] for one in grid.pushed[2][1]["starts"]] == ["c" * 16]


def test_a_part_is_taken_beside_a_message_that_waits_and_does_not_wait_itself(
    grid: Grid, transport: GridTransport
) -> None:
    waited = {"campaign": A, "round": 1, "cursor": 3, "arrivals": 4}
    transport.send("g1", Operation.COLLECT, waited)
    hears(transport)
    taken = {"campaign": B, "round": 2, "cursor": 5, "part": 1}
    transport.send("g1", Operation.COLLECT, taken)
    hears(transport)
    assert [request["rounds"] for _, request in grid.pushed] == [[waited], [taken]]
    assert [request["wait_seconds"] > 0 for _, request in grid.pushed] == [True, False]


def test_news_alone_are_asked_for_without_a_wait(grid: Grid, transport: GridTransport) -> None:
    transport.send("g1", Operation.HELLO, {})
    hears(transport)
    ((_, request),) = grid.pushed
    assert (request["wait_seconds"], request["rounds"]) == (0.0, [])


def test_what_a_hello_brings_goes_with_the_next_message_once_and_does_not_wait(grid: Grid) -> None:
    transport = GridTransport(
        grid,  # type: ignore[arg-type]
        FlowerPace(),
        grid.clock,
    )
    hears(transport)
    start(transport, A)
    hears(transport, 1)
    transport.send("g1", Operation.HELLO, {"access": "changes"})
    hears(transport, 1)
    # Greeting, start, and beside it what can't wait for its end.
    assert [request.get("access") for _, request in grid.pushed] == [None, None, "changes"]


# ---- waits -------------------------------------------------------------------------------


def test_waits_are_short_while_another_campaigns_next_round_is_expected(
    grid: Grid, transport: GridTransport, clock: VirtualClock
) -> None:
    waits = []
    start(transport, A)
    for _ in range(20):
        hears(transport, 1)
        for identifier in list(grid.waiting):
            waits.append(grid.waiting[identifier][2]["wait_seconds"])
            is_first = len(waits) == 1
            answers = [started(A), collected(A)] if is_first else [collected(B, state="running")]
            grid.finish(identifier, *answers)
        hears(transport, 1)
        collect(transport, B)
        clock.sleep(5.0)
    pace = FlowerPace()
    assert waits[0] == pace.sync_wait
    assert waits[1:5] == [pace.expecting_wait] * 4
    assert waits[-5:] == [pace.sync_wait] * 5


def test_a_next_round_that_has_come_is_expected_no_more(
    grid: Grid, transport: GridTransport
) -> None:
    start(transport, A)
    hears(transport)
    grid.finish(grid.last(), started(A), collected(A))
    hears(transport)
    start(transport, A, 2)
    hears(transport)
    assert grid.pushed[-1][1]["wait_seconds"] == FlowerPace().sync_wait


def test_a_start_is_waited_for_from_the_rounds_end_at_its_last_gateway_on(
    grid: Grid, clock: VirtualClock
) -> None:
    """Where it ended first it has ended long ago; a start is near all the same."""
    grid.online = {7: "g1", 8: "g2"}
    transport = over(grid, hold=5.0)
    hears(transport, 2)
    for gateway in ("g1", "g2"):
        transport.send(gateway, Operation.START, {"campaign": A, "round": 1})
    hears(transport, 2)
    first, second = list(grid.waiting)
    grid.finish(first, started(A), collected(A))
    hears(transport, 2)
    clock.sleep(8.0)
    grid.finish(second, started(A), collected(A))
    hears(transport, 2)
    before = len(grid.pushed)
    collect(transport, B)
    hears(transport, 2)
    assert len(grid.pushed) == before  # it waits for the start of A's next round
    start(transport, A, 2)
    hears(transport, 2)
    (_, request) = grid.pushed[-1]
    assert len(grid.pushed) == before + 1
    assert [one["campaign"] for one in request["starts"]] == [A]
    assert [one["campaign"] for one in request["rounds"]] == [B]


def test_nothing_is_kept_of_campaigns_that_have_ended(grid: Grid, clock: VirtualClock) -> None:
    transport = over(grid, expecting=30.0)
    hears(transport)
    start(transport, A)
    hears(transport)
    grid.finish(grid.last(), started(A), collected(A))
    hears(transport)
    clock.sleep(31.0)
    start(transport, B)
    hears(transport)
    assert transport._ended == {}


# ---- faults ------------------------------------------------------------------------------


def test_a_message_without_an_answer_in_time_is_an_error_for_each_round_in_it(
    grid: Grid, transport: GridTransport, clock: VirtualClock
) -> None:
    start(transport, A)
    collect(transport, B, 3)
    hears(transport)
    pace = FlowerPace()
    # It may stand behind another one that waits.
    clock.sleep(2 * pace.sync_wait + pace.answer - 5.0)
    assert errors(hears(transport, 1)) == {}
    clock.sleep(6.0)
    assert errors(hears(transport, 2)) == dict.fromkeys(
        [(A, 1), (B, 3)], "no answer to a message in time"
    )
    late = grid.last()
    grid.finish(late, started(A))
    assert hears(transport) == []


def test_what_flower_or_the_gateway_can_not_do_is_an_error_for_each_round(
    grid: Grid, transport: GridTransport
) -> None:
    start(transport, A)
    start(transport, B)
    hears(transport)
    grid.fail(grid.last())
    assert errors(hears(transport)) == dict.fromkeys([(A, 1), (B, 1)], "Flower: the node broke (3)")
    start(transport, A)
    hears(transport)
    grid.answer(grid.last(), {"ok": False, "gateway": "g1", "error": "no daemon"})
    assert errors(hears(transport)) == {(A, 1): "no daemon"}
    looks = grid.looks
    while grid.looks == looks:
        transport.receive()
    start(transport, A)
    grid.online = {}
    assert errors([*transport.receive(), *transport.receive()]) == {
        (A, 1): "SuperNode 7 is not online"
    }


def test_a_round_that_a_reply_says_nothing_about_is_an_error(
    grid: Grid, transport: GridTransport
) -> None:
    start(transport, A)
    collect(transport, B)
    hears(transport)
    grid.finish(grid.last(), started(A))
    assert errors(hears(transport)) == {(B, 1): "its answer says nothing about the round"}


def test_an_answer_about_a_round_that_it_was_not_asked_for_reaches_nobody(
    grid: Grid, transport: GridTransport
) -> None:
    start(transport, A)
    hears(transport)
    stolen = {**started(B, 9), "op": "cancel", "answer": {"state": "cancelled"}}
    grid.finish(grid.last(), started(A), stolen, collected(B, 9))
    assert [one.round for one in hears(transport)] == [None, (A, 1)]


@pytest.mark.parametrize(
    "data",
    [
        {"ok": True, "answers": "all"},
        {"ok": True, "answers": [5]},
        {"ok": True, "answers": [{"op": "burn", "campaign": A, "round": 1}]},
        {
            "ok": True,
            "answers": [],
            "hello": {"version": 5, "gateway": "g2", "devices": [], "rounds": []},
        },
        {"ok": True, "answers": [{**started(A), "answer": {"state": "perhaps"}}]},
        b"\x00\xff",
    ],
)
def test_an_odd_answer_is_said_to_be_one_and_stops_nothing(
    grid: Grid, transport: GridTransport, data: object
) -> None:
    start(transport, A)
    hears(transport)
    grid.answer(grid.last(), data)
    replies = hears(transport)
    assert all(one.is_odd and one.gateway == "g1" for one in replies)
    assert transport.gateways() == {"g1"}
