"""Finding a data set by its name: entry points of the group `tinyfleet.datasets`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Annotated

from pydantic import BeforeValidator, SerializeAsAny, ValidationError

from simulator.world.datasets.dataset import Dataset
from simulator.world.fields import problem

GROUP = "tinyfleet.datasets"


def dataset_kinds() -> list[str]:
    """Names of the data sets that are installed, sorted."""
    return sorted(entry_points(group=GROUP).names)


def _by_name(value: object) -> object:
    """The data set that a name, or its name and settings, describe."""
    if isinstance(value, Dataset):
        return value
    settings = {"name": value} if isinstance(value, str) else value
    if not isinstance(settings, Mapping) or not isinstance(settings.get("name"), str):
        raise ValueError("give a data set's name, or {name: …} with its settings")
    name = settings["name"]
    found = entry_points(group=GROUP, name=name)
    if not found:
        kinds = ", ".join(dataset_kinds()) or "none; install tinyfleet again (scripts/setup)"
        raise ValueError(f"no data set {name!r}; installed are {kinds}")
    (entry, *_) = found
    try:
        kind = entry.load()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"data set {name!r} can't be had from {entry.value}: {error}") from None
    if not (isinstance(kind, type) and issubclass(kind, Dataset)):
        raise ValueError(f"data set {name!r}: {entry.value} is no Dataset")
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise ValueError(problem(error, kind)) from None


AnyDataset = Annotated[SerializeAsAny[Dataset], BeforeValidator(_by_name)]
"""`digits`, or `{name: har, folder: …}` with the settings of that data set."""
