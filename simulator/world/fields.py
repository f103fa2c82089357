"""What the fields of a world's description are made of, and what is said about wrong ones."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from simulator.world.draws import place

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Seconds = Annotated[float, Field(ge=0.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")]
Choice = TypeVar("Choice")

DAY_SECONDS = 86_400.0
HOUR_SECONDS = 3_600.0


class Section(BaseModel):
    """A part of a world's description: frozen, and nobody writes what it doesn't know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


def _two_ends(value: object) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (value, value)
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("give a number, or [low, high]")
    return tuple(value)


def _in_order(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError(f"goes from {ends[0]:g} to {ends[1]:g}; write the smaller one first")
    return ends


Range = Annotated[tuple[float, float], BeforeValidator(_two_ends), AfterValidator(_in_order)]
"""[low, high]: each device draws its own, all between alike. One number: the same for all."""


def _no_negative(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] < 0.0:
        raise ValueError(f"begins at {ends[0]:g}; it can't be less than 0")
    return ends


PositiveRange = Annotated[Range, AfterValidator(_no_negative)]


def drawn(ends: tuple[float, float], random: np.random.Generator) -> float:
    """A number of the range, all alike."""
    return float(random.uniform(*ends))


def add_up_to_one(shares: Mapping[Any, float]) -> None:
    """Raises ValueError where they don't, within what comes of writing thirds as 0.333."""
    total = math.fsum(shares.values())
    if abs(total - 1.0) > 0.005:
        raise ValueError(f"shares add up to {total:g}; make them add up to 1")


def chosen_by_share(shares: Mapping[Choice, float], seed: int, purpose: str, device: int) -> Choice:
    """Which of the choices the device has; of a fleet so many have each as its share says."""
    names = list(shares)
    edges = np.cumsum([shares[name] for name in names])
    position = place(seed, purpose, device) * edges[-1]
    return names[min(int(np.searchsorted(edges, position, side="right")), len(names) - 1)]


def has(share: float, seed: int, purpose: str, device: int) -> bool:
    """Whether the device is one of the ``share`` that have something."""
    return share > 0.0 and place(seed, purpose, device) < share


def problem(error: ValidationError, model: type[BaseModel]) -> str:
    """The first mistake that pydantic found in a description of ``model``: field and remedy."""
    # What is missing is told last: another field may be that one, misspelt.
    first = min(error.errors(), key=lambda one: one["type"] == "missing")
    field, beside = _place(model, first["loc"])
    where = f"{field}: " if field else ""
    context = first.get("ctx", {})
    match first["type"]:
        case "extra_forbidden":
            close = difflib.get_close_matches(str(first["loc"][-1]), beside, 1)
            remedy = f"did you mean {close[0]}?" if close else f"there are {', '.join(beside)}"
            return f"{where}there is no such field; {remedy}"
        case "missing":
            return f"{where}it is missing, and there is no default"
        case "union_tag_invalid":
            return f"{where}no {_kind(context)} '{context['tag']}'; there are " + str(
                context["expected_tags"]
            )
        case "union_tag_not_found":
            return f"{where}say which {_kind(context)} it is"
        case "value_error":
            return where + first["msg"].removeprefix("Value error, ")
        case "model_type" | "model_attributes_type":
            return f"{where}it has fields of its own, and isn't {_shown(first['input'])}"
    return f"{where}{first['msg'][:1].lower()}{first['msg'][1:]}, not {_shown(first['input'])}"


def _kind(context: Mapping[str, Any]) -> str:
    return str(context["discriminator"]).strip("'")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _place(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """The path of a field as a file has it, and the names of all fields where it stands."""
    here, shown = [model], []
    for number, part in enumerate(loc):
        last = number == len(loc) - 1
        below = [one.model_fields[part].annotation for one in here if part in one.model_fields]
        tagged = [one for one in here if _is_called(one, part)]
        if tagged and not below and not last:
            here = tagged  # pydantic says which of a union it is; the file doesn't at this place
            continue
        shown.append(str(part))
        if below and not last:
            here = [found for annotation in below for found in _models_in(annotation)]
    return ".".join(shown), sorted({name for one in here for name in one.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]


def _is_called(model: type[BaseModel], tag: int | str) -> bool:
    """Whether a field that can have one value only, as ``kind``, has this one."""
    return any(get_args(one.annotation) == (tag,) for one in model.model_fields.values())
