"""Blobs as values of tensors and back, with what a version of a bundle's weights may not be."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from codegen.arithmetic.integers import Ints
from codegen.errors import VersionError
from codegen.graph.ir import Graph
from codegen.program import blob
from codegen.program.blob import Blob, Parameter, Weights


def values_of_blob(graph: Graph, weights: Weights, data: bytes) -> dict[str, Ints]:
    """Published tensor → values in the blob ``data``.

    Raises VersionError for bytes that aren't a blob of these tensors.
    """
    published = weights.published
    if len(data) != published.size:
        raise VersionError(
            f"the weights have {len(data):,} bytes, a version of this bundle has "
            f"{published.size:,}; give the whole blob of a version, or the bundle that it is of"
        )
    values = published.unpack(data)
    _check_limits(published.tensors, values, "the weights")
    if _packed(graph, published, values) != data:
        raise VersionError(
            "the weights have other bytes than zeros between their tensors; give the blob of a "
            "version, or the bundle that it is of"
        )
    return values


def blob_of_values(graph: Graph, weights: Weights, values: Mapping[str, Ints], of: str) -> bytes:
    """The blob of the version with these values of all tensors of ``graph``.

    Raises VersionError, with the tensors' names, for changes of what devices keep frozen and for
    values that they can't hold. ``of`` is the file's name, for messages.
    """
    changed = [
        tensor.name
        for tensor in weights.frozen.tensors
        if not np.array_equal(values[tensor.name], tensor.values)
    ]
    if changed:
        raise VersionError(
            f"{of}: changes {', '.join(changed)}, which devices keep frozen: no plan of the bundle "
            "trains any of it, so that no version can have other values; compile a new bundle from "
            "the trained model, with a plan (--plan or --publish) that trains it"
        )
    published = weights.published
    _check_limits(published.tensors, values, of)
    return _packed(graph, published, values)


def _packed(graph: Graph, published: Blob, values: Mapping[str, Ints]) -> bytes:
    return blob.split(blob.with_values(graph, values), published.offsets).published.pack()


def _check_limits(tensors: tuple[Parameter, ...], values: Mapping[str, Ints], of: str) -> None:
    for tensor in tensors:
        found = values[tensor.name]
        beyond = found[np.abs(found) > tensor.limit]
        if beyond.size:
            raise VersionError(
                f"{of}: a value of {tensor.name} is {int(beyond[0])} steps, beyond "
                f"±{tensor.limit}, where sums on a device could overflow; keep trained values "
                "within the tensor's limit"
            )
