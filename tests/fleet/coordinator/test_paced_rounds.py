"""A campaign whose tasks are held back, from the driver through a gateway that ships to devices."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.campaign import CampaignConfig, RoundPlan
from fleet.coordinator.creation import new_campaign
from fleet.protocol import Task, topics
from fleet.protocol.manifest import Manifest
from fleet.store import SqlStore
from tests.fleet.coordinator import small_model
from tests.fleet.coordinator.direct_transport import DirectTransport, drive
from tests.fleet.gateway import virtual_site
from tests.fleet.gateway.deltas import FLEET, GATEWAY, announcement
from tests.fleet.gateway.virtual_site import VirtualSite

DEVICES = 6
SPREAD = 2000.0
MANIFEST = Manifest.parse(next(iter(small_model.manifest_texts("a").values())))
PLAN = max(MANIFEST.plans, key=lambda one: one.delta_values)


class _Gateway:
    """What `DirectTransport` calls, of a gateway that is alive again whenever it is asked."""

    def __init__(self, site: VirtualSite) -> None:
        self.now = site.clock.monotonic
        self.site = site

    def _hello(self, request: dict[str, Any]) -> dict[str, Any]:
        return self.site.ask("hello", cursor=0)

    def _start(self, request: dict[str, Any]) -> dict[str, Any]:
        return self.site.ask("start", **request)

    def _collect(self, request: dict[str, Any]) -> dict[str, Any]:
        return self.site.ask("collect", **request)

    def _cancel(self, request: dict[str, Any]) -> dict[str, Any]:
        return self.site.ask("cancel", **request)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VirtualSite]:
    said = functools.partial(
        announcement,
        bundle=bytes.fromhex(MANIFEST.bundle_id),
        current=bytes.fromhex(MANIFEST.weights.sha256),
        link_bits_per_second=1_000_000,
    )
    monkeypatch.setattr(virtual_site, "announcement", said)
    made = VirtualSite(tmp_path, seed=4, devices=DEVICES, values=PLAN.delta_values)
    made.clock.sleep(10)
    yield made
    made.close()


def test_a_round_that_is_spread_out_takes_longer_and_counts_everybody(site: VirtualSite) -> None:
    pace = {"spread_seconds": SPREAD}
    fields = {"rounds": 1, "score_first": False, "last_round": "none", "deadline_seconds": 200}
    config = CampaignConfig.model_validate({"name": "test", "pace": pace, **fields})
    store = SqlStore(clock=site.clock)
    texts = small_model.manifest_texts("a")
    name = new_campaign(store, config, texts, small_model.blob())
    tasked: dict[str, tuple[float, int]] = {}
    publish = site.broker.publish

    def noted(by: Any, topic: str, payload: bytes, retain: bool, qos: int) -> None:
        device = next((one for one in site.devices if topic == topics.task(FLEET, one)), None)
        if device and payload:
            seconds = Task.decode(payload).deadline_seconds
            tasked.setdefault(device, (site.clock.monotonic(), seconds))
        publish(by, topic, payload, retain, qos)

    site.broker.publish = noted  # type: ignore[method-assign]
    transport = DirectTransport({GATEWAY: _Gateway(site)}, clock=site.clock)  # type: ignore[dict-item]
    transport.pull = 2.0
    for at in (300.0, 900.0):
        site.clock.call_later(at, site.kill_gateway)
    assert drive(store, name, transport) == "finished"
    plan = RoundPlan.from_json(store.round(name, 1).plan)
    result = store.round(name, 1).result
    assert (result["accepted"], result["failed"], result["lost"]) == (DEVICES, {}, {})
    delays = {one.device: one.delay_seconds for one in plan.assignments}
    assert max(delays.values()) > SPREAD / 2, "longer than a deadline and a grace"
    began = min(at - delays[device] for device, (at, _) in tasked.items())
    for device, (at, seconds) in tasked.items():
        assert at - began == pytest.approx(delays[device], abs=10)
        assert 190 <= seconds <= 200
