"""The registry over each database, and that a database filters as the filter itself does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from fleet.clock import VirtualClock
from fleet.errors import RegistryError
from fleet.registry import Device, Filter, NewDevice, Observed
from fleet.registry.filters import FIELDS
from fleet.store import Registry, SqlStore
from tests.conftest import examples
from tests.fleet.store.conftest import database

EVERYONE = Filter.parse("")
NAMES = ("cow-1", "cow-2", "Cow-3", "hen_1", "hen%2", "x")


def new(device: str, site: str = "barn", **labels: str) -> NewDevice:
    return NewDevice(device=device, site=site, labels=labels)


def heard(**changes: Any) -> Observed:
    said = {
        "gateway": "gw",
        "board": "stm32f746",
        "bundle": "b" * 64,
        "current": "c" * 64,
        "free_sram_bytes": 100_000,
        "battery_percent": 90,
        "link_bits_per_second": 9600,
        "train_samples": 40,
        "held_out_samples": 20,
        "online": True,
        "last_seen": 1_699_999_990.0,
    }
    return Observed.model_validate({**said, **changes})


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def registry(
    request: pytest.FixtureRequest, new_database: Callable[[str], str | None]
) -> Iterator[Registry]:
    store = SqlStore(new_database(request.param), VirtualClock())
    yield Registry(store)
    store.close()


def names(devices: Sequence[Device]) -> list[str]:
    return [one.device for one in devices]


def test_what_was_added_comes_back_with_what_was_heard_of_it(registry: Registry) -> None:
    assert registry.add([new("cow-1", room="north"), new("cow-2")]) == 2
    assert registry.get("cow-1") == Device(
        device="cow-1", site="barn", labels={"room": "north"}, added=1_700_000_000.0
    )
    assert registry.observe({"cow-2": heard(), "stranger": heard()}) == {"stranger"}
    assert registry.get("cow-2").observed == heard()
    assert registry.preview(EVERYONE).count == 2


def test_a_list_of_devices_is_added_whole_or_not_at_all(registry: Registry) -> None:
    registry.add([new("cow-2")])
    many = [new(f"cow-{number}") for number in range(1500, 0, -1)]
    with pytest.raises(RegistryError, match="cow-2 is in the registry already; nothing was added"):
        registry.add(many)
    with pytest.raises(RegistryError, match="hen is in the registry already"):
        registry.add([new("hen"), new("hen")])
    assert names(registry.page(EVERYONE)) == ["cow-2"]


def test_pages_and_exports_have_every_device_once_in_order(registry: Registry) -> None:
    many = sorted(f"cow-{number:04}" for number in range(2500))
    registry.add(new(name) for name in reversed(many))
    pages, after = [], ""
    while page := registry.page(EVERYONE, after, 700):
        pages += names(page)
        after = page[-1].device
    assert pages == many
    assert [one.device for one in registry.export(Filter.parse("!online || true"))] == many


def test_a_preview_says_how_many_match_and_what_keeps_the_others_out(registry: Registry) -> None:
    registry.add([new(f"cow-{number}", room="ab"[number % 2]) for number in range(10)])
    registry.observe({f"cow-{number}": heard(battery_percent=10 * number) for number in range(8)})
    preview = registry.preview(Filter.parse('labels.room == "a" && battery_percent >= 40'), 1)
    assert preview.count == 2
    assert names(preview.sample) == ["cow-4"]
    assert preview.reasons == {'labels["room"] == "a"': 5, "battery_percent >= 40": 6}
    assert registry.preview(Filter.parse("false")).reasons == {"false": 10}


def test_labels_are_set_and_taken_away_one_by_one(registry: Registry) -> None:
    registry.add([new("cow", room="north", age="old")])
    assert registry.label("cow", {"room": "south", "age": None, "fur": "red"}).labels == {
        "room": "south",
        "fur": "red",
    }
    with pytest.raises(RegistryError, match="labels"):
        registry.label("cow", {"a name with spaces": "x"})
    with pytest.raises(RegistryError, match="no device hen"):
        registry.label("hen", {})


def test_a_retired_device_is_kept_and_an_erased_one_is_gone(registry: Registry) -> None:
    registry.add([new("cow"), new("hen")])
    registry.retire("cow")
    assert names(registry.page(Filter.parse("!retired"))) == ["hen"]
    registry.erase("cow")
    for use in (registry.get, registry.retire, registry.erase):
        with pytest.raises(RegistryError, match="no device cow"):
            use("cow")


@pytest.mark.parametrize(
    "wrong", [{"device": "a/b"}, {"site": ""}, {"labels": {"x": 1}}, {"more": 1}]
)
def test_a_device_that_is_none_is_refused_by_its_field(wrong: dict[str, Any]) -> None:
    (field,) = wrong
    with pytest.raises(RegistryError, match=field):
        NewDevice.parse({"device": "cow", "site": "barn", **wrong})


# ---- databases and the filter itself agree -----------------------------------------------

TEXTS = st.sampled_from(["", "a", "ab", "b", "%", "_", "cow-1", "Cow", "north", "ä", 'q"\\'])
NUMBERS = st.sampled_from([0, 1, 10, 40, 90, 100_000])


@st.composite
def comparisons(draw: st.DrawFn) -> str:
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    label = draw(st.sampled_from(["labels.room", 'labels["age"]', ""]))
    name = label or draw(st.sampled_from(sorted(FIELDS)))
    kind = "text" if label else FIELDS[name]
    if kind == "truth":
        return draw(st.sampled_from([name, f"{name} == false", f"{name} in [true]"]))
    if kind == "number":
        number = draw(NUMBERS)
        tests = [f" {sign} {number}" for sign in ("==", "!=", "<", "<=", ">", ">=")]
        tests += [f" in [{number}, 7]", " in []", " == null"]
        return draw(st.sampled_from([f"has({name})", *(name + test for test in tests)]))
    text = quoted(draw(TEXTS))
    tests = [f" == {text}", f" != {text}", f" in [{text}]", " != null"]
    tests += [f".{test}({text})" for test in ("startsWith", "endsWith", "contains")]
    return name + draw(st.sampled_from(tests))


CONDITIONS = st.recursive(
    st.one_of(comparisons(), st.sampled_from(["true", "false"])),
    lambda inner: st.one_of(
        inner.map(lambda one: f"!({one})"),
        st.tuples(inner, st.sampled_from(["&&", "||"]), inner).map(
            lambda parts: f"({parts[0]}) {parts[1]} ({parts[2]})"
        ),
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def herd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    store = SqlStore(
        database(request, request.param, tmp_path_factory.mktemp("herd")), VirtualClock()
    )
    registry = Registry(store)
    registry.add(
        NewDevice(device=name, site=site, labels=labels)
        for name, site, labels in (
            ("cow-1", "a", {"room": "north"}),
            ("cow-2", "ab", {"age": "ab", "room": "%"}),
            ("Cow-3", "b", {"room": "ä"}),
            ("hen", "a", {"age": 'q"\\'}),
            ("goat", "cow-1", {}),
        )
    )
    registry.retire("hen")
    registry.observe(
        {
            "cow-1": heard(battery_percent=None),
            "cow-2": heard(battery_percent=40, online=False, last_seen=1_699_999_900.0),
            "hen": heard(board="ab", train_samples=0, candidate="ab"),
        }
    )
    yield registry
    store.close()


@given(CONDITIONS)
@examples(300, HealthCheck.function_scoped_fixture)
def test_databases_filter_as_the_filter_itself_does(herd: Registry, text: str) -> None:
    found = Filter.parse(text)
    expected = [
        one.device for one in herd.export(EVERYONE) if found.matches(one.values(1_700_000_000.0))
    ]
    assert names(herd.page(found)) == expected
    assert herd.preview(found).count == len(expected)
