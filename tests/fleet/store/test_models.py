"""Models and their versions over each database."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from fleet.clock import VirtualClock
from fleet.errors import ModelStoreError
from fleet.protocol.manifest import Manifest
from fleet.store import Models, SqlStore, Version
from fleet.store.models import CANDIDATE, RELEASED, WITHDRAWN
from tests.fleet.coordinator import small_model
from tests.fleet.coordinator.staged_fleet import MANIFESTS, digest, variant

BLOB = small_model.blob()


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def models(
    request: pytest.FixtureRequest, new_database: Callable[[str], str | None]
) -> Iterator[Models]:
    store = SqlStore(new_database(request.param), VirtualClock())
    yield Models(store)
    store.close()


@pytest.fixture
def barn(models: Models) -> Models:
    models.import_bundle("barn", MANIFESTS["a"], BLOB, "ann")
    return models


def states(models: Models) -> list[str]:
    return [one.state for one in models.versions("barn")]


def test_a_bundle_makes_a_model_whose_first_version_is_its_weights(barn: Models) -> None:
    assert barn.get("barn").digest == "d" * 64
    assert barn.version("barn") == Version(
        "barn", 1, digest(BLOB), None, "ann", RELEASED, 1_700_000_000.0
    )
    assert barn.version("barn").name == "barn:1"
    assert barn.blob("barn", 1) == BLOB
    assert barn.manifests("barn") == {small_model.manifest("a")["bundle_id"]: MANIFESTS["a"]}


def test_further_boards_add_bundles_and_no_version_and_again_adds_nothing(barn: Models) -> None:
    for board in "bab":
        assert barn.import_bundle("barn", MANIFESTS[board], BLOB, "bob").version == 1
    assert [one.board for one in barn.bundles("barn")] == ["a", "b"]
    assert [one.source for one in barn.versions("barn")] == ["ann"]


def test_a_bundle_that_comes_again_brings_its_boards_power_and_changes_nothing_else(
    barn: Models,
) -> None:
    known = json.loads(MANIFESTS["a"])
    bundle = known["bundle_id"]
    known["plans"][0]["name"] = "other"
    barn.import_bundle("barn", json.dumps(known), BLOB, "bob")
    assert barn.manifests("barn") == {bundle: MANIFESTS["a"]}
    known = {**json.loads(MANIFESTS["a"]), "board": {"name": "a", "active_milliwatts": 132}}
    barn.import_bundle("barn", json.dumps(known), BLOB, "bob")
    manifest = Manifest.parse(barn.manifests("barn")[bundle])
    assert manifest.board.active_milliwatts == 132
    assert manifest.plans == Manifest.parse(MANIFESTS["a"]).plans


def test_new_weights_of_a_model_that_is_there_are_a_candidate(barn: Models) -> None:
    other = json.loads(MANIFESTS["b"])
    other["weights"]["sha256"] = digest(variant(1))
    made = barn.import_bundle("barn", json.dumps(other), variant(1), "bob")
    assert (made.version, made.state) == (2, CANDIDATE)
    assert barn.version("barn").version == 1, "nobody has released it"


def test_a_bundle_of_another_model_or_with_other_weights_changes_nothing(barn: Models) -> None:
    other = MANIFESTS["b"].replace("d" * 64, "e" * 64)
    with pytest.raises(ModelStoreError, match="of another model than barn"):
        barn.import_bundle("barn", other, BLOB, "ann")
    with pytest.raises(ModelStoreError, match="bring its own weights"):
        barn.import_bundle("barn", MANIFESTS["b"], BLOB + b"\0", "ann")
    assert [one.board for one in barn.bundles("barn")] == ["a"]


def test_a_bundle_belongs_to_one_model(barn: Models) -> None:
    with pytest.raises(ModelStoreError, match="is of model barn already, not of field"):
        barn.import_bundle("field", MANIFESTS["a"], BLOB, "ann")
    assert [one.model for one in barn.list()] == ["barn"]


def test_versions_are_numbered_and_the_newest_released_one_is_meant(barn: Models) -> None:
    second = barn.add_version("barn", variant(1), 1, "campaign x")
    third = barn.add_version("barn", variant(2), 2, "campaign y", RELEASED)
    assert (second.version, second.parent, second.state) == (2, 1, CANDIDATE)
    assert barn.version("barn") == third
    assert barn.set_state("barn", 3, WITHDRAWN).state == WITHDRAWN
    assert barn.version("barn").version == 1
    barn.set_state("barn", 2, RELEASED)
    assert barn.version("barn").version == 2
    assert [one.sha256 for one in barn.versions("barn")] == [
        digest(variant(number)) for number in range(3)
    ]


def test_the_same_weights_are_one_version_whoever_brings_them(barn: Models) -> None:
    first = barn.add_version("barn", variant(1), 1, "campaign x")
    again = barn.add_version("barn", variant(1), 1, "campaign y", RELEASED)
    assert (again.version, again.source, again.state) == (2, first.source, RELEASED)
    assert states(barn) == [RELEASED, RELEASED]


def test_weights_that_come_again_take_no_release_back_and_release_nothing_withdrawn(
    barn: Models,
) -> None:
    assert barn.add_version("barn", BLOB, 1, "campaign x", CANDIDATE).state == RELEASED
    barn.set_state("barn", 1, WITHDRAWN)
    assert barn.add_version("barn", BLOB, 1, "campaign x", RELEASED).state == WITHDRAWN


def test_a_version_of_another_size_is_refused(barn: Models) -> None:
    with pytest.raises(ModelStoreError, match=f"has {len(BLOB)} bytes, not 3"):
        barn.add_version("barn", b"abc", 1, "ann")


def test_weights_are_found_by_their_digest(barn: Models) -> None:
    barn.add_version("barn", variant(1), 1, "ann")
    assert barn.blob_of(digest(variant(1))) == variant(1)
    assert barn.names([digest(variant(1)), "ef" * 32]) == {digest(variant(1)): "barn:2"}
    assert barn.blob_of("ef" * 32) is None


def test_what_there_is_not_is_said_by_name(barn: Models) -> None:
    with pytest.raises(ModelStoreError, match=r"no model field; there are: barn\."):
        barn.version("field")
    with pytest.raises(ModelStoreError, match="model barn has no version 9"):
        barn.blob("barn", 9)
    barn.set_state("barn", 1, WITHDRAWN)
    with pytest.raises(ModelStoreError, match="model barn has no released version"):
        barn.version("barn")


def test_two_models_have_numbers_of_their_own(barn: Models) -> None:
    other = json.loads(MANIFESTS["b"])
    other["model"]["digest"] = "e" * 64
    assert barn.import_bundle("field", json.dumps(other), BLOB, "ann").name == "field:1"
    barn.add_version("barn", variant(1), 1, "ann")
    assert barn.add_version("field", variant(1), 1, "ann").name == "field:2"
