"""Campaigns over real Flower processes: a SuperLink, its SuperExec and two SuperNodes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fleet.campaign import CampaignConfig
from fleet.coordinator.control import APP_FOLDER
from fleet.coordinator.creation import new_campaign
from fleet.coordinator.service import Coordinator, ProgressEvent
from fleet.coordinator.superlink import SuperLink, SuperNode, flower_environment
from fleet.store import SqlStore, Stages, sqlite_url
from tests import processes
from tests.fleet.coordinator import small_model
from tests.fleet.coordinator.oracle import PLAN_NAMES, assert_every_delta_counted_once
from tests.fleet.coordinator.plain_gateway import PlainGateway
from tests.patience import wait_until

pytestmark = pytest.mark.slow


@dataclass
class Site:
    """Everything that runs for these tests."""

    folder: Path
    superlink: SuperLink
    nodes: list[SuperNode]
    gateways: list[PlainGateway]
    events: list[ProgressEvent] = field(default_factory=list)

    def campaign(self, name: str, **fields: object) -> tuple[SqlStore, Path, str]:
        path = self.folder / f"{name}.sqlite"
        store = SqlStore(sqlite_url(path))
        settings = {
            "rounds": 2,
            "min_devices": 12,
            "score_first": False,
            "last_round": "none",
            "deadline_seconds": 600,
            **fields,
        }
        config = CampaignConfig.model_validate({"name": name, **settings})
        texts = small_model.manifest_texts("a", "b")
        return store, path, new_campaign(store, config, texts, small_model.blob())

    def run(
        self,
        store: SqlStore,
        path: Path,
        campaign: str,
        on_event: Callable[[ProgressEvent], None],
    ) -> str:
        self.events.clear()

        def progress(event: ProgressEvent) -> None:
            self.events.append(event)
            on_event(event)

        return Coordinator(store, path, self.superlink).run(campaign, progress).state


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    # Socket paths have to be short; pytest's folders aren't.
    with tempfile.TemporaryDirectory(prefix="tf") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        free_sram = [1500, 5000, 20000]
        gateways = []
        for gateway in ("g1", "g2"):
            devices = [
                small_model.device_entry(
                    f"{gateway}-{index}", "ab"[index % 2], free_sram_bytes=free_sram[index % 3]
                )
                for index in range(6)
            ]
            one = PlainGateway(gateway, folder / f"{gateway}.sock", devices)
            stack.callback(one.close)
            gateways.append(one)
        superlink = stack.enter_context(SuperLink(folder / "flower"))
        nodes = [
            stack.enter_context(
                SuperNode(superlink.work, superlink.address, one.name, one.socket_path)
            )
            for one in gateways
        ]
        yield Site(folder, superlink, nodes, gateways)


@pytest.fixture(autouse=True)
def _round_seconds(site: Site) -> None:
    for gateway in site.gateways:
        gateway.round_seconds = 1.0


def test_a_campaign_over_two_gateways_ends_with_the_exact_weights(site: Site) -> None:
    store, path, campaign = site.campaign("plain", score_first=True, last_round="release")
    assert site.run(store, path, campaign, lambda event: None) == "finished"
    assert [one.number for one in store.rounds(campaign)] == [0, 1, 2, 3]
    assert_every_delta_counted_once(store, campaign)
    plans = {PLAN_NAMES[one["plan"]] for one in store.round(campaign, 1).plan["assignments"]}
    assert plans == {"small", "middle", "large"}
    assert store.round(campaign, 3).result["median_accuracy_before"] == 0.6
    assert len(store.reports(campaign, 3)) == 12
    assert len(Stages(store).members(campaign)) == 12
    kinds = [event.kind for event in site.events]
    assert kinds[0] == "run-submitted"
    assert kinds[-1] == "campaign-ended"
    assert kinds.count("round-done") == 4
    assert "run-failed" not in kinds


def test_a_second_supernode_that_claims_a_gateways_name_gets_nothing_to_do(site: Site) -> None:
    for gateway in site.gateways:
        gateway.round_seconds = 10.0  # in which the impostor is heard
    device = small_model.device_entry("stranger", "a")
    with contextlib.ExitStack() as stack:
        impostor = PlainGateway("g1", site.folder / "impostor.sock", [device])
        stack.callback(impostor.close)
        node = SuperNode(site.superlink.work, site.superlink.address, "g1", impostor.socket_path)
        store, path, campaign = site.campaign("impostor")

        def claim(event: ProgressEvent) -> None:
            if event.kind == "round-started" and event.round == 1:
                wait_for_start(site, campaign)  # the real one is known by then
                stack.enter_context(node)

        assert site.run(store, path, campaign, claim) == "finished"
        assert set(impostor.requests) == {"hello"}
        assert "stranger" not in Stages(store).members(campaign)
        assert_every_delta_counted_once(store, campaign)


def test_a_superlink_killed_in_the_middle_of_a_round_loses_and_doubles_nothing(
    site: Site,
) -> None:
    for gateway in site.gateways:
        gateway.round_seconds = 6.0
    store, path, campaign = site.campaign("superlink-kill")
    killed = []

    def kill(event: ProgressEvent) -> None:
        if event.kind == "round-started" and event.round == 1:
            wait_for_start(site, campaign)
            killed.append(site.superlink.link.pid)
            site.superlink.kill()

    assert site.run(store, path, campaign, kill) == "finished"
    assert killed
    assert killed[0] != site.superlink.link.pid
    assert_every_delta_counted_once(store, campaign)


def test_a_server_app_killed_in_the_middle_of_a_round_is_followed_by_one_that_resumes_it(
    site: Site,
) -> None:
    for gateway in site.gateways:
        gateway.round_seconds = 6.0
    store, path, campaign = site.campaign("serverapp-kill")
    drivers = []

    def kill(event: ProgressEvent) -> None:
        if event.kind == "round-started" and event.round == 1:
            wait_for_start(site, campaign)
            drivers.append(store.campaign(campaign).driver)
            processes.kill("flwr-serverapp", site.superlink.address)

    assert site.run(store, path, campaign, kill) == "finished"
    assert drivers
    assert store.campaign(campaign).driver != drivers[0]
    assert_every_delta_counted_once(store, campaign)


def test_a_stopped_campaign_cancels_the_round_at_the_gateways(site: Site) -> None:
    for gateway in site.gateways:
        gateway.round_seconds = 60.0
    store, path, campaign = site.campaign("stopped", rounds=1)

    def stop(event: ProgressEvent) -> None:
        if event.kind == "round-started":
            wait_for_start(site, campaign)
            store.ask(campaign, "stop")

    assert site.run(store, path, campaign, stop) == "cancelled"
    assert [one.rounds[(campaign, 1)]["state"] for one in site.gateways] == ["cancelled"] * 2
    assert store.latest_weights(campaign).version == 0


def test_flwr_run_on_the_app_goes_through_flowers_own_loop(site: Site) -> None:
    store, path, campaign = site.campaign("strategy")
    environment = flower_environment(site.folder, "cli", 1.0)
    home = Path(environment["FLWR_HOME"])
    home.mkdir(parents=True)
    (home / "config.toml").write_text(
        f'[superlink.local]\naddress = "{site.superlink.address}"\ninsecure = true\n'
    )
    config = f'mode="strategy" store="{path}" campaign="{campaign}" num-server-rounds=2'
    program = Path(sys.executable).parent / "flwr"
    command = [program, "run", APP_FOLDER, "local", "--run-config", config, "--stream"]
    done = subprocess.run(
        [str(part) for part in command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    copies = [one for one in store.campaigns() if one.id != campaign]
    assert [one.state for one in copies] == ["finished"], done.stdout
    assert_every_delta_counted_once(store, copies[0].id)
    assert len(store.rounds(copies[0].id)) == 2


def wait_for_start(site: Site, campaign: str) -> None:
    """Until a gateway has the round."""
    wait_until(lambda: any((campaign, 1) in one.rounds for one in site.gateways))
