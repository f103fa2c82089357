"""Traces of rounds: the coordinator's spans and the gateway's are one tree, whatever is killed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from fleet.campaign import CampaignConfig, Operation
from fleet.coordinator.creation import new_campaign
from fleet.coordinator.driver import CampaignDriver
from fleet.coordinator.transport import Reply, Transport, read_replies
from fleet.gateway.core import Core
from fleet.gateway.rounds import RoundKey
from fleet.gateway.traces import GatewayTraces
from fleet.protocol import Task
from fleet.store import SqlStore
from fleet.tracing import Traces, place_of_round
from tests.fleet.coordinator import small_model
from tests.fleet.coordinator.staged_fleet import StagedFleet
from tests.fleet.gateway.bench import fast_store, settings
from tests.fleet.gateway.deltas import GATEWAY
from tests.fleet.gateway.virtual_site import VirtualDevice, VirtualLink, VirtualSite

DEVICES = 8
SAMPLED = 3
STAGE: dict[str, Any] = {"name": "all", "share": 1.0}


class PowerCutError(Exception):
    """Stands for SIGKILL to the driver."""


class Device(VirtualDevice):
    """One that is asked for several rounds: other weights take the place of those it has."""

    weights = b""

    def _fetch(self, task: Task) -> None:
        if task.weights != self.weights:
            self.weights, self._asked = task.weights, ""
            self.flash.clear()
        super()._fetch(task)


class TracedSite(VirtualSite):
    """A gateway of which each process writes spans of its own, and dies with what it has noted."""

    def __init__(self, folder: Path, spans: InMemorySpanExporter, devices: int = DEVICES) -> None:
        self.spans = spans
        values = small_model.manifest("a")["plans"][0]["delta_values"]
        super().__init__(folder, seed=5, devices=devices, values=values)

    def make_device(self, name: str) -> Device:
        return Device(self, name, self.values)

    def open_gateway(self) -> None:
        self._processes += 1
        self.link = VirtualLink(self)
        self.store = fast_store(self.folder)
        written = Traces("gateway", self.spans, at_once=True)
        traces = self.traces = GatewayTraces(written, GATEWAY, SAMPLED, self.clock)
        self.core = Core(
            settings(self.folder),
            self.store,
            self.link,
            self.clock,
            self._processes,
            watchers=[traces.watch],
        )
        now = self.clock.monotonic(), self.clock.wall()
        traces.resume(self.core.logic.rounds.values(), *now)
        self.link.start()

    def _work(self, batch: list[Any]) -> None:
        super()._work(batch)
        self.traces.step()


class SiteTransport(Transport):
    """Asks the site's gateway as a ClientApp does; the driver dies before request `dies_at`."""

    def __init__(self, site: TracedSite, dies_at: int | None = None) -> None:
        self._site, self._dies_at, self._sent = site, dies_at, 0
        self._replies: list[Reply] = []
        self._cursor = 0
        self.told: list[str] = []
        self.send(GATEWAY, Operation.HELLO, {})

    def gateways(self) -> frozenset[str]:
        return frozenset({GATEWAY})

    def send(self, gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        if self._sent == self._dies_at:
            raise PowerCutError
        self._sent += operation is not Operation.HELLO
        asked, answers = dict(fields), []
        site = self._site
        if operation is not Operation.HELLO:
            name = {"campaign": fields["campaign"], "round": fields["round"]}
            text = asked.pop("traceparent", "")
            key = RoundKey(bytes.fromhex(name["campaign"]), name["round"])
            if text:
                self.told.append(text)
                site.traces.told(key, text)
            begin = site.clock.wall()
            answer = site.ask(operation.value, **asked)
            if "sums" in answer:
                site.traces.summed(key, fields.get("part"), begin)
            answers.append({"op": operation.value, **name, "answer": answer})
        hello = site.ask("hello", cursor=self._cursor)
        self._cursor = hello["cursor"]
        self._replies += read_replies(gateway, {"answers": answers, "hello": hello})

    def receive(self) -> list[Reply]:
        replies, self._replies = self._replies, []
        self._site.clock.sleep(0.4)
        return replies


def begin(site: TracedSite, **fields: Any) -> tuple[SqlStore, str]:
    """A stored campaign of two training rounds over the site's devices."""
    said = small_model.manifest("a")
    # What the devices of a virtual site announce.
    said["bundle_id"] = (b"b" * 32).hex()
    store = SqlStore(clock=site.clock)
    config = CampaignConfig.model_validate(
        {
            "name": "cows",
            "rounds": 2,
            "plans": ("small",),
            "min_devices": len(site.devices),
            "deadline_seconds": 300,
            "score_first": False,
            "last_round": "none",
            **fields,
        }
    )
    return store, new_campaign(store, config, {"a": json.dumps(said)}, small_model.blob())


def drive(store: SqlStore, campaign: str, site: TracedSite, spans: InMemorySpanExporter) -> str:
    traces = Traces("coordinator", spans, at_once=True)
    transport = SiteTransport(site)
    driver = CampaignDriver(store, campaign, transport, clock=site.clock, traces=traces)
    return driver.run()


Tree = dict[str, list[ReadableSpan]]


def tree(spans: InMemorySpanExporter, campaign: str, number: int) -> Tree:
    """The spans of a round's trace by name, whose times and places are looked at."""
    wanted = place_of_round(campaign, number).trace
    mine = [one for one in spans.get_finished_spans() if one.context.trace_id == wanted]
    by_id = {one.context.span_id: one for one in mine}
    assert len(by_id) == len(mine), "no span is written twice"
    for one in mine:
        assert one.start_time <= one.end_time, one.name
        if one.parent is not None:
            above = by_id[one.parent.span_id]
            inside = above.start_time <= one.start_time and one.end_time <= above.end_time
            assert inside, f"{one.name} isn't within {above.name}"
    found: Tree = {}
    for one in sorted(mine, key=lambda span: (span.start_time, span.end_time)):
        found.setdefault(one.name, []).append(one)
    return found


def above(tree: Tree, name: str) -> set[str]:
    """Names of the spans that spans of a name are in."""
    names = {one.context.span_id: one.name for spans in tree.values() for one in spans}
    return {names[one.parent.span_id] if one.parent else "" for one in tree[name]}


NESTED = {
    "round": "",
    "gateway": "round",
    "apply": "round",
    "gateway.round": "gateway",
    "sum": "gateway",
    "publish": "gateway.round",
    "deltas": "gateway.round",
    "device": "gateway.round",
    "task": "device",
    "delta": "device",
    "receipt": "device",
}


def said(span: ReadableSpan, name: str) -> Any:
    """What a span says of itself."""
    assert span.attributes is not None
    return span.attributes[f"tinyfleet.{name}"]


def test_a_round_is_one_trace_across_coordinator_and_gateway(tmp_path: Path) -> None:
    spans = InMemorySpanExporter()
    site = TracedSite(tmp_path, spans)
    store, campaign = begin(site)
    assert drive(store, campaign, site, spans) == "finished"
    for number in (1, 2):
        found = tree(spans, campaign, number)
        assert {name: above(found, name) for name in found} == {
            name: {parent} for name, parent in NESTED.items()
        }
        counts = {name: len(found[name]) for name in NESTED}
        few = dict.fromkeys(("device", "task", "delta", "receipt"), SAMPLED)
        assert counts == {**dict.fromkeys(NESTED, 1), **few}
        (whole,), (mine,) = found["round"], found["gateway.round"]
        assert whole.attributes is not None
        assert whole.attributes["tinyfleet.accepted"] == DEVICES
        assert mine.attributes is not None
        assert mine.attributes["tinyfleet.accepted"] == DEVICES
        # One after the other: tasks, deltas, the sum, new weights.
        steps = [found[name][0] for name in ("publish", "deltas", "sum", "apply")]
        ends = [(one.start_time, one.end_time) for one in steps]
        assert ends == sorted(ends)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(ends[1:]))
    site.close()


def test_no_more_devices_have_spans_than_the_settings_say(tmp_path: Path) -> None:
    spans = InMemorySpanExporter()
    site = TracedSite(tmp_path, spans, devices=20)
    store, campaign = begin(site, rounds=4)
    drive(store, campaign, site, spans)
    site.close()
    devices = [
        {said(one, "device") for one in tree(spans, campaign, number)["device"]}
        for number in range(1, 5)
    ]
    assert [len(one) for one in devices] == [SAMPLED] * 4
    assert len(set.union(*devices)) > SAMPLED, "not the same in each round"


def test_a_gateway_that_is_killed_goes_on_in_the_same_trace(tmp_path: Path) -> None:
    spans = InMemorySpanExporter()
    site = TracedSite(tmp_path, spans)
    store, campaign = begin(site, rounds=1)
    killed: list[int] = []

    def kill_in_the_middle() -> None:
        rounds = site.core.logic.rounds.values() if site.link.alive else []
        accepted = sum(len(one.accepted) for one in rounds if one.open)
        if not killed and 2 <= accepted < DEVICES - 2:
            killed.append(accepted)
            site.kill_gateway()
        site.clock.call_later(0.5, kill_in_the_middle)

    kill_in_the_middle()
    assert drive(store, campaign, site, spans) == "finished"
    assert killed
    found = tree(spans, campaign, 1)
    # `publish` and what the dead process had seen of devices died with it.
    assert {"round", "gateway", "gateway.round", "deltas", "sum", "apply"} <= found.keys()
    (mine,) = found["gateway.round"]
    assert mine.attributes is not None
    assert mine.attributes["tinyfleet.resumed"] is True
    assert mine.attributes["tinyfleet.accepted"] == DEVICES - killed[0]
    began, _ = store.round_times(campaign, 1)
    assert mine.start_time - 1e9 * began < 2e9, "it covers the round from its begin"
    site.close()


@pytest.mark.parametrize("dies_at", [1, 3, 8])
def test_a_driver_that_is_killed_leaves_the_trace_to_the_next(tmp_path: Path, dies_at: int) -> None:
    spans = InMemorySpanExporter()
    site = TracedSite(tmp_path, spans)
    store, campaign = begin(site, rounds=1)
    traces = Traces("coordinator", spans, at_once=True)
    with pytest.raises(PowerCutError):
        CampaignDriver(
            store, campaign, SiteTransport(site, dies_at), clock=site.clock, traces=traces
        ).run()
    assert drive(store, campaign, site, spans) == "finished"
    found = tree(spans, campaign, 1)
    assert {name: above(found, name) for name in found} == {
        name: {parent} for name, parent in NESTED.items()
    }
    site.close()


def test_an_asynchronous_campaign_has_a_span_for_each_version(tmp_path: Path) -> None:
    spans = InMemorySpanExporter()
    site = TracedSite(tmp_path, spans)
    store, campaign = begin(site, asynchronous={"buffer": 4})
    assert drive(store, campaign, site, spans) == "finished"
    applied = [one for number in (1, 2) for one in tree(spans, campaign, number).get("apply", [])]
    versions = sorted(said(one, "version") for one in applied)
    assert versions == [1, 2]
    site.close()


def test_what_the_sampler_leaves_out_is_told_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    spans = InMemorySpanExporter()
    site = TracedSite(tmp_path, spans)
    store, campaign = begin(site, rounds=1)
    transport = SiteTransport(site)
    traces = Traces("coordinator", spans, at_once=True)
    CampaignDriver(store, campaign, transport, clock=site.clock, traces=traces).run()
    assert transport.told == []
    assert spans.get_finished_spans() == ()
    site.close()


def test_a_gateway_that_is_lost_is_an_error_in_a_round_that_ends_without_it(tmp_path: Path) -> None:
    spans = InMemorySpanExporter()
    fleet = StagedFleet(tmp_path)
    name = fleet.campaign(STAGE, deadline_seconds=60.0, gateway_grace_seconds=30.0)
    transport = fleet.transport()

    def falls_silent(gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        if (gateway, operation, fields.get("round")) == ("g2", Operation.COLLECT, 1):
            transport.silent.add("g2")

    transport.listens = falls_silent
    traces = Traces("coordinator", spans, at_once=True)
    CampaignDriver(fleet.store, name, transport, clock=fleet.clock, traces=traces).run()
    found = tree(spans, name, 1)
    gateways = {said(one, "gateway"): one for one in found["gateway"]}
    assert gateways["g1"].status.status_code is StatusCode.UNSET
    assert gateways["g2"].status.status_code is StatusCode.ERROR
    assert gateways["g2"].status.description == "away"
    (whole,) = found["round"]
    assert whole.end_time - whole.start_time >= 90e9
    fleet.close()


def test_a_round_that_an_operator_stops_is_written_as_cancelled(tmp_path: Path) -> None:
    spans = InMemorySpanExporter()
    site = TracedSite(tmp_path, spans)
    store, campaign = begin(site, rounds=1)
    site.clock.call_later(8.0, lambda: store.ask(campaign, "stop"))
    assert drive(store, campaign, site, spans) == "cancelled"
    found = tree(spans, campaign, 1)
    states = [said(found[name][0], "state") for name in ("round", "gateway.round")]
    assert states == ["cancelled", "cancelled"]
    assert "apply" not in found
    site.close()
