"""docs/specification/world.md names every field, with its default, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter
from pydantic_core import PydanticUndefined

from simulator.world.availability import Availability, Nights
from simulator.world.data import Data
from simulator.world.datasets.registry import AnyDataset, dataset_kinds
from simulator.world.drift import Sensor, Stuck
from simulator.world.energy import Energy
from simulator.world.faults import Faults, Malicious
from simulator.world.links import LinkClass
from simulator.world.partition import Partition, Sizes
from simulator.world.population import Population, Site, Stragglers
from simulator.world.world import World, WorldConfig

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "specification" / "world.md").read_text("utf-8")
_TABLE = re.compile(r"\| field \| default \| \|\n\|---\|---\|---\|\n((?:\|.*\n)+)")
PLAIN: dict[str, type[BaseModel]] = {
    "population": Population,
    "population.sites": Site,
    "population.stragglers": Stragglers,
    "data": Data,
    "data.stuck": Stuck,
    "links": LinkClass,
    "faults": Faults,
    "faults.malicious": Malicious,
    "energy": Energy,
    "energy.charging": Nights,
}
KINDS: dict[str, Any] = {
    "data.partition": Partition,
    "data.partition.sizes": Sizes,
    "data.sensor": Sensor,
    "availability": Availability,
}


def under(heading: str) -> str:
    """The page below a heading, up to the next one."""
    found = re.search(
        rf"^##+ {re.escape(heading)}\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL
    )
    assert found, heading
    return found[1]


def rows(text: str) -> dict[str, str]:
    """Defaults by field of the first table of fields."""
    table = _TABLE.search(text)
    assert table, text
    cells = [line.split(" | ") for line in table[1].splitlines()]
    return {one[0].strip("| `"): one[1].strip(" `|") for one in cells}


def shown(default: Any) -> str:
    """A default as the page has it."""
    if default is PydanticUndefined:
        return "required"
    if default is None:
        return "none"
    if isinstance(default, BaseModel):
        values = dict(default)
        if values.keys() == {"at", "per_day"}:
            return shown(values["at"])
        kind = values.get("kind")
        return f"{{kind: {kind}}}" if kind else "{}"
    if isinstance(default, tuple):
        low, high = default
        return f"{low:g}" if low == high else f"[{low:g}, {high:g}]"
    if isinstance(default, Mapping):
        return "{" + ", ".join(f"{name}: {shown(value)}" for name, value in default.items()) + "}"
    if isinstance(default, str):
        return default
    return f"{default:g}" if default < 1e5 else str(default)


def expected(model: type[BaseModel]) -> dict[str, str]:
    return {name: shown(field.default) for name, field in model.model_fields.items()}


@pytest.mark.parametrize("heading", PLAIN)
def test_a_section_has_a_row_for_each_field_with_its_default(heading: str) -> None:
    assert rows(under(heading)) == expected(PLAIN[heading])


@pytest.mark.parametrize("heading", KINDS)
def test_each_kind_has_a_table_of_its_fields_with_their_defaults(heading: str) -> None:
    text = under(heading)
    tables = re.split(r"^Of `([a-z-]+)`", text, flags=re.MULTILINE)[1:]
    found = dict(zip(tables[::2], map(rows, tables[1::2]), strict=True))
    kinds = get_args(get_args(KINDS[heading])[0])
    assert found == {one.model_fields["kind"].default: expected(one) for one in kinds}


def test_every_section_of_a_world_has_a_heading() -> None:
    headings = set(re.findall(r"^## (\w+)$", PAGE, re.MULTILINE))
    assert headings == set(WorldConfig.model_fields)


def test_every_data_set_is_in_the_table_with_its_settings() -> None:
    table = under("Data sets")
    for name in dataset_kinds():
        found = re.search(rf"^\| `{name}` \|.*\|([^|]*)\|$", table, re.MULTILINE)
        assert found, name
        required = {"path": "own.npz"} if name == "npz" else {}
        kind = type(TypeAdapter(AnyDataset).validate_python({"name": name, **required}))
        assert set(re.findall(r"`(\w+)`:?", found[1])) - {"yes", "no"} == set(kind.model_fields) - {
            "name"
        }


def test_the_world_of_the_page_is_one() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    made = World(WorldConfig.parse(text), 1)
    assert len(made.data.log(199)) >= 3
    assert set(yaml.safe_load(text)) == set(WorldConfig.model_fields)
