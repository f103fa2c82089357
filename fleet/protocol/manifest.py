"""What fleet needs of a bundle's ``manifest.json`` (bundle.md).

A *coordinate* is a position in all published tensors laid end to end: those of which some plan
trains a part. A plan's delta names a subset of them, in plan order.
"""

from __future__ import annotations

import json
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fleet.errors import ManifestError
from fleet.protocol.fields import Name

STATE_UNITS_PER_INT8_STEP = 256

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Dtype = Literal["int8", "int16", "int32"]
DTYPE_BYTES: dict[str, int] = {"int8": 1, "int16": 2, "int32": 4}


class _Model(BaseModel):
    # Bundles of later versions may say more; what fleet doesn't know it doesn't need.
    model_config = ConfigDict(frozen=True, extra="ignore")


class TensorEntry(_Model):
    """One tensor of the weights blob."""

    name: str
    layer: str
    kind: Literal["weight", "bias"]
    dtype: Dtype
    shape: tuple[Annotated[int, Field(ge=1)], ...]
    offset: Annotated[int, Field(ge=0, multiple_of=4)]
    limit: Annotated[int, Field(ge=1)]
    step: tuple[float, ...]
    order: Literal["plain", "row-pairs"] = "plain"

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in the weights blob, of row pairs with what fills them up."""
        return self.places * DTYPE_BYTES[self.dtype]

    @property
    def places(self) -> int:
        """Number of values for which the blob has room."""
        # A test holds row pairs equal to the compiler's, which fleet's services don't import.
        if self.order == "plain":
            return self.size
        return -(-self.shape[0] // 2) * 2 * self._row_places

    @property
    def _row_places(self) -> int:
        return -(-prod(self.shape[1:]) // 4) * 4

    def place_of_values(self) -> NDArray[np.int64]:
        """Where each value stands among the tensor's places in the blob; shape (size,)."""
        if self.order == "plain":
            return np.arange(self.size, dtype=np.int64)
        row = np.arange(self.shape[0], dtype=np.int64)[:, None]
        column = np.arange(prod(self.shape[1:]), dtype=np.int64)
        return (row // 2 * 2 * self._row_places + 2 * column + row % 2).ravel()


class Segment(_Model):
    """Delta values of one tensor: ``channels`` are runs (start, count) of its last axis."""

    tensor: str
    channels: Annotated[tuple[tuple[Count, Annotated[int, Field(ge=1)]], ...], Field(min_length=1)]
    values: Annotated[int, Field(ge=1)]
    shift: Annotated[int, Field(ge=0, le=31)]
    personal: bool = False
    """Whether it stays on the device in a campaign that personalizes."""

    @property
    def positions(self) -> NDArray[np.int64]:
        """The positions of the last axis, ascending."""
        return np.concatenate([np.arange(start, start + n) for start, n in self.channels])


class PlanEntry(_Model):
    """One of the bundle's update plans."""

    id: Digest
    name: str
    delta_values: Count
    pool_bytes: Count
    segments: tuple[Segment, ...]

    @property
    def personal_values(self) -> int:
        """Number of values that stay on the device in a campaign that personalizes."""
        return sum(one.values for one in self.segments if one.personal)

    def shared(self) -> PlanEntry:
        """What of it is sent then: a delta of the other values, in the same order."""
        segments = tuple(one for one in self.segments if not one.personal)
        values = sum(one.values for one in segments)
        return self.model_copy(update={"segments": segments, "delta_values": values})


class WeightsEntry(_Model):
    """The weights blob, version 0."""

    bytes: Annotated[int, Field(ge=1)]
    sha256: Digest
    file: str


class InputEntry(_Model):
    """What the model's input looks like."""

    shape: tuple[int, int, int]
    scale: float
    zero_point: int


class ModelEntry(_Model):
    """The model that the bundle was compiled from; ``digest`` says what weights' bytes mean.

    ``parameters`` counts all weights and biases, also those that no version brings. ``classes``
    are its outputs, whatever the ``loss``; ``target_scale`` is there where samples have targets.
    """

    name: str
    digest: Digest
    onnx_sha256: Digest
    input: InputEntry
    classes: int
    parameters: Count
    loss: str = "cross-entropy"
    target_scale: float | None = None

    @property
    def labels(self) -> int:
        """Labels of samples are below it."""
        if self.loss == "binary":
            return 1 << self.classes
        return self.classes if self.loss == "cross-entropy" else 1 << 16

    @property
    def has_accuracy(self) -> bool:
        """Whether outputs are right or wrong, as classes and answers are; values have a loss only.

        Where they aren't, labels of samples play no part.
        """
        return self.loss in ("cross-entropy", "binary")


class BoardEntry(_Model):
    """The board that the bundle was compiled for.

    `active_milliwatts` is what its microcontroller takes while it computes, where that is known.
    """

    name: Name
    active_milliwatts: Annotated[int, Field(ge=1)] | None = None


class Manifest(_Model):
    """A bundle's manifest, checked for what its parts say about each other."""

    format: Literal["tinyfleet-manifest/2"]
    bundle_id: Digest
    model: ModelEntry
    board: BoardEntry
    weights: WeightsEntry
    tensors: tuple[TensorEntry, ...]
    coordinates: Count
    plans: tuple[PlanEntry, ...]

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        names = [tensor.name for tensor in self.tensors]
        if len(set(names)) != len(names):
            raise ValueError("two tensors have one name")
        if sum(tensor.size for tensor in self.tensors) != self.coordinates:
            raise ValueError(f"the tensors don't add up to {self.coordinates} coordinates")
        spans = sorted((t.offset, t.offset + t.bytes, t.name) for t in self.tensors)
        for (_, end, before), (start, _, after) in pairwise(spans):
            if start < end:
                raise ValueError(f"tensors {before} and {after} overlap in the blob")
        if spans and spans[-1][1] > self.weights.bytes:
            raise ValueError(f"tensor {spans[-1][2]} lies beyond the end of the blob")
        for plan in self.plans:
            self._check_plan(plan)
        return self

    def _check_plan(self, plan: PlanEntry) -> None:
        tensors = {tensor.name: tensor for tensor in self.tensors}
        for segment in plan.segments:
            tensor = tensors.get(segment.tensor)
            if tensor is None:
                raise ValueError(f"plan {plan.name} names no tensor: {segment.tensor}")
            last = tensor.shape[-1]
            ends = [start + count for start, count in segment.channels]
            if any(
                start < end for end, (start, _) in zip(ends, segment.channels[1:], strict=False)
            ):
                raise ValueError(f"plan {plan.name} has channels of {segment.tensor} out of order")
            if ends[-1] > last:
                raise ValueError(f"plan {plan.name} goes beyond the end of {segment.tensor}")
            if tensor.size // last * segment.positions.size != segment.values:
                raise ValueError(f"plan {plan.name} miscounts the values of {segment.tensor}")
        if sum(segment.values for segment in plan.segments) != plan.delta_values:
            raise ValueError(f"the segments of plan {plan.name} don't add up to delta_values")

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """The manifest in file ``path``, or in the bundle folder ``path``; else ManifestError."""
        if path.is_dir():
            path = path / "manifest.json"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ManifestError(
                f"{path}: can't be read ({error}); is this the folder that "
                f"'tinyfleet compile' wrote?"
            ) from None
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str | bytes, source: str = "manifest.json") -> Manifest:
        """The manifest in a JSON text; ``source`` names it in a ManifestError."""
        try:
            return cls.model_validate(json.loads(text))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "as a whole"
            raise ManifestError(
                f"{source}: {where}: {first['msg']}; compile the bundle again"
            ) from None
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{source}: isn't JSON ({error}); compile it again") from None

    def plan(self, plan_id: str) -> PlanEntry:
        """The plan with this id (hex) or name; ManifestError with those that exist."""
        for plan in self.plans:
            if plan_id in (plan.id, plan.name):
                return plan
        known = ", ".join(f"{plan.name} ({plan.id[:8]})" for plan in self.plans)
        raise ManifestError(f"no plan {plan_id!r} in bundle {self.bundle_id[:8]}; it has {known}")

    def tensor_coordinates(self) -> dict[str, int]:
        """The coordinate of each tensor's first value."""
        first, coordinate = {}, 0
        for tensor in self.tensors:
            first[tensor.name] = coordinate
            coordinate += tensor.size
        return first

    def plan_coordinates(self, plan: PlanEntry) -> NDArray[np.int64]:
        """Coordinate of every delta value in plan order; shape (delta_values,)."""
        first = self.tensor_coordinates()
        shapes = {tensor.name: tensor.shape for tensor in self.tensors}
        parts = []
        for segment in plan.segments:
            shape = shapes[segment.tensor]
            rows = np.arange(prod(shape[:-1]), dtype=np.int64)[:, None] * shape[-1]
            parts.append((first[segment.tensor] + rows + segment.positions).ravel())
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def steps_per_unit(self, plan: PlanEntry) -> NDArray[np.float64]:
        """Integer steps of its tensor that one unit of each delta value is; (delta_values,)."""
        dtypes = {tensor.name: tensor.dtype for tensor in self.tensors}
        parts = []
        for segment in plan.segments:
            per_step = STATE_UNITS_PER_INT8_STEP if dtypes[segment.tensor] == "int8" else 1
            parts.append(np.full(segment.values, 2.0**segment.shift / per_step))
        return np.concatenate(parts) if parts else np.empty(0, np.float64)

    def value_bounds(self, plan: PlanEntry) -> list[tuple[int, int]]:
        """Largest magnitude that a device can send, as (values, bound) per segment in plan order.

        The device clamps its state to ±limit and the blob's values lie there too, so that a
        change is at most 2·limit steps; arithmetic.md, Delta, says how it is rounded.
        """
        tensors = {tensor.name: tensor for tensor in self.tensors}
        bounds = []
        for segment in plan.segments:
            tensor = tensors[segment.tensor]
            per_step = STATE_UNITS_PER_INT8_STEP if tensor.dtype == "int8" else 1
            # Rounded up: floor(-x) = -ceil(x), so that it holds at the lower end as well.
            largest = (2 * tensor.limit * per_step + (1 << segment.shift) - 1) >> segment.shift
            bounds.append((segment.values, largest))
        return bounds
