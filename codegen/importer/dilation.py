"""Dilated convolutions as ordinary ones, of a picture whose pixels are sorted by phase.

Taps d pixels apart see pixels of one remainder (*phase*) modulo d. Sorted by phase, these are
neighbours, and a convolution with the same weights does the rest: no tap of zeros is stored, read
or trained, and every kernel for convolutions serves. Phases lie one behind the other with enough
zeros between them; along a signal, and wherever a kernel is one pixel high or wide, they lie beside
each other instead and need none.
"""

from __future__ import annotations

import dataclasses
from dataclasses import astuple, dataclass

import numpy as np

from codegen.graph.floats import FloatConv, conv_output_shape
from codegen.graph.ir import Padding
from codegen.importer.draft import DraftGraph
from codegen.importer.state import DilatedConv
from codegen.operators.gather import Gather
from codegen.operators.rearrange import OUTSIDE, Places, Rearrange, by_axis, pixels


@dataclass(frozen=True)
class _Axis:
    """One axis of a convolution: where its kernel begins, in pixels of the padded picture."""

    size: int
    kernel: int
    stride: int
    dilation: int
    before: int
    after: int

    @property
    def starts(self) -> list[int]:
        """For each output."""
        extent = (self.kernel - 1) * self.dilation + 1
        return list(range(0, self.size + self.before + self.after - extent + 1, self.stride))

    @property
    def phases(self) -> list[int]:
        """The remainders at which a kernel begins."""
        return sorted({start % self.dilation for start in self.starts})

    @property
    def length(self) -> int:
        """Pixels of a phase, as many as kernels see."""
        most = -(-(self.size + self.before % self.dilation) // self.dilation)
        return max(1, min(self._seen, most))

    @property
    def pads(self) -> tuple[int, int]:
        """Zeros that the convolution sees before and behind each phase."""
        return self.before // self.dilation, max(0, self._seen - self.length)

    @property
    def _seen(self) -> int:
        """How far kernels reach into a phase."""
        end = self.starts[-1] // self.dilation + self.kernel
        return end - self.before // self.dilation

    def source(self, phase: int, index: int) -> int:
        """The pixel of the picture at ``index`` of a phase; outside of it: zeros."""
        place = index * self.dilation + phase - self.before % self.dilation
        return place if 0 <= place < self.size else OUTSIDE

    def sorted(self, gap: int) -> list[int]:
        """The phases' pixels one phase behind the other, ``gap`` zeros between two."""
        line: list[int] = []
        for phase in self.phases:
            line += [OUTSIDE] * (gap if line else 0)
            line += [self.source(phase, index) for index in range(self.length)]
        return line

    def results(self, gap: int) -> list[int]:
        """Where in what the convolution makes of these each output lies."""
        return [
            self.phases.index(start % self.dilation) * (self.length + gap) + start // self.dilation
            for start in self.starts
        ]


def undilate(draft: DraftGraph) -> None:
    """Replaces dilated convolutions by ordinary ones between two rearrangements."""
    for op in draft.each(DilatedConv):
        names = {field.name for field in dataclasses.fields(FloatConv)}
        conv = FloatConv(**{name: getattr(op, name) for name in names})
        if op.dilation == (1, 1):
            draft.ops[op.output] = conv
            continue
        _, *size = draft.shapes[op.input]
        pad = op.padding
        rows, columns = (
            _Axis(*entry)
            for entry in zip(
                size,
                op.weight.shape[2:],
                op.stride,
                op.dilation,
                (pad.top, pad.left),
                (pad.bottom, pad.right),
                strict=True,
            )
        )
        if columns.dilation > 1 and _is_idle(rows):
            split = _beside(rows, columns)
        elif rows.dilation > 1 and _is_idle(columns):
            split = _turned(_beside(columns, rows))
        else:
            split = _in_line(rows, columns)
        _replace(draft, conv, split)


@dataclass(frozen=True)
class _Split:
    """Places of sorted pixels and of results (rows, columns), and the convolution in between."""

    pixels: tuple[Places, Places]
    results: tuple[Places, Places]
    stride: tuple[int, int]
    padding: Padding


def _is_idle(axis: _Axis) -> bool:
    """Whether a kernel sees one pixel along ``axis``, and no padding."""
    return axis.kernel == 1 and axis.before == axis.after == 0


def _beside(rows: _Axis, columns: _Axis) -> _Split:
    """A row for each phase of each row's columns; ``rows`` is idle."""
    phases, length = columns.phases, columns.length
    source = [row for row in rows.starts for _ in phases]
    offset = columns.before % columns.dilation
    first = [phase - offset for _ in rows.starts for phase in phases]
    step = [index * columns.dilation for index in range(length)]
    phase_of = [phases.index(start % columns.dilation) for start in columns.starts]
    index_of = [start // columns.dilation for start in columns.starts]
    every = [row * len(phases) for row in range(len(rows.starts))]
    before, after = columns.pads
    return _Split(
        ((tuple(source), (0,) * length), (tuple(first), tuple(step))),
        ((tuple(every), tuple(phase_of)), ((0,) * len(every), tuple(index_of))),
        (1, 1),
        Padding(0, before, 0, after),
    )


def _turned(split: _Split) -> _Split:
    """The same with rows and columns exchanged."""

    def turned(places: tuple[Places, Places]) -> tuple[Places, Places]:
        (a, b), (c, d) = places
        return (d, c), (b, a)

    pad = split.padding
    return _Split(
        turned(split.pixels),
        turned(split.results),
        split.stride,
        Padding(pad.left, pad.top, pad.right, pad.bottom),
    )


def _in_line(rows: _Axis, columns: _Axis) -> _Split:
    pixels, results, stride, pads = [], [], [], []
    for axis in (rows, columns):
        if axis.dilation == 1:
            pixels.append(list(range(axis.size)))
            results.append(list(range(len(axis.starts))))
            stride.append(axis.stride)
            pads.append((axis.before, axis.after))
            continue
        gap = max(axis.pads)
        pixels.append(axis.sorted(gap))
        results.append(axis.results(gap))
        stride.append(1)
        pads.append(axis.pads)
    (top, bottom), (left, right) = pads
    padding = Padding(top, left, bottom, right)
    return _Split(by_axis(*pixels), by_axis(*results), (stride[0], stride[1]), padding)


def _replace(draft: DraftGraph, conv: FloatConv, split: _Split) -> None:
    """The convolution between the two rearrangements that ``split`` has."""
    source, result = f"{conv.output}_phases", f"{conv.output}_by_phase"
    before = Rearrange(f"{conv.name}_phases", conv.input, source, *split.pixels)
    between = dataclasses.replace(
        conv, input=source, output=result, stride=split.stride, padding=split.padding
    )
    after = Rearrange(f"{conv.name}_in_order", result, conv.output, *split.results)
    draft.shapes[source] = (draft.shapes[conv.input][0], *before.size)
    draft.shapes[result] = conv_output_shape(between, draft.shapes[source])
    for made, like in ((source, conv.input), (result, conv.output)):
        if like in draft.codings:
            draft.codings[made] = draft.codings[like]
    draft.split(before, between, after)


def crop_to_padding(draft: DraftGraph) -> None:
    """What is cut off behind a convolution isn't made: causal layers pad both ends, then cut one.

    So long as the convolution pads by as much as is cut, it pads by less instead.
    """
    for op in draft.each(Gather):
        conv = draft.ops.get(op.input)
        if not isinstance(conv, FloatConv) or not draft.only_reader(conv.output):
            continue
        indices = op.indices
        if op.axis == "channels" or indices != tuple(range(indices[0], indices[-1] + 1)):
            continue
        channels, height, width = draft.shapes[conv.output]
        size = height if op.axis == "height" else width
        stride = conv.stride[0 if op.axis == "height" else 1]
        first, last = indices[0] * stride, (size - 1 - indices[-1]) * stride
        if op.axis == "height":
            fewer = Padding(first, 0, last, 0)
            height = len(indices)
        else:
            fewer = Padding(0, first, 0, last)
            width = len(indices)
        left = [a - b for a, b in zip(astuple(conv.padding), astuple(fewer), strict=True)]
        if min(left) < 0:
            continue
        draft.ops[conv.output] = dataclasses.replace(conv, padding=Padding(*left))
        draft.shapes[conv.output] = (channels, height, width)
        draft.remove(op, conv.output)


def drop_returns(draft: DraftGraph) -> None:
    """Two rearrangements one behind the other of which the second undoes the first."""
    for second in draft.each(Rearrange):
        first = draft.ops.get(second.input)
        if not isinstance(first, Rearrange):
            continue
        _, *start = draft.shapes[first.input]
        _, *middle = draft.shapes[first.output]
        if second.size != tuple(start):
            continue
        outside = start[0] * start[1]
        of_first = np.append(pixels(first, start[0], start[1]).reshape(-1), outside)
        whole = of_first[pixels(second, middle[0], middle[1]).reshape(-1)]
        if np.array_equal(whole, np.arange(outside)):
            draft.remove(second, first.input)
            if not draft.readers()[first.output]:
                draft.remove(first, first.input)
