"""Campaigns of kind personalize: what each round does, and what of a delta is left to send."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from fleet.campaign import CampaignConfig, RoundKind, plan_round, schedule, start_request
from fleet.campaign.planning import personal_of
from fleet.campaign.stages import paired_scores
from fleet.campaign.start_requests import round_parameters
from fleet.coordinator.creation import new_campaign
from fleet.errors import CampaignError
from fleet.protocol.manifest import Manifest
from fleet.protocol.numbers import Personal
from fleet.store import SqlStore, sqlite_url
from tests.fleet.campaign.test_planning import WEIGHTS, device
from tests.fleet.coordinator import small_model


def manifest(board: str = "a") -> dict[str, Any]:
    """The small model, whose head is personal in two of its three plans."""
    made = small_model.manifest(board)
    for plan in made["plans"]:
        if plan["name"] != "small":
            for segment in plan["segments"]:
                if segment["tensor"].startswith("head"):
                    segment["personal"] = True
    return made


MANIFEST = Manifest.parse(json.dumps(manifest()))


def config(way: str = "fedper", **fields: Any) -> CampaignConfig:
    own = {"way": way, **fields.pop("personalize", {})}
    return CampaignConfig(name="own", kind="personalize", rounds=3, personalize=own, **fields)


def kinds(of: CampaignConfig) -> list[RoundKind]:
    return [step.kind for step in schedule(of)]


@pytest.mark.parametrize(
    ("way", "trains_with", "values"),
    [
        ("fedper", Personal.BESIDE, {"middle": 22, "large": 72 + 24 + 4 + 6}),
        ("fedbabu", Personal.FROZEN, {"middle": 22, "large": 72 + 24 + 4 + 6}),
        ("fine-tune-last", Personal.NOTHING, {"middle": 22 + 21, "large": 106 + 21}),
    ],
)
def test_a_way_says_what_is_trained_and_what_is_sent(
    way: str, trains_with: Personal, values: dict[str, int]
) -> None:
    of = config(way)
    seen = of.manifest(MANIFEST)
    assert {plan.name: plan.delta_values for plan in seen.plans} == values
    assert personal_of(of, RoundKind.TRAIN) is trains_with
    assert personal_of(of, RoundKind.TRAIN_LOCAL) is Personal.LOCAL
    assert personal_of(of, RoundKind.PERSONALIZE) is Personal.ALONE
    assert personal_of(of, RoundKind.RELEASE) is Personal.BESIDE
    for plan in seen.plans:
        # What is left keeps its order, its places and its bounds.
        whole = MANIFEST.plan(plan.id)
        left = seen.plan_coordinates(plan)
        of_head = MANIFEST.tensor_coordinates()["head.w"]
        everything = MANIFEST.plan_coordinates(whole)
        if trains_with is not Personal.NOTHING:
            everything = everything[everything < of_head]
        assert np.array_equal(left, everything)
        assert len(seen.steps_per_unit(plan)) == plan.delta_values
        assert sum(count for count, _ in seen.value_bounds(plan)) == plan.delta_values


def test_devices_tune_after_the_release_and_train_alone_before_it() -> None:
    assert kinds(config("fedper", score_first=False)) == [RoundKind.TRAIN] * 3 + [RoundKind.RELEASE]
    later = config("fedbabu", personalize={"tuning_rounds": 2, "local_rounds": 1})
    assert kinds(later) == [
        RoundKind.SCORE_FIRST,
        *[RoundKind.TRAIN] * 3,
        RoundKind.TRAIN_LOCAL,
        RoundKind.RELEASE,
        *[RoundKind.PERSONALIZE] * 2,
    ]
    numbers = [step.number for step in schedule(later)]
    assert numbers == sorted(set(numbers))


def test_tuning_has_a_rate_and_epochs_of_its_own() -> None:
    of = config(
        "fedbabu",
        epochs=2,
        learning_rate=0.1,
        schedule={"name": "cosine", "last_share": 0.1},
        personalize={"tuning_epochs": 9, "tuning_learning_rate": 0.5, "local_rounds": 1},
    )
    found = {}
    for step in schedule(of):
        plan = plan_round(
            of,
            step.number,
            step.kind,
            [device("d1", free_sram_bytes=9500)],
            {MANIFEST.bundle_id: of.manifest(MANIFEST)},
            WEIGHTS,
            {"d1": 1},
            training_round=step.training_round,
        )
        asked = round_parameters(of, plan)
        request = start_request(
            of, "c" * 16, plan, "g1", {MANIFEST.bundle_id: of.manifest(MANIFEST)}, {WEIGHTS: b"w"}
        )
        assert request["personal"] == personal_of(of, step.kind)
        assert request["epochs"] == asked.epochs
        assert request["action"] == step.kind.action
        (size,) = request["plans"].values()
        assert size["values"] == 106
        found[step.kind] = (asked.epochs, asked.learning_rate)
    assert found[RoundKind.PERSONALIZE] == (9, 0.5)
    assert found[RoundKind.TRAIN_LOCAL] == (2, 0.1)
    assert found[RoundKind.TRAIN] == (2, pytest.approx(0.01))  # the last of them


@pytest.mark.parametrize("kind", ["adapt", "evaluate", "rollout"])
def test_other_campaigns_ask_for_nothing_personal(kind: str) -> None:
    of = CampaignConfig.model_validate({"name": "plain", "kind": kind})
    assert of.manifest(MANIFEST) is MANIFEST
    assert {personal_of(of, one) for one in RoundKind} == {Personal.NOTHING}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"last_round": "none"}, "personalize takes release"),
        ({"kind": "adapt", "personalize": {"way": "fedbabu"}}, "not adapt"),
        ({"personalize": {"way": "magic"}}, "personalize.way"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(CampaignError, match=why):
        CampaignConfig.parse(json.dumps({"name": "own", "kind": "personalize", **fields}))


def test_bundles_without_personal_tensors_are_refused(tmp_path: Any) -> None:
    store = SqlStore(sqlite_url(tmp_path / "store.sqlite"))
    try:
        with pytest.raises(CampaignError, match="no plan of the bundles has personal tensors"):
            new_campaign(store, config(), small_model.manifest_texts("a"), small_model.blob())
        texts = {"a": json.dumps(manifest())}
        assert new_campaign(store, config(), texts, small_model.blob())
    finally:
        store.close()


def test_gates_judge_a_device_by_the_best_that_it_has() -> None:
    def report(device: str, before: int, **own: Any) -> dict[str, Any]:
        return {"device": device, "held_out": 10, "correct_before": before, **own}

    first = [report("a", 6), report("b", 6, correct_after=6)]
    last = [
        report("a", 3, correct_after=8, correct_local=None, kept="shared"),
        report("b", 5, correct_after=9),  # of an ordinary round: after training
    ]
    found = {one.device: one for one in paired_scores(first, last, {})}
    assert (found["a"].correct_before, found["a"].correct_after) == (6, 8)
    assert (found["b"].correct_before, found["b"].correct_after) == (6, 5)
