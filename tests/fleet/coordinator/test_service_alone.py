"""The coordinator without a SuperLink to speak to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from fleet.campaign import CampaignConfig
from fleet.clock import VirtualClock
from fleet.coordinator.control import RunState
from fleet.coordinator.creation import new_campaign
from fleet.coordinator.service import Coordinator, Patience
from fleet.coordinator.superlink import SuperLink
from fleet.errors import FlowerError
from fleet.store import SqlStore, sqlite_url
from tests.fleet.coordinator import small_model


def test_a_superlink_that_never_answers_is_given_up_and_the_campaign_kept(tmp_path: Path) -> None:
    path = tmp_path / "campaign.sqlite"
    store = SqlStore(sqlite_url(path))
    campaign = new_campaign(
        store, CampaignConfig(name="x"), small_model.manifest_texts("a"), small_model.blob()
    )
    coordinator = Coordinator(
        store,
        path,
        SuperLink(tmp_path / "flower"),
        restart_superlink=False,
        patience=Patience(refusal=0.5),
    )
    with pytest.raises(FlowerError, match="run it again"):
        coordinator.run(campaign)
    assert store.campaign(campaign).state == "pending"
    store.close()


class FailingFlower:
    """A SuperLink and its control interface: every run ends at once, and before it `work` is done.

    Its processes are dead for the first `dead_looks` looks, and can't be started again meanwhile.
    """

    address = "127.0.0.1:1"

    def __init__(self, work: Callable[[int], None], dead_looks: int = 0) -> None:
        self.runs = 0
        self._work = work
        self._dead_looks = dead_looks
        self.logs = "in logs"

    def processes_run(self) -> bool:
        self._dead_looks -= 1
        return self._dead_looks < 0

    def restart(self) -> None:
        raise FlowerError("SuperLink didn't start within 60 s")

    def start_run(self, run_config: dict[str, Any]) -> int:
        self.runs += 1
        self._work(self.runs)
        return self.runs

    def run_state(self, run: int) -> RunState:
        return RunState("finished", "failed", "it crashed")

    def stop_run(self, run: int) -> None:
        """Nothing runs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to close."""


def coordinate(
    store: SqlStore, campaign: str, flower: FailingFlower, **settings: Any
) -> tuple[str, VirtualClock]:
    clock = VirtualClock()
    coordinator = Coordinator(
        store,
        Path("campaign.sqlite"),
        flower,  # type: ignore[arg-type]
        clock=clock,
        connect=lambda address: flower,  # type: ignore[arg-type, return-value]
        **settings,
    )
    return coordinator.run(campaign).state, clock


@pytest.fixture
def store() -> SqlStore:
    return SqlStore()


@pytest.fixture
def campaign(store: SqlStore) -> str:
    config = CampaignConfig(name="x")
    return new_campaign(store, config, small_model.manifest_texts("a"), small_model.blob())


def test_runs_that_bring_the_campaign_further_may_fail_as_often_as_they_like(
    store: SqlStore, campaign: str
) -> None:
    def work(run: int) -> None:
        store.claim(campaign, f"run-{run}")
        store.begin_round(campaign, f"run-{run}", run, "train", {})
        if run == 50:
            store.end_campaign(campaign, f"run-{run}", "finished")

    flower = FailingFlower(work)
    assert coordinate(store, campaign, flower, patience=Patience(max_runs=3))[0] == "finished"
    assert flower.runs == 50


def test_runs_that_bring_it_no_further_are_given_up(store: SqlStore, campaign: str) -> None:
    flower = FailingFlower(lambda run: None)
    with pytest.raises(FlowerError, match=r"got no further in 3 runs.*it crashed"):
        coordinate(store, campaign, flower, patience=Patience(max_runs=3))
    assert flower.runs == 3


def test_a_superlink_that_can_not_be_restarted_for_a_while_is_waited_for(
    store: SqlStore, campaign: str
) -> None:
    flower = FailingFlower(lambda run: store.end_campaign(campaign, "", "finished"), dead_looks=100)
    state, clock = coordinate(store, campaign, flower, patience=Patience(refusal=300))
    assert state == "finished"
    assert clock.monotonic() > 100


def test_a_superlink_that_can_never_be_restarted_is_given_up_with_its_reason(
    store: SqlStore, campaign: str
) -> None:
    flower = FailingFlower(lambda run: None, dead_looks=10**6)
    with pytest.raises(FlowerError, match="of no use for 300 s: SuperLink didn't start"):
        coordinate(store, campaign, flower, patience=Patience(refusal=300))


def test_a_server_app_that_is_silent_is_replaced_whatever_the_wall_clock_does(
    store: SqlStore, campaign: str
) -> None:
    clock = VirtualClock()
    flower = FailingFlower(lambda run: run == 2 and store.end_campaign(campaign, "", "finished"))
    flower.run_state = lambda run: RunState("running")  # type: ignore[method-assign]
    coordinator = Coordinator(
        store,
        Path("campaign.sqlite"),
        flower,  # type: ignore[arg-type]
        clock=clock,
        connect=lambda address: flower,  # type: ignore[arg-type, return-value]
        patience=Patience(silence=30),
    )
    clock.call_later(5.0, lambda: clock.step_wall(-86_400))
    assert coordinator.run(campaign).state == "finished"
    assert 30 < clock.monotonic() < 40
