"""Grouped convolutions as layers that devices have: one for each group, or a depthwise one.

A group sees its own channels and nothing else, so that it is a convolution by itself, whose weights
a plan can train; what they make is put together again, all of it in one coding. With one input
channel in each group, which several outputs share, copies of the channels make it depthwise.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from codegen.graph.floats import FloatConv, FloatOp, StoredIntegers
from codegen.importer.draft import DraftGraph
from codegen.operators.concat import Concat
from codegen.operators.gather import Gather


def split_groups(draft: DraftGraph) -> None:
    """Replaces convolutions in groups that are neither one nor one for each output."""
    for op in draft.each(FloatConv):
        if op.groups == 1:
            continue
        if op.weight.shape[1] > 1:
            _by_group(draft, op)
        elif op.groups != len(op.bias):
            copies = np.repeat(np.arange(op.groups), len(op.bias) // op.groups).tolist()
            copied = _chosen(draft, op, f"{op.name}_copies", copies)
            layer = dataclasses.replace(op, input=copied.output, groups=len(op.bias))
            draft.split(copied, layer)


def _by_group(draft: DraftGraph, op: FloatConv) -> None:
    each = op.weight.shape[1]
    parts: list[FloatOp] = []
    made = []
    outputs = len(op.bias) // op.groups
    for group in range(op.groups):
        name = f"{op.name}_group{group + 1}"
        source = _chosen(draft, op, f"{name}_input", list(range(group * each, (group + 1) * each)))
        layer = _part(op, slice(group * outputs, (group + 1) * outputs))
        layer = dataclasses.replace(
            layer, name=name, input=source.output, output=f"{op.output}_group{group + 1}", groups=1
        )
        draft.shapes[layer.output] = (outputs, *draft.shapes[op.output][1:])
        if op.output in draft.codings:
            draft.codings[layer.output] = draft.codings[op.output]
        parts += [source, layer]
        made.append(layer.output)
    draft.split(*parts, Concat(op.name, tuple(made), op.output, one_coding=True))


def _chosen(draft: DraftGraph, op: FloatConv, name: str, channels: list[int]) -> Gather:
    """These channels of the input of ``op``."""
    result = Gather(name, op.input, f"{name}.y", "channels", tuple(channels))
    draft.shapes[result.output] = (len(channels), *draft.shapes[op.input][1:])
    if op.input in draft.codings:
        draft.codings[result.output] = draft.codings[op.input]
    return result


def _part(op: FloatConv, rows: slice) -> FloatConv:
    """The layer with these of its outputs."""
    stored = op.stored
    if stored is not None:
        bias = None if stored.bias is None else stored.bias[rows]
        stored = StoredIntegers(stored.weight[rows], stored.weight_scale[rows], bias)
    return dataclasses.replace(op, weight=op.weight[rows], bias=op.bias[rows], stored=stored)
