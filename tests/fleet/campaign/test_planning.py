from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.campaign import (
    CampaignConfig,
    DeviceInfo,
    RoundKind,
    RoundPlan,
    bounds_for_cohort,
    choose_plan,
    cohort_weight,
    eligible,
    plan_round,
    round_seed,
    schedule,
    select_cohort,
    start_request,
)
from fleet.errors import CampaignError
from fleet.protocol.manifest import Manifest
from tests.fleet.coordinator import small_model

MANIFESTS = {
    entry["bundle_id"]: Manifest.parse(json.dumps(entry))
    for entry in (small_model.manifest("a"), small_model.manifest("b"))
}
PLANS = next(iter(MANIFESTS.values())).plans
CONFIG = CampaignConfig(name="test")
WEIGHTS = "ab" * 32


def device(name: str, gateway: str = "g1", board: str = "a", **fields: object) -> DeviceInfo:
    return DeviceInfo.from_hello(gateway, small_model.device_entry(name, board, **fields))


@given(st.integers(0, 2**32 - 1), st.integers(0, 99), st.sets(st.text("abcd", min_size=1)))
def test_a_cohort_depends_on_seed_round_and_names_only(
    seed: int, number: int, names: set[str]
) -> None:
    in_order = sorted(names)
    shuffled = list(names)
    random.Random(seed).shuffle(shuffled)
    size = len(names) // 2
    cohort = select_cohort(seed, number, in_order, size)
    assert cohort == select_cohort(seed, number, shuffled, size)
    assert len(cohort) == size
    assert set(cohort) <= names


def test_cohorts_differ_between_rounds_and_use_all_devices_in_time() -> None:
    names = [f"dev-{index}" for index in range(40)]
    cohorts = [select_cohort(1, number, names, 10) for number in range(40)]
    assert len(set(cohorts)) > 30
    assert set().union(*cohorts) == set(names)


def test_a_known_cohort_stays_what_it_was() -> None:
    # A change here changes the cohorts of campaigns that run: bump nothing by accident.
    assert select_cohort(7, 3, ["a", "b", "c", "d", "e", "f"], 3) == ("d", "e", "f")
    assert round_seed(7, 3) == 2917759106


@pytest.mark.parametrize(
    ("fields", "plan"),
    [
        ({}, "large"),
        ({"free_sram_bytes": 8999}, "middle"),
        ({"free_sram_bytes": 9000}, "large"),
        ({"free_sram_bytes": 1000}, "small"),
        ({"battery_percent": 29}, "small"),
        ({"battery_percent": 30}, "large"),
        ({"battery_percent": None}, "large"),
        ({"link_bits_per_second": 1}, "small"),
        ({"link_bits_per_second": 20}, "middle"),
    ],
)
def test_a_device_gets_the_largest_plan_it_can_carry(fields: dict[str, int], plan: str) -> None:
    chosen, _ = choose_plan(device("d", **fields), PLANS, CONFIG)
    assert chosen is not None
    assert chosen.name == plan


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "no larger plan"),
        ({"free_sram_bytes": 8999}, "large needs 9000 of 8999 bytes of free SRAM"),
        ({"battery_percent": 29}, "battery 29 % is below the 30 % for middle"),
        ({"link_bits_per_second": 20}, "at 20 bit/s"),
        # What stops a device first is what it is told.
        ({"battery_percent": 29, "free_sram_bytes": 8999}, "battery 29 %"),
    ],
)
def test_the_choice_of_a_plan_is_explained(fields: dict[str, int], words: str) -> None:
    assignments, _ = eligible(CONFIG, [device("d", **fields)], MANIFESTS)
    assert words in assignments["d"].plan_reason


@pytest.mark.parametrize(
    ("kind", "train", "held_out", "why"),
    [
        (RoundKind.TRAIN, 0, 1, "no training samples"),
        (RoundKind.TRAIN, 1, 0, "no held-out samples"),
        (RoundKind.SCORE_FIRST, 0, 1, None),
        (RoundKind.SCORE_LAST, 1, 0, "no held-out samples"),
        (RoundKind.RELEASE, 0, 0, None),
        (RoundKind.ROLL_BACK, 0, 0, None),
    ],
)
def test_a_round_asks_devices_that_have_the_samples_it_needs(
    kind: RoundKind, train: int, held_out: int, why: str | None
) -> None:
    one = device("d", train_samples=train, held_out_samples=held_out)
    _, skipped = eligible(CONFIG, [one], MANIFESTS, kind=kind)
    assert skipped.get("d") == why


@pytest.mark.parametrize(("charging", "is_asked"), [(True, True), (None, True), (False, False)])
def test_devices_that_nothing_feeds_can_be_left_alone(
    charging: bool | None, is_asked: bool
) -> None:
    careful = CampaignConfig(name="test", charging_only=True)
    one = device("d", charging=charging)
    assignments, skipped = eligible(careful, [one], MANIFESTS)
    assert (bool(assignments), skipped) == (
        is_asked,
        {} if is_asked else {"d": "runs on its battery"},
    )
    assert eligible(CONFIG, [one], MANIFESTS)[0]


def test_a_low_charge_limits_nothing_while_something_fills_it_up() -> None:
    for charging, plan in ((True, "large"), (False, "small")):
        chosen, _ = choose_plan(device("d", battery_percent=5, charging=charging), PLANS, CONFIG)
        assert chosen is not None
        assert chosen.name == plan


def test_a_device_without_room_for_any_plan_is_told_why() -> None:
    chosen, reason = choose_plan(device("d", free_sram_bytes=999), PLANS, CONFIG)
    assert chosen is None
    assert "999" in reason
    assert "1000" in reason


def test_those_who_cannot_take_part_are_skipped_with_a_reason() -> None:
    config = CampaignConfig(name="test", target='device.startsWith("dev-")')
    devices = [
        device("dev-good"),
        device("dev-offline", online=False),
        device("dev-foreign", bundle="12" * 32),
        device("dev-empty", train_samples=0),
        device("dev-blind", held_out_samples=0),
        device("other"),
    ]
    assignments, skipped = eligible(config, devices, MANIFESTS)
    assert list(assignments) == ["dev-good"]
    assert skipped["dev-offline"] == "offline"
    assert "isn't part of the campaign" in skipped["dev-foreign"]
    assert skipped["dev-empty"] == "no training samples"
    assert skipped["dev-blind"] == "no held-out samples"
    assert "other" not in skipped


@pytest.mark.parametrize(
    ("target", "devices"),
    [
        ("", {"a", "b", "c"}),
        ('gateway == "g1" && battery_percent >= 50', {"a"}),
        ("battery_percent == null", {"c"}),
        ('!(device in ["a", "c"])', {"b"}),
        ('labels.room == "north"', set()),
    ],
)
def test_a_target_is_a_filter_over_what_gateways_know(target: str, devices: set[str]) -> None:
    config = CampaignConfig(name="test", target=target)
    known = [
        device("a", "g1", battery_percent=80),
        device("b", "g1", battery_percent=40),
        device("c", "g2", battery_percent=None),
    ]
    assignments, skipped = eligible(config, known, MANIFESTS)
    assert assignments.keys() == devices
    assert not skipped


def test_a_device_at_two_gateways_belongs_to_the_one_where_it_is_online() -> None:
    devices = [device("d", "g1", online=False), device("d", "g2"), device("e", "g2")]
    assignments, skipped = eligible(CONFIG, devices, MANIFESTS)
    assert assignments["d"].gateway == "g2"
    assert not skipped


def leases(count: int) -> dict[str, int]:
    return {"d": 1, **{f"d{index:02}": index + 5 for index in range(1, count + 1)}}


def fleet(count: int) -> list[DeviceInfo]:
    return [
        device(f"d{index:02}", f"g{index % 3}", "ab"[index % 2], free_sram_bytes=1000 * index)
        for index in range(1, count + 1)
    ]


@pytest.mark.parametrize("cohort", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("over", [0.0, 0.3, 2.0])
def test_targets_add_up_to_the_wanted_deltas(cohort: int, over: float) -> None:
    config = CampaignConfig(name="test", cohort_size=cohort, over_selection=over)
    plan = plan_round(config, 1, RoundKind.TRAIN, fleet(20), MANIFESTS, WEIGHTS, leases(20))
    per_gateway = {
        gateway: sum(one.gateway == gateway for one in plan.assignments)
        for gateway in plan.gateways()
    }
    assert len(plan.assignments) >= min(20, cohort)
    assert set(plan.targets) == set(per_gateway)
    assert all(1 <= plan.targets[name] <= count for name, count in per_gateway.items())
    # At least one each, so a cohort smaller than the gateways wants one more here and there.
    assert sum(plan.targets.values()) == max(cohort, len(per_gateway))


def test_the_same_fleet_in_another_order_gives_the_same_round() -> None:
    config = CampaignConfig(name="test", cohort_size=6, over_selection=0.5, seed=3)
    devices = fleet(20)
    plan = plan_round(config, 2, RoundKind.TRAIN, devices, MANIFESTS, WEIGHTS, leases(20))
    again = plan_round(config, 2, RoundKind.TRAIN, devices[::-1], MANIFESTS, WEIGHTS, leases(20))
    assert again == plan
    assert RoundPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_scoring_rounds_ask_everybody_to_train_nothing() -> None:
    config = CampaignConfig(name="test", cohort_size=2, over_selection=1.0)
    plan = plan_round(config, 0, RoundKind.SCORE_FIRST, fleet(20), MANIFESTS, WEIGHTS, leases(20))
    assert len(plan.assignments) == 20
    assert plan.kind.action == "score"
    assert sum(plan.targets.values()) == 20


def test_a_round_without_devices_says_who_was_skipped() -> None:
    with pytest.raises(CampaignError, match="d: offline"):
        plan_round(
            CONFIG, 1, RoundKind.TRAIN, [device("d", online=False)], MANIFESTS, WEIGHTS, leases(20)
        )


def test_schedule_puts_scoring_around_the_training_rounds() -> None:
    rounds = schedule(CampaignConfig(name="test", rounds=2))
    assert [(number, kind.value) for number, kind, *_ in rounds] == [
        (0, "score-first"),
        (1, "train"),
        (2, "train"),
        (3, "release"),
    ]
    scored = schedule(CampaignConfig(name="test", rounds=2, last_round="score"))
    assert scored[-1][:2] == (3, RoundKind.SCORE_LAST)
    bare = CampaignConfig(name="test", rounds=2, score_first=False, last_round="none")
    assert [step.number for step in schedule(bare)] == [1, 2]


def test_start_requests_are_accepted_by_the_gateway_as_they_are() -> None:
    from fleet.gateway.requests import StartRequest

    manifest = next(iter(MANIFESTS.values()))
    plan = plan_round(
        CONFIG, 1, RoundKind.TRAIN, fleet(9), MANIFESTS, manifest.weights.sha256, leases(9)
    )
    blob = small_model.blob()
    tasks: set[str] = set()
    for gateway in plan.gateways():
        request = start_request(CONFIG, "00" * 8, plan, gateway, MANIFESTS, {plan.weights: blob})
        again = start_request(CONFIG, "00" * 8, plan, gateway, MANIFESTS, {plan.weights: blob})
        assert request == again
        tasks |= StartRequest.parse(request).spec.tasks.keys()
    assert tasks == {one.device for one in plan.assignments}


def test_delays_are_a_rounds_own_and_go_to_gateways_with_the_tasks() -> None:
    from fleet.gateway.requests import StartRequest

    pace = {"spread_seconds": 60, "site_bytes_per_hour": 10_000_000}
    config = CampaignConfig.model_validate({"name": "test", "pace": pace})
    plan = plan_round(config, 1, RoundKind.TRAIN, fleet(9), MANIFESTS, WEIGHTS, leases(9))
    assert RoundPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    planned = {one.device: one.delay_seconds for one in plan.assignments}
    assert len(set(planned.values())) == 9
    assert plan.seconds(100) == 100 + max(planned.values())
    held_back: dict[str, float] = {}
    digest = next(iter(MANIFESTS.values())).weights.sha256
    paced = replace(plan, weights=digest)
    for gateway in plan.gateways():
        blobs = {digest: small_model.blob()}
        request = start_request(config, "00" * 8, paced, gateway, MANIFESTS, blobs)
        tasks = StartRequest.parse(request).spec.tasks
        held_back |= {name: task.delay_seconds for name, task in tasks.items()}
    assert held_back == planned


def test_gateways_of_a_site_share_its_link_and_those_of_none_have_their_own() -> None:
    config = CampaignConfig.model_validate(
        {"name": "test", "pace": {"site_bytes_per_hour": 1_000_000}}
    )
    ends = []
    for sites in ({}, {"g0": "x", "g1": "y", "g2": "z"}, {"g0": "x", "g1": "x"}):
        plan = plan_round(
            config, 1, RoundKind.TRAIN, fleet(9), MANIFESTS, WEIGHTS, leases(9), sites=sites
        )
        last: dict[str, float] = {}
        for one in plan.assignments:
            last[one.gateway] = max(one.delay_seconds, last.get(one.gateway, 0.0))
        ends.append(last)
    alone, apart, together = ends
    assert alone == apart
    assert together["g2"] == alone["g2"]
    both = max(together["g0"], together["g1"])
    assert both == pytest.approx(alone["g0"] + alone["g1"], abs=0.01)


def test_a_plan_of_before_there_were_delays_is_read() -> None:
    plan = plan_round(CONFIG, 1, RoundKind.TRAIN, fleet(3), MANIFESTS, WEIGHTS, leases(3))
    stored = plan.to_json()
    for one in stored["assignments"]:
        del one["delay_seconds"]
    assert RoundPlan.from_json(stored) == plan


def test_a_start_request_names_the_action_the_fold_and_every_devices_lease() -> None:
    config = CampaignConfig.parse(
        '{"name": "test", "aggregation": {"rule": "bucket-median", "buckets": 3}, "epochs": 2}'
    )
    for kind, action in (
        (RoundKind.SCORE_FIRST, "score"),
        (RoundKind.TRAIN, "train"),
        (RoundKind.RELEASE, "release"),
    ):
        plan = plan_round(config, 1, kind, fleet(3), MANIFESTS, WEIGHTS, leases(3))
        request = start_request(config, "00" * 8, plan, "g1", MANIFESTS, {WEIGHTS: b"x"})
        assert (request["action"], request["epochs"]) == (action, 2)
        assert request["fold"] == {"name": "buckets", "count": 3}
        (tasks,) = request["tasks"]
        assert {name: lease for name, (lease, _) in tasks["devices"].items()} == {"d01": 6}


def test_the_learning_rate_goes_down_a_cosine_from_the_first_training_round_to_the_last() -> None:
    config = CampaignConfig.parse(
        '{"name": "test", "rounds": 5, "learning_rate": 0.01, '
        '"schedule": {"name": "cosine", "last_share": 0.2}}'
    )
    rates = []
    for step in schedule(config):
        plan = plan_round(
            config,
            step.number,
            step.kind,
            fleet(3),
            MANIFESTS,
            WEIGHTS,
            leases(3),
            training_round=step.training_round,
        )
        rates.append(
            start_request(config, "00" * 8, plan, "g1", MANIFESTS, {WEIGHTS: b"x"})["learning_rate"]
        )
    # Rounds that only score have whatever their neighbour has.
    expected = [0.01, 0.01, 0.01 * (0.2 + 0.8 * 0.8535533906), 0.006, 0.01 * 0.3171572875, 0.002]
    assert rates == pytest.approx([*expected, 0.002])


def test_without_a_schedule_all_rounds_have_one_learning_rate() -> None:
    assert {CONFIG.parameters(number).learning_rate for number in range(9)} == {
        CONFIG.learning_rate
    }


def test_uniform_weights_leave_more_room_for_values_than_weights_by_samples() -> None:
    bounds = []
    for weighting in ("samples", "uniform"):
        config = CampaignConfig.model_validate({"name": "test", "weighting": weighting})
        devices = [device("d", train_samples=60_000)]
        plan = plan_round(config, 1, RoundKind.TRAIN, devices, MANIFESTS, WEIGHTS, {"d": 1})
        assert cohort_weight(config, plan) == (1 if weighting == "uniform" else 60_000)
        request = start_request(config, "00" * 8, plan, "g1", MANIFESTS, {WEIGHTS: b"x"})
        bounds.append(request["plans"][plan.assignments[0].plan]["bounds"])
    assert all(few[1] <= many[1] for few, many in zip(*bounds, strict=True))
    assert bounds[0] != bounds[1]


def test_a_device_of_another_campaigns_lease_is_skipped() -> None:
    plan = plan_round(
        CONFIG, 1, RoundKind.TRAIN, fleet(3), MANIFESTS, WEIGHTS, {"d01": 4, "d03": 9}
    )
    assert [(one.device, one.lease) for one in plan.assignments] == [("d01", 4), ("d03", 9)]
    assert plan.skipped["d02"] == "leased by another campaign"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"stale": True}, "not heard of since its gateway reached the broker"),
        ({"seen_age_seconds": 3599.0}, ""),
        ({"last_seen": 0.0, "seen_age_seconds": 1.7e9}, "what the broker kept of it"),
        ({"seen_age_seconds": 3601.0}, "last heard of 3,601 s ago, more than 3,600 s"),
    ],
)
def test_a_device_that_may_be_dead_takes_no_part(fields: dict[str, object], why: str) -> None:
    _, skipped = eligible(CONFIG, [device("d", **fields)], MANIFESTS)
    assert why in skipped["d"] if why else not skipped


def test_a_device_that_was_told_to_stay_away_may_be_silent_for_that_long() -> None:
    patient = CampaignConfig(name="test", check_in_seconds=8000, deadline_seconds=20_000)
    silent = device("d", seen_age_seconds=12_000.0)
    assert not eligible(patient, [silent], MANIFESTS)[1]
    silent = device("d", seen_age_seconds=12_700.0)
    assert "12,600 s" in eligible(patient, [silent], MANIFESTS)[1]["d"]


def test_bounds_are_those_of_the_devices_unless_the_cohort_is_too_large_for_exact_sums() -> None:
    manifest = next(iter(MANIFESTS.values()))
    plan = manifest.plan("large")
    few = bounds_for_cohort(manifest, plan, 1)
    many = bounds_for_cohort(manifest, plan, 10**6)
    assert few == [list(pair) for pair in manifest.value_bounds(plan)]
    assert [bound for _, bound in many[:2]] == [bound for _, bound in few[:2]]
    # The largest unit is head.b's: 4 steps of 256.
    exact = (2**53 - 1) // (4 * 256 * 10**6 * 2)
    assert [bound for _, bound in many[2:4]] == [exact, exact]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "x", "rounds": 0}', "rounds"),
        ('{"name": "bad name"}', "name"),
        ('{"name": "x", "round": 3}', "round"),
        ("[]", "campaign configuration"),
        ("{", "campaign configuration"),
        ('{"name": "x", "plans": ["a", "a"]}', "named twice"),
        ('{"name": "x", "check_in_seconds": 120}', "miss rounds of deadline_seconds 120"),
        ('{"name": "x", "aggregation": {"rule": "mean"}}', "aggregation"),
        ('{"name": "x", "target": "bord == 7"}', "target: .*bord is no field of a device"),
        ('{"name": "x", "learning_rate": 1e-7}', "learning_rate"),
        ('{"name": "x", "schedule": {"name": "steps"}}', r"schedule\.name"),
        (
            '{"name": "x", "learning_rate": 1e-6, "schedule": {"name": "cosine"}}',
            "last round's learning rate would be 1e-07",
        ),
    ],
)
def test_a_wrong_configuration_is_refused_by_field(text: str, message: str) -> None:
    with pytest.raises(CampaignError, match=message):
        CampaignConfig.parse(text)
