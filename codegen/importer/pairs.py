"""What the importer does with two tensors, element by element; repeats of one."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from codegen.importer.nodes import Node
from codegen.importer.state import ImportState
from codegen.importer.views import Axis, Group, Roles, View, axes_of, picture_roles, size_of
from codegen.operators.add import FloatAdd
from codegen.operators.expand import Expand
from codegen.operators.gather import Gather
from codegen.operators.product import FloatProduct
from codegen.operators.rearrange import Rearrange, by_axis


class _Pair(NamedTuple):
    """Two tensors; axes and dimensions of what both make together, element by element."""

    views: list[View]
    whole: list[bool]
    roles: Roles
    dims: tuple[Group, ...]


def sum_of_two(state: ImportState, node: Node, *, subtracts: bool) -> None:
    """Add or Sub of two tensors."""
    pair = _pair(state, node, "subtracts" if subtracts else "adds")
    first, second = (_expanded(state, node, pair, operand) for operand in (0, 1))
    name = state.unique(node.name)
    op = FloatAdd(name, (first, second), name, subtracts=subtracts)
    state.append(node, op, pair.roles, pair.dims)


def product_of_two(state: ImportState, node: Node) -> None:
    """Mul of two tensors: the first, or the one that is whole, with the other."""
    pair = _pair(state, node, "multiplies")
    large = 1 if pair.whole == [False, True] else 0
    name = state.unique(node.name)
    tensors = (_expanded(state, node, pair, large), pair.views[1 - large].tensor)
    state.append(node, FloatProduct(name, tensors, name), pair.roles, pair.dims)


def _pair(state: ImportState, node: Node, verb: str) -> _Pair:
    views = [state.view(node, index) for index in (0, 1)]
    if not _fits(state, node, views):
        views = [state.in_order(node, index, view) for index, view in enumerate(views)]
    if not _fits(state, node, views) and all(_is_picture(view) for view in views):
        views = [state.picture(node, index)[0] for index in (0, 1)]
    if not _fits(state, node, views):
        shown = " and ".join(str(list(view.sizes)) for view in views)
        node.refuse(
            f"{verb} tensors of shapes {shown}; both must be alike, or one of size 1, along "
            "channels, height and width: put a 1x1 Conv before one, or transpose it"
        )
    one, other = (state.roles(node, view) for view in views)
    shape = tuple(map(max, one.shape, other.shape))
    whole = [each.shape == shape for each in (one, other)]
    # Axes are those of a whole tensor, or of the first where it is larger than 1.
    large = 1 if whole == [False, True] else 0
    sides = [_sides(one), _sides(other)]
    roles = Roles(*(a or b for a, b in zip(sides[large], sides[1 - large], strict=True)))
    dims = _dims(views)
    groups = tuple(a or b for a, b in zip(dims[large], dims[1 - large], strict=True))
    every = [axis for side in _sides(roles) for axis in side]
    if len(set(every)) < len(every):
        # Two views of one tensor, of which each has an axis elsewhere: these are two of the result.
        own = {axis: Axis(axis.size) for side in sides[large] for axis in side}
        roles = Roles(
            *(
                tuple(own[axis] for axis in a) or b
                for a, b in zip(sides[large], sides[1 - large], strict=True)
            )
        )
        groups = tuple(
            tuple(own[axis] for axis in a) or b
            for a, b in zip(dims[large], dims[1 - large], strict=True)
        )
    return _Pair(views, whole, roles, groups)


def _is_picture(view: View) -> bool:
    return view.dims[0] == () and len(view.dims) in (2, 3, 4)


def _sides(roles: Roles) -> tuple[Group, Group, Group]:
    return roles.channels, roles.height, roles.width


def _dims(views: list[View]) -> list[tuple[Group, ...]]:
    """Dimensions of both, with those in front of the shorter one that it lacks."""
    rank = max(len(view.dims) for view in views)
    return [((),) * (rank - len(view.dims)) + view.dims for view in views]


def _fits(state: ImportState, node: Node, views: list[View]) -> bool:
    """Whether the tensors lie alike along each dimension in which both are larger than 1, and what
    one lacks in a dimension of the other isn't in a different one."""
    both = [state.roles(node, view) for view in views]
    shapes = zip(*(roles.shape for roles in both), strict=True)
    arranged = [
        [_arrangement(group, roles) for group in dims]
        for dims, roles in zip(_dims(views), both, strict=True)
    ]
    have = [{run[0] for runs in each for run in runs} for each in arranged]
    return all(a == b or 1 in (a, b) for a, b in shapes) and all(
        a == b if a and b else not have[bool(a)] & {run[0] for run in a or b}
        for a, b in zip(*arranged, strict=True)
    )


def _arrangement(group: Group, roles: Roles) -> list[tuple[str, int, int]]:
    """A dimension as runs of channels, height and width, to compare two tensors.

    Of each run: whose it is, how far apart its entries are there, and how many there are.
    """
    distances: dict[Axis, tuple[str, int]] = {}
    for role, side in zip("CHW", _sides(roles), strict=True):
        for place, axis in enumerate(side):
            distances[axis] = role, size_of(side[place + 1 :])
    result: list[tuple[str, int, int]] = []
    for axis in group:
        role, distance = distances[axis]
        if result and result[-1][:2] == (role, distance * axis.size):
            result[-1] = role, distance, result[-1][2] * axis.size
        else:
            result.append((role, distance, axis.size))
    return result


def _expanded(state: ImportState, node: Node, pair: _Pair, operand: int) -> str:
    """The tensor of one input, repeated until it is whole."""
    source = pair.views[operand].tensor
    if pair.whole[operand]:
        return source
    return _repeated(state, f"{node.name}_{'ab'[operand]}", source, pair.roles)


def _repeated(state: ImportState, name: str, source: str, roles: Roles) -> str:
    """The tensor ``source``, repeated along the axes of ``roles`` in which it has one entry."""
    name = state.unique(name)
    state.add(Expand(name, source, name, roles.shape), roles)
    return name


def expand(state: ImportState, node: Node) -> None:
    """Expand to a constant shape."""
    sizes = state.view(node).sizes
    wanted = [int(size) for size in state.constant(node, 1, "shape").reshape(-1)]
    wanted = [1] * (len(sizes) - len(wanted)) + wanted
    if len(wanted) > len(sizes) or any(
        b not in (1, a) and a != 1 for a, b in zip(sizes, wanted, strict=False)
    ):
        node.refuse(f"expands {list(sizes)} to {wanted}; reshape it to as many dimensions first")
    repeat(state, node, [max(b // a, 1) for a, b in zip(sizes, wanted, strict=True)])


def tile(state: ImportState, node: Node) -> None:
    """Tile by constant repeats."""
    repeat(state, node, [int(n) for n in state.constant(node, 1, "repeats").reshape(-1)])


def repeat(state: ImportState, node: Node, counts: list[int]) -> None:
    """Along each dimension, so many times what there is."""
    view = state.view(node)
    if len(counts) != len(view.dims) or min(counts) < 1 or counts[0] != 1:
        node.refuse(
            f"repeats {list(view.sizes)} by {counts}; channels, height and width can be repeated, "
            "the batch can't"
        )
    if not state.is_other_than_picture(view):
        view, roles = state.picture(node)
        view = _several(state, node, view, counts)
        grown = [axes_of(n) if d == () else d for d, n in zip(view.dims, counts, strict=True)]
        if grown != list(view.dims):
            roles = picture_roles(tuple(grown))
            name = _repeated(state, node.name, view.tensor, roles)
            view = dataclasses.replace(view, tensor=name, dims=tuple(grown))
    else:
        view = _several(state, node, view, counts)
        for place, count in enumerate(counts):
            if view.dims[place] == () and count > 1:
                view = _inserted(state, node, view, place, count)
    state.views[node.outputs[0]] = view


def _several(state: ImportState, node: Node, view: View, counts: list[int]) -> View:
    """``view`` with all entries of each dimension larger than 1 so many times over."""
    for place, (group, count) in enumerate(zip(view.dims, counts, strict=True)):
        if group != () and count > 1:
            view = state.take(node, view, place, list(range(size_of(group))) * count)
    return view


def _inserted(state: ImportState, node: Node, view: View, place: int, count: int) -> View:
    """``view`` with ``count`` copies along a dimension of size 1: of each entry of the dimension
    before it, as upsampling does, or of the whole along an axis that the tensor doesn't have."""
    roles, before, new = state.roles(node, view), view.dims[place - 1], axes_of(count)
    name = state.unique(node.name)
    if before != () and roles.channels[-len(before) :] == before:
        made = dataclasses.replace(roles, channels=(*roles.channels, *new))
        indices = np.repeat(np.arange(size_of(roles.channels)), count)
        state.add(Gather(name, view.tensor, name, "channels", tuple(indices.tolist())), made)
    elif before != () and before in (roles.height[-len(before) :], roles.width[-len(before) :]):
        along = roles.height[-len(before) :] == before
        counts, sides = ((count, 1) if along else (1, count)), (roles.height, roles.width)
        lines = [np.repeat(np.arange(size_of(s)), n) for s, n in zip(sides, counts, strict=True)]
        made = dataclasses.replace(
            roles, **{"height": (*sides[0], *new)} if along else {"width": (*sides[1], *new)}
        )
        places = by_axis(*(each.tolist() for each in lines))
        state.add(Rearrange(name, view.tensor, name, *places), made)
    elif () in (roles.height, roles.width):
        free = "width" if roles.width == () else "height"
        made = dataclasses.replace(roles, **{free: new})
        state.add(Expand(name, view.tensor, name, made.shape), made)
    else:
        node.refuse(
            f"repeats dimension {place} of {list(view.sizes)}; only copies of the entries of the "
            "dimension before it are supported, or of what has neither height nor width"
        )
    return dataclasses.replace(
        view, tensor=name, dims=(*view.dims[:place], new, *view.dims[place + 1 :])
    )
