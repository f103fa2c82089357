"""Digests of what a device's bytes mean: of weights, and of samples (docs/specification/bundle.md).

Weights that a device keeps, or that a campaign brings, are those of a firmware's model if and only
if the model's digests are equal, whatever board, plans and compiler the firmware was made with.
Samples in its log are if the samples' digests are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import MISSING, Field, astuple, fields
from typing import Any

from codegen.firmware.bundle import canonical_json
from codegen.graph.ir import Ending, Graph, Op, Padding, inputs_of
from codegen.program.blob import Weights
from codegen.program.plans import runs_of
from codegen.program.steps import Program, Segment

_NO_OPTIONS = {"name", "input", "inputs", "output", "weight", "weight_scale", "bias"}
"""Fields of operations that the graph's edges and the blob's tensors tell."""


def model_digest(graph: Graph, weights: Weights) -> str:
    """SHA-256 (hex) of all that ``graph`` computes, except for the values of what is published.

    Activations count by their place, not by their names, and options at their defaults don't
    count: so what an importer calls them, or an option that a later version adds, changes nothing.
    """
    meaning = {
        **_network(graph),
        "tensors": [
            [t.name, t.dtype, t.values.shape, weights.published.offsets[t.name], t.order, t.step]
            for t in weights.published.tensors
        ],
        "frozen": {
            t.name: [
                t.dtype,
                t.values.shape,
                t.order,
                t.step,
                hashlib.sha256(t.stored()).hexdigest(),
            ]
            for t in weights.frozen.tensors
        },
    }
    return hashlib.sha256(canonical_json(meaning)).hexdigest()


def sample_digest(graph: Graph) -> str:
    """SHA-256 (hex) of the network that samples were recorded for, whatever is trained of it.

    Its operations and the scales of all its activations tell it from another one that has an input
    of the same shape, and as many classes that may mean something else.
    """
    meaning = {**_network(graph), "classes": graph.ending.outputs}
    return hashlib.sha256(canonical_json(meaning)).hexdigest()


def kept_layout(program: Program, segments: Sequence[Segment]) -> str:
    """SHA-256 (hex) of what the bytes mean that a device keeps of ``segments`` of a plan.

    Of firmware with this model's digest, plans with the same layout read each other's values.
    """
    meaning = [[one.tensor, runs_of(one.channels)] for one in segments]
    return hashlib.sha256(canonical_json([program.plan.state, meaning])).hexdigest()


def operations(graph: Graph) -> list[list[Any]]:
    """Kind, inputs and options of each operation; inputs are places among the activations."""
    made: list[list[Any]] = _network(graph)["operations"]
    return made


def _network(graph: Graph) -> dict[str, Any]:
    places = {graph.input: 0}
    operations = []
    for op in graph.ops:
        inputs = [places[name] for name in inputs_of(op)]
        operations.append([type(op).__name__, inputs, _options(op)])
        if not isinstance(op, Ending):
            places[op.output] = len(places)
    activations = [graph.tensors[name] for name in places]
    return {
        "activations": [[t.shape, float(t.scale), int(t.zero_point)] for t in activations],
        "operations": operations,
    }


def slot_word(digest: str) -> int:
    """What of a digest stands in the header of a slot or of a unit of samples: four bytes."""
    return int.from_bytes(bytes.fromhex(digest)[:4], "little")


def _options(op: Op) -> dict[str, Any]:
    values = {field.name: getattr(op, field.name) for field in fields(op) if _differs(op, field)}
    return {name: astuple(v) if isinstance(v, Padding) else v for name, v in values.items()}


def _differs(op: Op, field: Field[Any]) -> bool:
    if field.name in _NO_OPTIONS:
        return False
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return bool(getattr(op, field.name) != default)
