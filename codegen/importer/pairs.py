"""What the importer does with two tensors, element by element; repeats of one."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from codegen.importer.nodes import Node
from codegen.importer.state import ImportState
from codegen.importer.views import Axis, Group, Roles, View, axes_of, size_of
from codegen.operators.add import FloatAdd
from codegen.operators.expand import Expand
from codegen.operators.product import FloatProduct


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
    return _Pair(
        views,
        whole,
        roles,
        tuple(a or b for a, b in zip(dims[large], dims[1 - large], strict=True)),
    )


def _is_picture(view: View) -> bool:
    return view.dims[0] == () and len(view.dims) in (2, 3, 4)


def _sides(roles: Roles) -> tuple[Group, Group, Group]:
    return roles.channels, roles.height, roles.width


def _dims(views: list[View]) -> list[tuple[Group, ...]]:
    """Dimensions of both, with those in front of the shorter one that it lacks."""
    rank = max(len(view.dims) for view in views)
    return [((),) * (rank - len(view.dims)) + view.dims for view in views]


def _fits(state: ImportState, node: Node, views: list[View]) -> bool:
    """Whether the tensors lie alike along each dimension in which both are larger than 1."""
    both = [state.roles(node, view) for view in views]
    shapes = zip(*(roles.shape for roles in both), strict=True)
    arranged = [
        [_arrangement(group, roles) for group in dims]
        for dims, roles in zip(_dims(views), both, strict=True)
    ]
    return all(a == b or 1 in (a, b) for a, b in shapes) and all(
        a == b or not a or not b for a, b in zip(*arranged, strict=True)
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
    _repeat(state, node, [max(b // a, 1) for a, b in zip(sizes, wanted, strict=True)])


def tile(state: ImportState, node: Node) -> None:
    """Tile by constant repeats."""
    _repeat(state, node, [int(n) for n in state.constant(node, 1, "repeats").reshape(-1)])


def _repeat(state: ImportState, node: Node, counts: list[int]) -> None:
    """Along each dimension of a picture, so many times what there is."""
    view, roles = state.picture(node)
    rank = len(view.dims)
    if len(counts) != rank or min(counts) < 1 or counts[0] != 1:
        node.refuse(
            f"repeats {list(view.sizes)} by {counts}; channels, height and width can be repeated, "
            "the batch can't"
        )
    for place, (group, count) in enumerate(zip(view.dims, counts, strict=True)):
        if group != () and count > 1:
            view = state.take(node, view, place, list(range(size_of(group))) * count)
    grown = [axes_of(n) if d == () else d for d, n in zip(view.dims, counts, strict=True)]
    if grown != list(view.dims):
        roles = Roles(grown[1], grown[2] if rank == 4 else (), grown[-1] if rank > 2 else ())
        name = _repeated(state, node.name, view.tensor, roles)
        view = dataclasses.replace(view, tensor=name, dims=tuple(grown))
    state.views[node.outputs[0]] = view
