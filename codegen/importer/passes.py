"""Passes of the importer: from the file's operations to the float graph's normal form.

`PASSES` is the whole list, in order. Each takes the draft and changes it in one way: sums and
products with constants go into the layer before them or become a depthwise layer of their own,
activations become the clamp of the operation before them where nothing else reads that one, and
the last layer becomes the head, if the outputs are no picture.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np

from codegen.errors import ModelError
from codegen.graph.floats import (
    NO_CLAMP,
    ChannelsFirst,
    Clamp,
    Clamped,
    Coding,
    FloatConv,
    FloatHead,
    FloatTensorOutput,
    StoredIntegers,
)
from codegen.graph.ir import MOST_OUTPUTS, Padding, Unary
from codegen.graph.names import identifier
from codegen.importer.dilation import crop_to_padding, drop_returns, undilate
from codegen.importer.draft import DraftGraph, remove_unused
from codegen.importer.functions import fuse_products, merge_functions
from codegen.importer.groups import split_groups
from codegen.importer.normalization import fold_into_normalizations
from codegen.importer.recurrent import choose_before_concat, keep_last_states
from codegen.importer.state import Affine, Array
from codegen.operators import operator_of
from codegen.operators.average_pool import AveragePool
from codegen.operators.base import Copying
from codegen.operators.gather import Gather
from codegen.operators.global_average_pool import GlobalAveragePool
from codegen.operators.max_pool import MaxPool
from codegen.operators.rearrange import OUTSIDE, Rearrange, by_axis
from codegen.operators.requantize import FloatClamp
from codegen.operators.scaling import FloatScaling


def merge_affines(draft: DraftGraph) -> None:
    """Two sums or products with constants in a row are one."""
    for op in draft.each(Affine):
        first = draft.ops.get(op.input)
        if not isinstance(first, Affine) or first.output in draft.codings:
            continue
        if not draft.only_reader(first.output) or first.below is not None or op.below is not None:
            continue
        gain, shift = first.gain * op.gain, first.shift * op.gain + op.shift
        if shift.size > max(each.size for part in (first, op) for each in (part.gain, part.shift)):
            continue  # one for each row and one for each channel: tables of their product
        draft.ops[op.output] = dataclasses.replace(op, input=first.input, gain=gain, shift=shift)
        del draft.ops[first.output]


def fold_affines(draft: DraftGraph) -> None:
    """A sum or product with constants behind a convolution goes into its weights.

    In a quantized model the convolution's output must not be coded in between, unless this is
    the network's output, which is wide on the device.
    """
    for op in draft.each(Affine):
        conv = draft.ops.get(op.input)
        if not isinstance(conv, FloatConv) or conv.clamp != NO_CLAMP or not op.is_per_channel:
            continue
        coded = conv.output in draft.codings and op.output != draft.output
        if coded or not draft.only_reader(conv.output):
            continue
        folded = _folded(conv, op)
        if folded is not None:
            draft.ops[conv.output] = folded
            coding = draft.codings.pop(op.output, None)
            if coding is not None:
                draft.codings[conv.output] = coding
            draft.remove(op, conv.output)


def _folded(conv: FloatConv, op: Affine) -> FloatConv | None:
    outputs = len(conv.bias)
    gain, shift = (np.broadcast_to(each.reshape(-1), outputs) for each in (op.gain, op.shift))
    stored = conv.stored
    if stored is not None:
        if (gain == 0).any():
            return None  # stored integers of a channel that vanishes: leave it a layer of its own
        signs = np.sign(gain).astype(np.int16)[:, np.newaxis, np.newaxis, np.newaxis]
        changes_bias = (gain != 1).any() or (shift != 0).any()
        stored = StoredIntegers(
            stored.weight * signs,
            stored.weight_scale * np.abs(gain),
            None if changes_bias else stored.bias,
        )
    return dataclasses.replace(
        conv,
        weight=conv.weight * gain[:, np.newaxis, np.newaxis, np.newaxis],
        bias=conv.bias * gain + shift,
        stored=stored,
    )


def affines_to_layers(draft: DraftGraph) -> None:
    """What is left of sums and products with constants: depthwise 1x1 convolutions, or Scaling."""
    for op in draft.each(Affine):
        if not op.is_per_channel:
            gain, shift, below = _of_one_shape(op)
            draft.ops[op.output] = FloatScaling(op.name, op.input, op.output, gain, shift, below)
            continue
        channels = draft.shapes[op.input][0]
        gain, shift = (np.broadcast_to(each.reshape(-1), channels) for each in (op.gain, op.shift))
        weight: Array = gain.reshape(channels, 1, 1, 1).copy()
        bias: Array = shift.copy()
        draft.ops[op.output] = FloatConv(
            op.name, op.input, op.output, weight, bias, groups=channels
        )


def _of_one_shape(op: Affine) -> tuple[Array, Array, Array | None]:
    """Gain, shift and the gain below 0, all in the shape of the largest."""
    if op.below is None:
        gain, shift = np.broadcast_arrays(op.gain, op.shift)
        return gain, shift, None
    gain, shift, below = np.broadcast_arrays(op.gain, op.shift, op.below)
    return gain, shift, below


def merge_choices(draft: DraftGraph) -> None:
    """Two choices along one axis in a row are one."""
    for op in draft.each(Gather):
        first = draft.ops.get(op.input)
        if not isinstance(first, Gather) or first.axis != op.axis or first.output in draft.codings:
            continue
        if draft.only_reader(first.output):
            indices = tuple(first.indices[index] for index in op.indices)
            draft.ops[op.output] = dataclasses.replace(op, input=first.input, indices=indices)
            del draft.ops[first.output]


def merge_rearrangements(draft: DraftGraph) -> None:
    """Rows and columns that are picked one after the other are picked at once."""
    for op in draft.each(Rearrange):
        first = draft.ops.get(op.input)
        if not isinstance(first, Rearrange) or draft.codings.get(first.output) != (
            draft.codings.get(op.output)
        ):
            continue
        if any(part.rows[1] != (0,) * part.size[1] for part in (first, op)):
            continue  # rows that depend on columns as well, of which dilated convolutions are made
        if any(part.columns[0] != (0,) * part.size[0] for part in (first, op)):
            continue
        if draft.only_reader(first.output):
            rows, columns = (
                [before[at] if 0 <= at < len(before) else OUTSIDE for at in then]
                for before, then in (
                    (first.rows[0], op.rows[0]), (first.columns[1], op.columns[1])
                )
            )  # fmt: skip
            draft.ops[op.output] = Rearrange(
                op.name, first.input, op.output, *by_axis(rows, columns)
            )
            del draft.ops[first.output]


def raise_clamps_over_max_pools(draft: DraftGraph) -> None:
    """An activation behind a max pool may as well stand before it, where it can be folded."""
    for op in draft.each(FloatClamp):
        pool = draft.ops.get(op.input)
        while isinstance(pool, MaxPool) and pool.output not in draft.codings:
            if not draft.only_reader(pool.output) or not draft.only_reader(pool.input):
                break
            maker = draft.ops.get(pool.input)
            if isinstance(maker, FloatClamp) or not isinstance(maker, (Clamped, MaxPool)):
                break
            op = _swapped(draft, pool, op)
            pool = draft.ops.get(op.input)


def _swapped(draft: DraftGraph, first: MaxPool, second: FloatClamp) -> FloatClamp:
    """Lets ``second`` work before ``first``; the tensors keep their places and names."""
    moved = dataclasses.replace(second, input=first.input, output=first.output)
    draft.shapes[first.output] = draft.shapes[first.input]
    draft.ops[first.output] = moved
    draft.ops[second.output] = dataclasses.replace(first, input=first.output, output=second.output)
    return moved


def fold_clamps(draft: DraftGraph) -> None:
    """An activation becomes the clamp of the operation that makes its input.

    Also where that one's output is coded, if the activation's output has the same code: rounding
    and clamping may change places.
    """
    for op in draft.each(FloatClamp):
        maker = draft.ops.get(op.input)
        if not isinstance(maker, Clamped):
            continue
        known = draft.codings.get(maker.output)
        if known not in (None, draft.codings.get(op.output)) or not draft.only_reader(maker.output):
            continue
        clamp = maker.clamp.then(op.clamp)
        draft.ops[maker.output] = dataclasses.replace(maker, clamp=clamp)
        coding = draft.codings.pop(op.output, None)
        if coding is not None:
            draft.codings[maker.output] = coding
        draft.remove(op, maker.output)


def merge_means(draft: DraftGraph) -> None:
    """Means over whole rows and whole columns, one after the other, are one mean over both."""
    for op in draft.each(AveragePool):
        _, height, width = draft.shapes[op.input]
        if op.padding == Padding() and op.window == (height, width):
            draft.ops[op.output] = GlobalAveragePool(op.name, op.input, op.output)
    for last in draft.each(GlobalAveragePool):
        first = draft.ops.get(last.input)
        if not isinstance(first, AveragePool) or first.padding != Padding():
            continue
        _, height, width = draft.shapes[first.input]
        whole = first.window in ((height, 1), (1, width)) and first.stride == first.window
        if whole and first.output not in draft.codings and draft.only_reader(first.output):
            draft.ops[last.output] = dataclasses.replace(last, input=first.input)
            del draft.ops[first.output]


def code_before_copies(draft: DraftGraph) -> None:
    """In quantized models the output of what copies codes, as a max pool does, is coded as its
    input is.

    A model that codes the output alone may as well code the input, since the largest code is that
    of the largest value; one that codes both, differently, gets an operation for the change.
    """
    copies = [op for op in draft.each(Unary) if isinstance(operator_of(op), Copying)]
    for op in reversed(copies):
        wanted, coding = draft.codings.get(op.output), draft.codings.get(op.input)
        if wanted is None or wanted == coding:
            continue
        if coding is None and draft.only_reader(op.input):
            draft.codings[op.input] = wanted
            continue
        copied = f"{op.output}_copied"
        draft.split(
            dataclasses.replace(op, output=copied),
            FloatClamp(f"{op.name}_recoded", copied, op.output, NO_CLAMP),
        )
        draft.shapes[copied] = draft.shapes[op.output]
        if coding is not None:
            draft.codings[copied] = coding


def separate_clamps(draft: DraftGraph) -> None:
    """In quantized models a clamp that its output's code doesn't imply is its own operation.

    Codes that are symmetric about zero have room below a Relu's 0, for example.
    """
    for op in list(draft.ops.values()):
        coding = draft.codings.get(op.output)
        if not isinstance(op, Clamped) or isinstance(op, FloatClamp):
            continue
        if coding is None or _implied(op.clamp, coding):
            continue
        unclamped = f"{op.output}_unclamped"
        draft.split(
            dataclasses.replace(op, output=unclamped, clamp=NO_CLAMP),
            FloatClamp(f"{op.name}_clamp", unclamped, op.output, op.clamp),
        )
        draft.shapes[unclamped] = draft.shapes[op.output]
        draft.codings[unclamped] = coding


def _implied(clamp: Clamp, coding: Coding) -> bool:
    range_ = coding.range
    half = coding.scale / 2
    return clamp.low <= range_.low + half and clamp.high >= range_.high - half


def clamp_to_codes(draft: DraftGraph) -> None:
    """In quantized models the range of the codes is the activation: Relu nodes are left out."""
    for op in draft.ops.values():
        coding = draft.codings.get(op.output)
        if isinstance(op, Clamped) and coding is not None:
            clamp = op.clamp.then(coding.range)
            draft.ops[op.output] = dataclasses.replace(op, clamp=clamp)


def remove_idle_clamps(draft: DraftGraph) -> None:
    """Activations of a quantized model that its codes imply already."""
    for op in draft.each(FloatClamp):
        before, after = draft.codings.get(op.input), draft.codings.get(op.output)
        if after is not None and before == after and _implied(op.clamp, after):
            draft.remove(op, op.input)


def pool_before_classifier(draft: DraftGraph) -> None:
    """A mean of what a 1x1 convolution makes is that convolution of the mean: far cheaper."""
    pool = draft.ops.get(draft.output)
    if not isinstance(pool, GlobalAveragePool) or not draft.only_reader(pool.input):
        return
    conv = draft.ops.get(pool.input)
    if not isinstance(conv, FloatConv) or conv.groups != 1 or conv.clamp != NO_CLAMP:
        return
    if conv.weight.shape[2:] != (1, 1) or conv.stride != (1, 1) or conv.padding != Padding():
        return
    channels = draft.shapes[conv.input][0]
    for tensor in (conv.output, pool.output):
        draft.ops.pop(tensor)
        draft.codings.pop(tensor, None)
    draft.ops[conv.output] = dataclasses.replace(pool, input=conv.input, output=conv.output)
    draft.shapes[conv.output] = (channels, 1, 1)
    draft.ops[pool.output] = dataclasses.replace(conv, input=conv.output, output=pool.output)


def end_with_outputs(draft: DraftGraph) -> None:
    """What the outputs are: those of the matrix that makes them, which are wide on the device,
    coded or not, or the codes of the tensor itself where that is a picture.

    A vector that has the input's shape counts as one, if no matrix without an activation makes it.
    Behind means of what an activation made, as SqueezeNet ends, there is a matrix that changes
    nothing.
    """
    last = draft.ops.get(draft.output)
    if last is None or draft.output not in draft.shapes:  # nothing says what the input's axes are
        raise ModelError("the model has no layer between input and output; export it again")
    shape = draft.shapes[draft.output]
    if isinstance(last, FloatConv) and _is_matrix(last, shape):
        weight = last.weight.reshape(shape[0], -1)
        draft.ops[draft.output] = FloatHead(last.name, last.input, last.output, weight, last.bias)
        draft.codings.pop(draft.output, None)
        return
    taken = {identifier(op.name) for op in draft.ops.values()} | {*draft.ops, *draft.shapes}
    name = next(n for i in itertools.count(1) if (n := f"outputs_{i}") not in taken)
    if shape[1:] == (1, 1) and isinstance(last, GlobalAveragePool):
        same, none = np.eye(shape[0]), np.zeros(shape[0])
        draft.ops[name] = FloatHead(name, draft.output, name, same, none)
        draft.output = name
        return
    if shape[1:] == (1, 1) and shape != draft.shapes[draft.input]:
        clamped = isinstance(last, Clamped) and last.clamp != NO_CLAMP
        raise ModelError(
            f"the output is made by '{last.name}'{', with an activation' * clamped}; a model must "
            "end in a Gemm, or MatMul and Add, or 1x1 Conv, with an optional Softmax or Sigmoid, "
            "or in a picture: leave out what comes behind that, or name what makes its tensor with "
            "--output"
        )
    size = math.prod(shape)
    if size > MOST_OUTPUTS:
        raise ModelError(
            f"the output is made by '{last.name}' and has {size} values, {list(shape)}; a device "
            f"has room for {MOST_OUTPUTS} at most: use a smaller input"
        )
    draft.ops[name] = FloatTensorOutput(name, draft.output, name)
    draft.output = name


def _is_matrix(conv: FloatConv, shape: ChannelsFirst) -> bool:
    """Whether ``conv``, whose output has ``shape``, is fully connected, without an activation."""
    whole = shape[1:] == (1, 1) and conv.padding == Padding() and conv.groups == 1
    return whole and conv.clamp == NO_CLAMP


PASSES: tuple[Callable[[DraftGraph], None], ...] = (
    choose_before_concat,
    remove_unused,
    merge_choices,
    merge_rearrangements,
    keep_last_states,
    crop_to_padding,
    fuse_products,
    merge_functions,
    merge_affines,
    fold_affines,
    fold_into_normalizations,
    affines_to_layers,
    raise_clamps_over_max_pools,
    fold_clamps,
    merge_means,
    pool_before_classifier,
    code_before_copies,
    undilate,
    drop_returns,
    split_groups,
    separate_clamps,
    remove_idle_clamps,
    end_with_outputs,
    clamp_to_codes,
)
