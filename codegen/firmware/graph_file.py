"""graph.json and frozen.bin: the int8 graph of a bundle, from which its versions are exported.

With a weights blob they are all that the network is; docs/specification/bundle.md has the format.
Nothing on a device or in a fleet depends on them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, fields
from typing import Any

import numpy as np

from codegen.errors import BundleError
from codegen.firmware.bundle import FROZEN, GRAPH, Bundle
from codegen.firmware.model_digest import model_digest
from codegen.graph.ir import Conv, DepthwiseConv, Graph, Head, Op, Padding, Tensor, TensorOutput
from codegen.operators import OPERATORS
from codegen.program import blob
from codegen.program.blob import Weights

GRAPH_FORMAT = "tinyfleet-graph/1"

_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        Conv,
        DepthwiseConv,
        Head,
        TensorOutput,
        *(operator.kind for operator in OPERATORS),
    )
}
_PADDINGS = ("padding", "counted")


def pack(graph: Graph) -> bytes:
    """graph.json; of weights and biases it has shapes and scales, the values are in the blobs."""
    content = {
        "format": GRAPH_FORMAT,
        "name": graph.name,
        "input": graph.input,
        "tensors": [
            [t.name, t.shape, float(t.scale), int(t.zero_point)] for t in graph.tensors.values()
        ],
        "operations": [_described(op) for op in graph.ops],
    }
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def load_graph(bundle: Bundle) -> tuple[Graph, Weights]:
    """The graph of ``bundle`` with the weights that it was compiled with, and how they are split.

    Raises BundleError for a bundle that has none, or another one than its manifest says.
    """
    files = bundle.manifest.files
    if GRAPH not in files:
        raise BundleError(
            f"{bundle.path} has no {GRAPH}: it was compiled by an earlier version of "
            "tinyfleet; compile the bundle again (tinyfleet compile)"
        )
    path = bundle.path / GRAPH
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["format"] != GRAPH_FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {GRAPH_FORMAT!r}")
        tensors = [Tensor(name, tuple(shape), *rest) for name, shape, *rest in content["tensors"]]
        empty = Graph(
            content["name"],
            content["input"],
            {tensor.name: tensor for tensor in tensors},
            tuple(_operation(entry) for entry in content["operations"]),
        )
        published = [tensor.name for tensor in bundle.manifest.tensors]
        layout = blob.split(empty, published)
        frozen = (bundle.path / FROZEN).read_bytes() if FROZEN in files else b""
        values = {**layout.published.unpack(bundle.weights), **layout.frozen.unpack(frozen)}
        graph = blob.with_values(empty, values)
        weights = blob.split(graph, published)
        if model_digest(graph, weights) != bundle.manifest.model.digest:
            raise ValueError("its network isn't that of the manifest")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{path} is damaged, or of another version: {error}; compile the bundle again "
            "(tinyfleet compile) or copy it again from where it came"
        ) from error
    return graph, weights


def _described(op: Op) -> dict[str, Any]:
    entry: dict[str, Any] = {"kind": type(op).__name__}
    for field in fields(op):
        value = getattr(op, field.name)
        if field.name == "weight":
            value = value.shape
        elif field.name in _PADDINGS:
            value = astuple(value)
        elif isinstance(value, np.ndarray):
            value = value.tolist()
        if field.name != "bias":
            entry[field.name] = value
    return entry


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _operation(entry: Mapping[str, Any]) -> Op:
    """The operation of an entry, with zeros for weights and biases."""
    options = {name: _tuples(value) for name, value in entry.items() if name != "kind"}
    for name in _PADDINGS:
        if name in options:
            options[name] = Padding(*options[name])
    kind = _KINDS[entry["kind"]]
    if kind is Head:
        options["weight"] = np.zeros(options["weight"], np.int16)
        options["bias"] = np.zeros(len(options["weight"]), np.int32)
    elif "weight" in options:
        options["weight"] = np.zeros(options["weight"], np.int8)
        options["weight_scale"] = np.array(options["weight_scale"], np.float64)
        options["bias"] = np.zeros(len(options["weight_scale"]), np.int32)
    made: Op = kind(**options)
    return made
