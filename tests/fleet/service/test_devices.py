"""Devices counted, and what one of them has done, over SQLite and PostgreSQL."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from fleet.coordinator.creation import new_campaign
from fleet.store import Member
from tests.fleet.coordinator import small_model
from tests.fleet.service.conftest import Site, campaign, seen, with_power

BASE = hashlib.sha256(small_model.blob()).hexdigest()
REPORT = {"device": "d0", "plan": small_model.manifest("a")["plans"][-1]["id"], "seconds": 10.0}


@pytest.fixture(params=["sqlite", "postgres"])
def any_site(request: pytest.FixtureRequest, new_site: Callable[..., Site]) -> Site:
    return new_site(request.param)


def test_devices_are_counted_by_state_site_board_and_version(any_site: Site) -> None:
    ops, client = any_site.operations, any_site.client("operator")
    strange = {"online": False, "current": "ab" * 32}
    ops.registry.observe({"d1": seen(ops, 1, **strange), "d2": seen(ops, 2, **strange)})
    client.retire_device("d2")
    found = client.summarize_devices()
    assert found.count == 6
    assert found.states == {"online": 2, "offline": 1, "retired": 1, "unheard": 2}
    assert [(one.site, one.states) for one in found.sites] == [
        ("home", {"online": 2, "offline": 1, "unheard": 2})
    ]
    assert {one.board: one.count for one in found.boards} == {"a": 1, "b": 2, None: 2}
    assert {(one.version, one.current): one.count for one in found.versions} == {
        ("small:1", BASE): 2,
        (None, "ab" * 32): 1,
        (None, None): 2,
    }
    assert found.other_versions == 0
    few = client.summarize_devices('labels.line == "b"')
    assert few.count == 3
    assert {one.board for one in few.boards} == {"b", None}


def test_versions_that_few_have_are_counted_together(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet.service.devices.MOST_VERSIONS", 1)
    ops = site.operations
    ops.registry.observe({"d1": seen(ops, 1, current="ab" * 32)})
    found = site.client().summarize_devices("has(board)")
    assert [(one.version, one.count) for one in found.versions] == [("small:1", 3)]
    assert found.other_versions == 1


def _campaign(site: Site, rounds: list[tuple[str, str, int]]) -> str:
    """A campaign in which d0 took part in rounds of a kind, weights and training steps."""
    texts = small_model.manifest_texts("a", "b")
    name = new_campaign(
        site.store, campaign(), texts, small_model.blob(), author="ann", base="small:1"
    )
    site.store.claim(name, "driver")
    site.operations.stages.save_members(name, [Member("d0", 0, BASE)])
    for number, (kind, weights, steps) in enumerate(rounds):
        site.store.begin_round(name, "driver", number, kind, {"weights": weights})
        report = {**REPORT, "train_steps": steps, "payload_bytes": 100}
        site.store.finish_round(name, "driver", number, "done", {"accepted": 1}, [report], None)
    return name


def test_a_devices_record_has_seconds_energy_and_writes_of_its_flash(any_site: Site) -> None:
    rounds = [
        ("score-first", BASE, 0),
        ("train", BASE, 5),  # it has these already
        ("train", "11" * 32, 5),
        ("score-last", "22" * 32, 0),
        ("release", "22" * 32, 0),  # the same again: nothing is written
        ("roll-back", "", 0),
    ]
    _campaign(any_site, rounds)
    _campaign(any_site, [("train", "11" * 32, 5)])
    client = any_site.client("viewer")
    found = client.device_record("d0")
    assert (found.rounds, found.trained_rounds, found.seconds) == (7, 3, 70.0)
    assert (found.uplink_bytes, found.flash_slot_writes) == (700, 3)
    assert (found.active_milliwatts, found.millijoules) == (None, None)
    with_power(any_site, "a", 132)
    assert client.device_record("d0").millijoules == 70.0 * 132
    untouched = client.device_record("d5")
    assert (untouched.rounds, untouched.seconds, untouched.flash_slot_writes) == (0, 0.0, 0)
    assert untouched.troubles == []


def test_a_devices_troubles_name_campaign_stage_and_reason(any_site: Site) -> None:
    name = _campaign(any_site, [])
    ops, client = any_site.operations, any_site.client("viewer")
    assert client.device_record("d0").troubles == []
    ops.stages.save_members(name, [Member("d0", 0, BASE, 2, "it was silent", 5.0)])
    (found,) = client.device_record("d0").troubles
    assert found.model_dump() == {
        "campaign": name,
        "name": "test",
        "stage": "all",
        "failures": 2,
        "reason": "it was silent",
        "not_before": 5.0,
    }


def test_history_names_campaigns_and_versions(site: Site) -> None:
    name = _campaign(site, [("train", BASE, 5), ("train", "11" * 32, 5)])
    newest, oldest = site.client("viewer").device_history("d0")
    assert (newest.campaign, newest.name, newest.round) == (name, "test", 1)
    assert (newest.weights, newest.version) == ("11" * 32, None)
    assert (oldest.weights, oldest.version) == (BASE, "small:1")
    assert (oldest.train_steps, oldest.payload_bytes, oldest.seconds) == (5, 100, 10.0)
