"""Views: dimensions of an ONNX tensor, each a run of axes of a tensor of the float graph."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, TypeAlias

from codegen.graph.floats import ChannelsFirst
from codegen.graph.ir import Padding


@dataclasses.dataclass(frozen=True, eq=False)
class Axis:
    """One axis of a tensor, compared by identity; axes of size 1 are left out everywhere."""

    size: int


Group: TypeAlias = tuple[Axis, ...]
"""Axes that make one dimension together, the last one fastest; () is a dimension of size 1."""


def size_of(group: Group) -> int:
    """Elements along a dimension."""
    return math.prod(axis.size for axis in group)


@dataclasses.dataclass(frozen=True)
class View:
    """An ONNX tensor: dimensions over the axes of a tensor of the float graph."""

    tensor: str
    dims: tuple[Group, ...]
    padding: Padding = dataclasses.field(default_factory=Padding)
    after: Literal["", "Softmax", "Sigmoid"] = ""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Its shape without regard to padding."""
        return tuple(size_of(group) for group in self.dims)


@dataclasses.dataclass(frozen=True)
class Roles:
    """Which axes of a tensor are its channels, height and width."""

    channels: Group
    height: Group
    width: Group

    @property
    def shape(self) -> ChannelsFirst:
        """(channels, height, width)."""
        return size_of(self.channels), size_of(self.height), size_of(self.width)


def axes_of(size: int) -> Group:
    """A dimension of ``size`` as axes of its own."""
    return (Axis(size),) if size > 1 else ()


def picture_roles(dims: tuple[Group, ...]) -> Roles:
    """Dimensions (batch, channels, [height,] [width]) as what they are."""
    return Roles(dims[1], dims[2] if len(dims) == 4 else (), dims[-1] if len(dims) > 2 else ())


def picture_dims(roles: Roles, rank: int) -> tuple[Group, ...]:
    """Dimensions (batch, channels, ...) of a picture: rank 3 has no height, rank 2 no width."""
    if rank == 4:
        return (), roles.channels, roles.height, roles.width
    return ((), roles.channels, roles.width) if rank == 3 else ((), roles.channels)


def channels_last_dims(roles: Roles, rank: int) -> tuple[Group, ...]:
    """The same with the channels behind."""
    batch, channels, *sides = picture_dims(roles, rank)
    return (batch, *sides, channels)
