"""The operator's story: thirty devices on two sites, a campaign that measures that it makes them
worse, one that can't tell, one that is right, and its way back.

On the way the coordinator, a gateway and a broker are killed. Devices are emulated boards, and the
firmware's C as a library where there would be too many of them for two cores.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleet.attach import Attached, Place, virtual_devices
from fleet.campaign import CampaignConfig, deal_stages
from fleet.service import deployment
from fleet.service.client import Client
from fleet.service.schema import CampaignDetail, DeviceToAdd
from fleet.store import ENDED_STATES
from simulator.machines.device_spec import DeviceSpec
from tests import deployments, processes
from tests.patience import wait_for_service

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

DEVICES = [f"mcu-{number:02}" for number in range(1, 31)]
SITES = ("north", "south")
SITE = {name: SITES[number % 2] for number, name in enumerate(DEVICES)}
EMULATED = DEVICES[:8]
SEED = 5
STAGES = [
    {"name": "canary", "share": 0.1},
    {"name": "half", "share": 0.5},
    {"name": "all", "share": 1.0},
]
SCORES = {"gate": "score", "most_drop": 0.05}
FAILURES = {"gate": "failures", "most": 0.5}


def campaign(name: str, stages: list[dict[str, Any]], **fields: Any) -> CampaignConfig:
    return CampaignConfig.model_validate(
        {
            "name": name,
            "model": "digits",
            "seed": SEED,
            "target": 'labels["ward"] == "a"',
            "rounds": 1,
            "learning_rate": 0.03,
            "epochs": 2,
            "min_devices": len(DEVICES),
            "deadline_seconds": 600,
            "plans": ["small", "middle"],
            "stages": stages,
            **fields,
        }
    )


class Story:
    """A deployment that runs, and what is attached to it."""

    def __init__(self, folder: Path, bundles: Mapping[str, Path]) -> None:
        self.folder = folder
        self.bundles = bundles
        deployment.init(folder, "barn", SITES, 1)
        deployments.start(folder)
        self.client = deployment.connect(folder)
        self.passwords: dict[str, str] = {}

    def close(self) -> None:
        self.client.close()
        deployment.down(self.folder)

    def provision(self) -> None:
        for path in self.bundles.values():
            text = (path / "manifest.json").read_text("utf-8")
            self.client.import_bundle("digits", text, (path / "weights.bin").read_bytes())
        told = self.client.add_devices(
            [DeviceToAdd(device=name, site=SITE[name], labels={"ward": "a"}) for name in DEVICES]
        )
        self.passwords = {one.device: one.password for one in told}

    def specs(self, **spoilt: list[str]) -> dict[str, DeviceSpec]:
        """All devices by name, some of which have labels that are wrong."""
        fleet = deployment.Deployment.read(self.folder).fleet
        made = virtual_devices(
            DEVICES, self.passwords, self.bundles, fleet, machine="host", seed=SEED, **spoilt
        )
        return {
            one.device: replace(one, machine="unicorn") if one.device in EMULATED else one
            for one in made
        }

    @contextlib.contextmanager
    def attached(self, **spoilt: list[str]) -> Iterator[Attached]:
        """The devices run, with fresh flash."""
        sites = deployment.Deployment.read(self.folder).sites
        specs = self.specs(**spoilt)
        places = {
            Place("127.0.0.1", sites[name].plain): [
                specs[device] for device in DEVICES if SITE[device] == name
            ]
            for name in SITES
        }
        since = time.time()
        with Attached(places) as running:
            wait_for_service(
                lambda: self._heard_since(since) == len(DEVICES), self._faults(running)
            )
            yield running

    def canary(self, config: CampaignConfig) -> list[str]:
        """Who will be in a campaign's first stage."""
        boards = {path: board for board, path in self.bundles.items()}
        strata = {
            name: f"{SITE[name]}-gw/{boards[spec.bundle]}" for name, spec in self.specs().items()
        }
        return sorted(name for name, at in deal_stages(config, strata, {}).items() if at == 0)

    def _heard_since(self, since: float) -> int:
        page = self.client.devices(limit=1000)
        return sum(bool(one.online) and (one.last_seen or 0) > since for one in page.devices)

    def _faults(self, running: Attached) -> Any:
        return lambda: [f"{name}: {one.link} {one.fault}" for name, one in running.stats().items()]

    def current(self) -> dict[str, str]:
        return {one.device: one.current or "" for one in self.client.all_devices()}

    def run(self, config: CampaignConfig) -> CampaignDetail:
        return self.finish(self.client.start_campaign(config).campaign)

    def finish(self, campaign: str) -> CampaignDetail:
        wait_for_service(
            lambda: self.client.campaign(campaign).state in ENDED_STATES,
            lambda: self.client.campaign(campaign).model_dump_json(indent=1),
        )
        return self.client.campaign(campaign)

    @contextlib.contextmanager
    def noting_rounds(self, campaign: str, met: set[int], first: int) -> Iterator[None]:
        """From a round on; ``met`` gets all rounds that run meanwhile."""
        wait_for_service(
            lambda: any(one.round >= first for one in self.client.campaign(campaign).rounds),
            lambda: self.client.campaign(campaign).model_dump_json(indent=1),
        )
        before = self.newest(campaign)
        yield
        met.update(range(before, self.newest(campaign) + 1))

    def newest(self, campaign: str) -> int:
        return max(one.round for one in self.client.campaign(campaign).rounds)

    def kill(self, part: str) -> None:
        """SIGKILL to a part of the deployment, and start again what is missing."""
        process = deployment.processes(self.folder)[part]
        assert process.adopt()
        process.kill()
        assert not process.alive()
        deployments.start(self.folder)


@pytest.fixture
def story(bundles: dict[str, Path]) -> Iterator[Story]:
    with tempfile.TemporaryDirectory(prefix="tf") as name:
        one = Story(Path(name) / "d", bundles)
        try:
            yield one
        finally:
            one.close()


def test_a_fleet_is_kept_from_harm_brought_forward_and_brought_back(story: Story) -> None:
    story.provision()
    gated = [{**one, "gates": [SCORES, FAILURES]} for one in STAGES]
    config = campaign("poisoned", gated, rounds=2, epochs=12, learning_rate=0.1)
    canary = story.canary(config)
    assert len(canary) == 3
    old = dict.fromkeys(DEVICES, story.client.weights("digits", 1))

    # The canary learns nonsense, and measures it on held-out samples that are right.
    with story.attached(shuffle_training_labels=canary) as running:
        plan = story.client.plan_campaign(config)
        assert [one.devices for one in plan.stages] == [3, 15, 30]
        first = story.current()
        ended = story.run(config)
        assert ended.state == "rolled-back", ended.reason
        assert "a gate failed" in ended.reason
        assert ended.stages[0].outcome == "fail"
        assert {one.round for one in ended.rounds} == {0, 1, 2, 3}
        asked = story.client.reports(ended.campaign, 3).reports
        assert sorted(one["device"] for one in asked) == canary
        assert story.current() == first
        assert {name: running.flash_of(name) for name in DEVICES} == old

    # The canary's held-out labels are nonsense: nobody can tell whether it got better.
    with story.attached(shuffle_held_out_labels=canary) as running:
        ended = story.run(campaign("blind", gated))
        assert ended.state == "undecided", ended.reason
        assert "too little evidence" in ended.reason
        assert not any(one.kind == "release" for one in ended.rounds)
        assert story.current() == first
        assert {name: running.flash_of(name) for name in DEVICES} == old

    # All is right now. A canary of three may leave it open: half of the fleet decides then.
    widening = [{**one, "on_too_little_evidence": "widen"} for one in gated]
    widening[1]["approval"] = True
    with story.attached() as running:
        started = story.client.start_campaign(campaign("right", widening)).campaign
        disturbed: set[int] = set()
        with story.noting_rounds(started, disturbed, 1):
            home = story.folder / "coordinator" / "flower"
            processes.kill("flwr-serverapp", environment=str(home))
            story.kill("service")
        wait_for_service(lambda: story.client.campaign(started).waiting == "begin:1")
        approver = story.client.issue_token("ann", "approver", 1)
        with Client(story.client.url, approver.secret, why="the canary is fine") as ann:
            ann.act(started, "approve")
        canaries = len(story.client.campaign(started).rounds)
        with story.noting_rounds(started, disturbed, canaries + 1):
            story.kill("gateway-south-gw")
        with story.noting_rounds(started, disturbed, canaries + 3):
            story.kill("broker-north")
        ended = story.finish(started)
        assert ended.state == "finished", ended.reason
        assert ended.stages[-1].outcome == "pass"
        assert ended.made == "digits:2"
        new = story.client.weights("digits", 2)
        assert {running.flash_of(name) for name in DEVICES} == {new}
        assert set(story.current().values()) != set(first.values())
        # No round counted a delta twice, and where nothing was killed all devices have a report.
        for one in ended.rounds:
            reports = story.client.reports(started, one.round).reports
            names = [report["device"] for report in reports]
            assert len(names) == len(set(names)) == one.accepted
            if one.round in disturbed:
                assert 0 < one.accepted <= one.asked
            else:
                assert one.accepted == one.asked

        # Somebody finds a reason to go back after all.
        story.client.act(started, "roll-back")
        wait_for_service(lambda: story.client.campaign(started).state == "rolled-back")
        assert "couldn't be reached" not in story.client.campaign(started).reason
        assert {name: running.flash_of(name) for name in DEVICES} == old
        assert story.client.model("digits").versions[-1].state == "withdrawn"

    told = story.client.audit(limit=1000).audit
    did = [(one.who, one.action) for one in told if one.action.startswith("campaigns.")]
    assert did == [
        ("admin", "campaigns.start"),
        ("admin", "campaigns.start"),
        ("admin", "campaigns.start"),
        ("ann", "campaigns.approve"),
        ("admin", "campaigns.roll-back"),
    ]
    assert [one.why for one in told if one.action == "campaigns.approve"] == ["the canary is fine"]
    assert sum(one.action == "devices.add" for one in told) == len(DEVICES)
    happened = list(story.client.events(after=0, follow=False))
    gates = [one.data["outcome"] for one in happened if one.kind == "gate"]
    assert gates[:2] == ["fail", "too little evidence"]
    assert gates[-1] == "pass"
    ends = [one.data["state"] for one in happened if one.kind == "campaign-ended"]
    assert ends == ["rolled-back", "undecided", "finished", "rolled-back"]
