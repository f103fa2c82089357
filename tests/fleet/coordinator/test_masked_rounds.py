"""Masked campaigns through the driver, the gateway and the unmasker that ship."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet.aggregation import MasterState, init, plan_sum_from_manifest
from fleet.campaign import CampaignConfig, Operation, RoundPlan
from fleet.errors import UnmaskerError
from fleet.protocol import Task, topics
from fleet.protocol.keys import Keyring, SignedKeyring, TaskKeys
from fleet.protocol.mask_requests import UnmaskerFacts
from fleet.protocol.masking import SEAL_BYTES
from fleet.store import SqlStore, Stages
from fleet.store.answers import keep_answering
from fleet.unmasker import LocalUnmasker, UnmaskerStore
from tests.fleet.coordinator.masked_site import (
    BLOB,
    MANIFEST,
    PLANS,
    MaskedSite,
    SiteTransport,
    drive,
    masked_campaign,
)
from tests.fleet.gateway.deltas import FLEET, GATEWAY, delta_chunks

PLANS_BY_SIZE = [
    bytes.fromhex(one.id) for one in sorted(PLANS.values(), key=lambda one: one.delta_values)
]


def plain_weights(
    site: MaskedSite, store: SqlStore, campaign: str, number: int, before: MasterState
) -> MasterState:
    """The weights after a round over the deltas that were counted, in the sets that were, as the
    devices had them before their masks; by the rule and nothing else of the masked way."""
    record = store.round(campaign, number)
    plan = RoundPlan.from_json(record.plan)
    assert plan.masks is not None
    config = CampaignConfig.parse(store.campaign(campaign).config)
    crcs = site.ask("collect", campaign=campaign, round=number)
    assert crcs["accepted"] == record.result["accepted"]
    counted = {(one["plan"], one["part"]) for one in record.result["sets"] if one["counted"]}
    parts: list[list[Any]] = [[] for _ in range(plan.masks.parts)]
    for one in record.result["sets"]:
        if not one["counted"]:
            entry = PLANS[one["plan"]]
            nothing = plan_sum_from_manifest(MANIFEST, entry, bytes(8 * entry.delta_values), 0)
            parts[one["part"]].append(nothing)
    members: dict[tuple[str, int], dict[str, int]] = {}
    key = (bytes.fromhex(campaign), number)
    for one in plan.assignments:
        crc32 = site.store.counted(key, one.device)
        if crc32 is not None and (one.plan, one.part) in counted:
            members.setdefault((one.plan, one.part), {})[one.device] = crc32
    for (plan_id, part), of in members.items():
        values = site.plain_sum(of).astype("<i8").tobytes()
        entry = PLANS[plan_id]
        parts[part].append(plan_sum_from_manifest(MANIFEST, entry, values, len(of)))
    if not members:
        return before
    return config.aggregation.apply(before, config.aggregation.of_sets(parts))


def assert_bit_equal_to_plain(site: MaskedSite, store: SqlStore, campaign: str) -> None:
    state = init(MANIFEST.tensors, BLOB)
    for record in store.rounds(campaign):
        if record.kind == "train":
            state = plain_weights(site, store, campaign, record.number, state)
    stored = np.frombuffer(store.latest_weights(campaign).master, "<f8")
    assert np.array_equal(stored, state.master)
    assert state.applied == store.latest_weights(campaign).version


def sets_of(store: SqlStore, campaign: str, number: int = 1) -> list[dict[str, Any]]:
    return list(store.round(campaign, number).result["sets"])


@pytest.mark.parametrize("unmaskers", [1, 3])
def test_a_masked_round_is_bit_equal_to_the_plain_one(tmp_path: Path, unmaskers: int) -> None:
    site = MaskedSite(tmp_path, seed=1, devices=12, unmaskers=unmaskers)
    with masked_campaign(site, rounds=2) as (store, campaign):
        assert drive(site, store, campaign, SiteTransport(site)) == "finished"
        assert_bit_equal_to_plain(site, store, campaign)
        assert [one["devices"] for one in sets_of(store, campaign)] == [3, 3, 3, 3]
        result = store.round(campaign, 2).result
        assert result["rule"] == "median over 4 sets"
        assert result["counted"] == 12
        assert not any(device.forgeries for device in site.devices.values())
    site.close()


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_lost_on_the_way_the_unmasked_sum_is_that_of_the_counted_set(
    tmp_path: Path, seed: int
) -> None:
    site = MaskedSite(tmp_path, seed=seed, devices=14)
    site.loss = 0.05
    dice = site.random
    for _ in range(3):
        site.clock.call_later(dice.uniform(1, 60), site.broker.kill)
        site.clock.call_later(dice.uniform(1, 60), site.kill_gateway)
    for name in dice.sample(sorted(site.devices), 8):
        # What it makes again has another nonce, whether the first one was counted or not.
        site.clock.call_later(dice.uniform(5, 50), site.devices[name].reset)
    for name in dice.sample(sorted(site.devices), 3):
        site.clock.call_later(dice.uniform(3, 30), site.devices[name].leave)
    (unmasker,) = site.unmaskers
    unmasker.dies_at = {1, 3}
    unmasker.is_away = lambda number: number % 4 == 2
    with masked_campaign(site, rounds=2, min_devices=9, deadline_seconds=300) as (store, campaign):
        assert drive(site, store, campaign, SiteTransport(site)) == "finished"
        assert_bit_equal_to_plain(site, store, campaign)
        assert any(one["counted"] for one in sets_of(store, campaign))
        asked: dict[tuple[int, str], bytes] = {}
        for request in unmasker.requests:
            for one in request.members:
                before = asked.setdefault((request.round, one.device), request.digest())
                assert before == request.digest(), "a device is in one set of a round, ever"
    site.close()


class _KilledError(Exception):
    """Stands for SIGKILL to the driver."""


def test_a_driver_that_is_killed_at_any_question_asks_for_the_same_sets_again(
    tmp_path: Path,
) -> None:
    site = MaskedSite(tmp_path, seed=3, devices=12, unmaskers=2)

    def kill(number: int) -> bool:
        if number in (1, 3, 6):
            raise _KilledError
        return False

    site.unmaskers[0].is_away = kill
    deaths = 0
    with masked_campaign(site) as (store, campaign):
        while True:
            try:
                state = drive(site, store, campaign, SiteTransport(site))
                break
            except _KilledError:
                deaths += 1
        assert (state, deaths) == ("finished", 3)
        assert_bit_equal_to_plain(site, store, campaign)
        assert all(one["counted"] for one in sets_of(store, campaign))
        assert site.unmaskers[0].inner.store.count_sets() == 4
    site.close()


def test_a_gateway_whose_answer_comes_after_the_sets_were_fixed_changes_none(
    tmp_path: Path,
) -> None:
    site = MaskedSite(tmp_path, seed=3, devices=6)

    def kill(number: int) -> bool:
        if number == 1:
            raise _KilledError
        return False

    site.unmaskers[0].is_away = kill
    with masked_campaign(site) as (store, campaign):
        with pytest.raises(_KilledError):
            drive(site, store, campaign, SiteTransport(site))
        record = store.round(campaign, 1)
        plan = RoundPlan.from_json(record.plan)
        assert plan.masks is not None
        assert plan.masks.gateways == (GATEWAY,)
        keep = keep_answering(store, campaign, "", 1, ["late", GATEWAY])
        assert keep == (GATEWAY,)
        assert drive(site, store, campaign, SiteTransport(site)) == "finished"
        assert_bit_equal_to_plain(site, store, campaign)
    site.close()


def test_an_unmasker_that_stays_away_costs_the_rounds_sets_and_says_so(tmp_path: Path) -> None:
    site = MaskedSite(tmp_path, seed=3, devices=6)
    site.unmaskers[0].is_away = lambda number: True
    masking = {"least_devices": 3, "spare": 0.0, "patience_seconds": 60.0}
    with masked_campaign(site, rounds=4, masking=masking) as (store, campaign):
        assert drive(site, store, campaign, SiteTransport(site)) == "failed"
        assert [one["why"] for one in sets_of(store, campaign)] == ["unmasker-away"]
        assert "no set of devices was unmasked in 3 rounds" in store.campaign(campaign).reason
        assert store.latest_weights(campaign).version == 0
    site.close()


def _other(
    site: MaskedSite, key: int = 1, fleet: str = FLEET, least: int = 2, knows: bool = True
) -> LocalUnmasker:
    """In the place of the site's unmasker; with the defaults as good as that."""
    store = site.unmaskers[0].inner.store if knows else UnmaskerStore()
    return LocalUnmasker(bytes([key]) * 32, fleet, store, least, site.clock)


@pytest.mark.parametrize("other", [{"key": 9}, {"fleet": "bergen"}])
def test_no_device_is_to_blame_that_another_unmasker_cant_open_its_seal(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    site = MaskedSite(tmp_path, seed=2, devices=6)
    (unmasker,) = site.unmaskers

    def is_away(number: int) -> bool:
        unmasker.inner = _other(site, **(other if number <= 3 else {}))
        return False

    unmasker.is_away = is_away
    with masked_campaign(site, rounds=2) as (store, campaign):
        assert drive(site, store, campaign, SiteTransport(site)) == "finished"
        assert_bit_equal_to_plain(site, store, campaign)
        assert unmasker.asked > 3
        for number in (1, 2):
            result = store.round(campaign, number).result
            assert (result["failed"], result["counted"]) == ({}, 6)
    site.close()


UNFIT = [
    ({"key": 9}, "sign a keyring with its new key"),
    ({"fleet": "bergen"}, "is of fleet bergen, not barn"),
    ({"least": 4}, "answers for sets of 4 devices and more"),
    ({"knows": False}, "knows 0 devices"),
]


@pytest.mark.parametrize(("other", "why"), UNFIT)
def test_no_round_begins_that_its_unmaskers_could_not_unmask(
    tmp_path: Path, other: dict[str, Any], why: str
) -> None:
    site = MaskedSite(tmp_path, seed=2, devices=6)
    (unmasker,) = site.unmaskers
    unmasker.inner = _other(site, **other)
    masking = {"least_devices": 3, "spare": 0.0, "patience_seconds": 60.0}
    with masked_campaign(site, masking=masking) as (store, campaign):
        assert drive(site, store, campaign, SiteTransport(site)) == "failed"
        assert why in store.campaign(campaign).reason
        assert not list(store.rounds(campaign))
    site.close()


def test_no_round_begins_whose_unmasker_the_settings_lack(tmp_path: Path) -> None:
    site = MaskedSite(tmp_path, seed=2, devices=6, unmaskers=2)
    first, _ = site.unmasker_keys
    site.holders = replace(site.holders, unmaskers={first: site.unmaskers[0]})
    masking = {"least_devices": 3, "spare": 0.0, "patience_seconds": 60.0}
    with masked_campaign(site, masking=masking) as (store, campaign):
        assert drive(site, store, campaign, SiteTransport(site)) == "failed"
        assert site.unmasker_keys[1].hex() in store.campaign(campaign).reason
        assert not list(store.rounds(campaign))
    site.close()


def test_an_unmasker_that_is_away_holds_no_round_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = MaskedSite(tmp_path, seed=2, devices=6)
    (unmasker,) = site.unmaskers

    def away() -> UnmaskerFacts:
        raise UnmaskerError("away")

    monkeypatch.setattr(unmasker, "facts", away)
    unmasker.is_away = lambda number: number <= 2
    with masked_campaign(site) as (store, campaign):
        assert drive(site, store, campaign, SiteTransport(site)) == "finished"
        assert store.round(campaign, 1).result["counted"] == 6
    site.close()


def test_a_round_that_only_scores_needs_no_unmasker(tmp_path: Path) -> None:
    site = MaskedSite(tmp_path, seed=2, devices=6)
    held = site.holders.keys
    assert held is not None
    ring = SignedKeyring.sign(site.authority, FLEET, Keyring(1, site.task_key.public))
    site.holders = replace(site.holders, keys=TaskKeys(FLEET, held.key, ring), unmaskers={})
    with masked_campaign(site, score_first=True) as (store, campaign):
        assert drive(site, store, campaign, SiteTransport(site)) == "failed"
        assert "keyring 1 names no unmasker" in store.campaign(campaign).reason
        (scored,) = store.rounds(campaign)
        assert (scored.kind, scored.result["accepted"]) == ("score-first", 6)
    site.close()


def test_a_campaign_says_what_keeps_its_unmaskers_and_goes_on_once_that_is_mended(
    tmp_path: Path,
) -> None:
    site = MaskedSite(tmp_path, seed=2, devices=6)
    (unmasker,) = site.unmaskers
    unmasker.inner = _other(site, key=9)
    with masked_campaign(site) as (store, campaign):
        said: list[str] = []

        def mend() -> None:
            said.append(store.campaign(campaign).reason)
            unmasker.inner = _other(site)

        site.clock.call_later(20, mend)
        assert drive(site, store, campaign, SiteTransport(site)) == "finished"
        assert said[0].startswith("waits: the unmasker that should have the key")
        assert store.round(campaign, 1).result["counted"] == 6
    site.close()


def test_an_operator_can_stop_a_campaign_whose_round_waits_for_its_unmaskers(
    tmp_path: Path,
) -> None:
    site = MaskedSite(tmp_path, seed=2, devices=6)
    site.unmaskers[0].inner = _other(site, key=9)
    with masked_campaign(site) as (store, campaign):
        site.clock.call_later(20, lambda: store.ask(campaign, "stop"))
        assert drive(site, store, campaign, SiteTransport(site)) == "cancelled"
        assert not list(store.rounds(campaign))
    site.close()


def test_an_operator_can_stop_a_campaign_that_waits_for_its_unmasker(tmp_path: Path) -> None:
    site = MaskedSite(tmp_path, seed=3, devices=6)
    with masked_campaign(site) as (store, campaign):

        def is_away(number: int) -> bool:
            if number == 3:
                store.ask(campaign, "stop")
            return True

        site.unmaskers[0].is_away = is_away
        assert drive(site, store, campaign, SiteTransport(site)) == "cancelled"
    site.close()


def test_broken_seals_cost_their_set_and_name_the_device_which_is_left_out_from_then_on(
    tmp_path: Path,
) -> None:
    site = MaskedSite(tmp_path, seed=2, devices=12)
    site.devices["cow-4"].spoils_seals = True
    with masked_campaign(site, rounds=3) as (store, campaign):
        assert drive(site, store, campaign, SiteTransport(site)) == "finished"
        assert_bit_equal_to_plain(site, store, campaign)
        first = store.round(campaign, 1).result
        assert Counter(one["why"] for one in first["sets"]) == {"broken-seal": 1, "": 3}
        assert first["failed"] == {"cow-4": "broken-seal"}
        assert first["counted"] == 9
        for number in (2, 3):
            result = store.round(campaign, number).result
            assert all(one["counted"] for one in result["sets"])
            assert result["skipped"]["cow-4"].startswith("broken-seal")
        assert Stages(store).members(campaign)["cow-4"].reason == "broken-seal"
    site.close()


def test_a_device_that_nobody_enrolled_is_named_and_left_out(tmp_path: Path) -> None:
    site = MaskedSite(tmp_path, seed=2, devices=7)
    site.unmaskers[0].inner.store.revoke("cow-1", 0.0)
    with masked_campaign(site, rounds=2) as (store, campaign):
        assert drive(site, store, campaign, SiteTransport(site)) == "finished"
        assert store.round(campaign, 1).result["failed"] == {"cow-1": "unknown-device"}
        assert all(one["counted"] for one in sets_of(store, campaign, 2))
        assert_bit_equal_to_plain(site, store, campaign)
    site.close()


def test_who_spoils_a_set_makes_no_mean_of_a_median(tmp_path: Path) -> None:
    site = MaskedSite(tmp_path, seed=2, devices=9)
    site.devices["cow-4"].spoils_seals = True
    with masked_campaign(site, rounds=2) as (store, campaign):
        assert drive(site, store, campaign, SiteTransport(site)) == "finished"
        assert_bit_equal_to_plain(site, store, campaign)
        first = store.round(campaign, 1).result
        assert (first["counted"], len(first["sets"]), first["changed_values"]) == (6, 3, 0)
        assert first["weights_after"] == first["weights_before"]
        assert first["rule"] == (
            "no change, since 2 of 3 sets are too few for a median (least_sets 3)"
        )
        # Without it there are too few for three sets, and nobody has spoilt one.
        second = store.round(campaign, 2).result
        assert second["rule"].startswith("mean, since 1 sets")
        assert second["changed_values"] > 0
    site.close()


Answer = dict[str, Any]


def _counts_one_in_secret(answer: Answer) -> None:
    (gone,) = [one for one in answer["reports"] if one["device"] == "cow-3"]
    answer["reports"].remove(gone)
    answer["accepted"] -= 1
    for fold in answer["sums"].values():
        for one in fold:
            one["devices"] -= 1
            one["weight"] -= 1


def _swaps_two_seals(answer: Answer) -> None:
    first, second = answer["reports"][:2]
    first["seals"], second["seals"] = second["seals"], first["seals"]


def _swaps_nonces_and_seals(answer: Answer) -> None:
    first, second = answer["reports"][:2]
    for name in ("nonce", "seals"):
        first[name], second[name] = second[name], first[name]


def _changes_values(answer: Answer) -> None:
    ((one,),) = answer["sums"].values()
    values = np.frombuffer(one["values"], "<i8").copy()
    values[3] = (values[3] + (1 << 15)) % (1 << 16)
    one["values"] = values.tobytes()


@pytest.mark.parametrize(
    ("meddle", "why"),
    [
        (_counts_one_in_secret, "beyond-range"),
        (_changes_values, "beyond-range"),
        (_swaps_two_seals, "broken-seal"),
        (_swaps_nonces_and_seals, "broken-seal"),
    ],
)
def test_a_gateway_that_lies_about_a_set_gets_nothing_out_of_it(
    tmp_path: Path, meddle: Any, why: str
) -> None:
    site = MaskedSite(tmp_path, seed=2, devices=5)
    transport = SiteTransport(site)

    def meddles(operation: Operation, answer: Answer) -> Answer:
        if operation is Operation.COLLECT and "sums" in answer:
            meddle(answer)
        return answer

    transport.meddles = meddles
    with masked_campaign(site, aggregation={"rule": "fedavg"}) as (store, campaign):
        drive(site, store, campaign, transport)
        assert [one["why"] for one in sets_of(store, campaign)] == [why]
        assert store.latest_weights(campaign).version == 0
    site.close()


def _claims_a_stranger(answer: Answer) -> None:
    answer["reports"][0]["device"] = "fox-1"


def _reports_one_too_few(answer: Answer) -> None:
    answer["reports"].pop()


def _sums_other_devices(answer: Answer) -> None:
    ((one,),) = answer["sums"].values()
    one["devices"] -= 1


def _cuts_values(answer: Answer) -> None:
    ((one,),) = answer["sums"].values()
    one["values"] = one["values"][:-8]


def _is_not_modulo(answer: Answer) -> None:
    ((one,),) = answer["sums"].values()
    one["values"] = (np.frombuffer(one["values"], "<i8") + (1 << 16)).astype("<i8").tobytes()


def _loses_a_seal(answer: Answer) -> None:
    answer["reports"][0]["seals"] = answer["reports"][0]["seals"][:-1]


@pytest.mark.parametrize(
    "meddle",
    [
        _claims_a_stranger,
        _reports_one_too_few,
        _sums_other_devices,
        _cuts_values,
        _is_not_modulo,
        _loses_a_seal,
    ],
)
def test_an_answer_that_cannot_be_puts_its_gateway_in_quarantine_before_anybody_is_asked(
    tmp_path: Path, meddle: Any
) -> None:
    site = MaskedSite(tmp_path, seed=2, devices=5)
    transport = SiteTransport(site)

    def meddles(operation: Operation, answer: Answer) -> Answer:
        if operation is Operation.COLLECT and "sums" in answer:
            meddle(answer)
        return answer

    transport.meddles = meddles
    with masked_campaign(site, aggregation={"rule": "fedavg"}) as (store, campaign):
        drive(site, store, campaign, transport)
        assert store.quarantined(campaign).keys() == {GATEWAY}
        assert site.unmaskers[0].asked == 0
    site.close()


def test_who_has_a_brokers_password_can_neither_command_a_device_nor_read_its_delta(
    tmp_path: Path,
) -> None:
    site = MaskedSite(tmp_path, seed=2, devices=6)
    with masked_campaign(site) as (store, campaign):
        forged: list[Task] = []

        def forge() -> None:
            tasks = {
                topic: payload
                for topic, payload in site.broker.retained.items()
                if topic.endswith("/task")
            }
            for topic, payload in tasks.items():
                task = Task.decode(payload)
                cheap = Task(**{**vars(task), "epochs": 9, "least_devices": 2})
                unsigned = Task(**{**vars(task), "round": 5, "signature": b"", "seed": 3})
                other = Task(**{**vars(task), "plan": PLANS_BY_SIZE[0]})
                for one in (cheap, unsigned, other):
                    forged.append(one)
                    site.broker._publish(None, topic, one.encode(), False)

        for seconds in (4, 8, 12, 20):
            site.clock.call_later(seconds, forge)
        assert drive(site, store, campaign, SiteTransport(site)) == "finished"
        assert_bit_equal_to_plain(site, store, campaign)
        assert len(forged) > 6
        assert sum(device.forgeries for device in site.devices.values()) >= len(forged) // 2
        assert store.round(campaign, 1).result["counted"] == 6
    site.close()


def test_a_delta_with_a_stolen_device_password_spoils_its_set_and_no_more(tmp_path: Path) -> None:
    site = MaskedSite(tmp_path, seed=2, devices=12)
    victim = site.devices["cow-5"]
    with masked_campaign(site) as (store, campaign):

        def forge() -> None:
            if victim.task is None or victim.delta:
                return
            task = victim.task
            size = 12 + SEAL_BYTES + 2 * PLANS[task.plan.hex()].delta_values
            (delta,) = delta_chunks(task, np.zeros(0, np.int32), 9, coded_all=bytes(size))
            topic = topics.delta(FLEET, GATEWAY, "cow-5")
            site.broker._publish(None, topic, delta.encode(), False)

        for seconds in range(2, 12):
            site.clock.call_later(seconds, forge)
        assert drive(site, store, campaign, SiteTransport(site)) == "finished"
        result = store.round(campaign, 1).result
        assert Counter(one["why"] for one in result["sets"]) == {"broken-seal": 1, "": 3}
        assert result["failed"] == {"cow-5": "broken-seal"}
    site.close()


def test_masked_values_of_another_length_are_refused_by_the_gateway(tmp_path: Path) -> None:
    site = MaskedSite(tmp_path, seed=2, devices=7)
    victim = site.devices["cow-5"]
    make = victim.make_delta

    def longer(task: Task, dice: np.random.Generator) -> list[Any]:
        (made,) = make(task, dice)
        return delta_chunks(task, np.zeros(0, np.int32), 9, coded_all=made.coded + b"xx")

    victim.make_delta = longer  # type: ignore[method-assign]
    with masked_campaign(site, deadline_seconds=300) as (store, campaign):
        assert drive(site, store, campaign, SiteTransport(site)) == "finished"
        result = store.round(campaign, 1).result
        assert result["refused"].keys() == {"coding"}
        assert result["failed"] == {"cow-5": "coding"}
    site.close()
