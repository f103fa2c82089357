"""Sizes of scratch: what the compiler plans for is what every kernel says, on every machine."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from codegen.graph.ir import Conv, DepthwiseConv, Padding, Tensor
from codegen.program import scratch
from simulator.machines.kernel_call import Struct
from tests.conftest import examples
from tests.device_runtime.kernels.calls import on_cortex_m4, on_cortex_m7, on_host
from tests.device_runtime.kernels.convolution_case import Case, cases
from tests.device_runtime.kernels.convolution_layers import Depthwise, depthwise_layers


def said(function: str, layer: Struct, *counts: int) -> int:
    """What the kernel says, from its whole tf_convolution, on this machine and on both cores."""
    results = {
        engine.call(function, layer, *counts).result
        for engine in (on_host(), on_cortex_m7(), on_cortex_m4())
    }
    (size,) = results
    return size


@examples(25)
@given(cases(), st.integers(0, 3))
def test_full_convolutions_get_what_their_kernels_say(case: Case, trained: int) -> None:
    op, source, target, layer = case.op, case.source, case.target, case.layer
    forward = scratch.convolution_forward_bytes(op, source, target, case.at_once)
    assert forward == said("tf_convolution_forward_scratch_bytes", layer, case.at_once)
    counts = trained, case.at_once
    error = scratch.convolution_input_gradient_bytes(op, source, target, *counts)
    assert error == said("tf_convolution_input_gradient_scratch_bytes", layer, *counts)
    update = scratch.convolution_weight_update_bytes(op, source, target)
    assert update == said("tf_convolution_weight_update_scratch_bytes", layer)


@examples(25)
@given(depthwise_layers(), st.data())
def test_depthwise_convolutions_get_what_their_kernels_say(
    case: Depthwise, data: st.DataObject
) -> None:
    op, source, target, layer = case.op, case.source, case.target, case.struct()
    rows = data.draw(st.integers(1, case.out_height))
    forward = scratch.depthwise_forward_bytes(op, source, target, rows)
    assert forward == said("tf_depthwise_forward_scratch_bytes", layer, rows)
    error = scratch.depthwise_input_gradient_bytes(op, source, target)
    assert error == said("tf_depthwise_input_gradient_scratch_bytes", layer)
    update = scratch.depthwise_weight_update_bytes(op, source, target)
    assert update == said("tf_depthwise_weight_update_scratch_bytes", layer)


def test_sizes_grow_by_what_is_said_here_alone() -> None:
    same = Padding(1, 1, 1, 1)
    square, halved = Tensor("a", (12, 12, 16), 1.0, 0), Tensor("b", (6, 6, 24), 1.0, 0)
    ones, zeros = np.ones(24), np.zeros(24, np.int32)
    weight = np.zeros((24, 3, 3, 16), np.int8)
    full = Conv("c", "a", "b", weight, ones, zeros, (2, 2), same)
    pair, bits = 4 * 144, 12
    assert scratch.convolution_forward_bytes(full, square, halved, 12) == 24 * 144 + pair + bits
    assert scratch.convolution_input_gradient_bytes(full, square, halved, 0, 4) == 4 * 240 + 8
    merged = 24 * 144
    assert scratch.convolution_input_gradient_bytes(full, square, halved, 3, 4) == 968 + merged
    assert scratch.convolution_weight_update_bytes(full, square, halved) == 8 * 36
    plane = DepthwiseConv("d", "a", "e", np.zeros((3, 3, 16), np.int8), ones, zeros, (1, 1), same)
    after = Tensor("e", (12, 12, 16), 1.0, 0)
    tables, sums = 2 * 2 * 3 * 4, 4 * (12 * 12 + 8)
    assert scratch.depthwise_forward_bytes(plane, square, after, 12) == (
        12 * 12 + sums + tables + 2 * (2 * 12 * 14 + 8 * 2)
    )
    assert scratch.depthwise_input_gradient_bytes(plane, square, after) == (
        12 * 12 + sums + 2 * 2 * 4 * 10 + 2 * (2 * 12 * 16 + 2 * 8)
    )
    gradients, planes = 4 * 3 * 3, 2 * (12 * 12 + 12 * 14)
    assert scratch.depthwise_weight_update_bytes(plane, square, after) == gradients + planes
