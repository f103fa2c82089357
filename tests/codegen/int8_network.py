"""What the int8 network of a graph says, in the device's integers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from codegen.graph.floats import FloatGraph
from codegen.quantization.calibration import uncoded
from codegen.quantization.quantize import quantize, quantize_input
from codegen.quantization.report import simulate


def int8_outputs(
    graph: FloatGraph, x: NDArray[np.float32], seen: NDArray[np.float32] | None = None
) -> NDArray[np.float64]:
    """Outputs (n, classes) for samples ``x``, shaped as in the file.

    What the file hasn't coded is calibrated with ``seen``, with ``x`` where that is None.
    """
    calibration = graph.arrange(x if seen is None else seen) if uncoded(graph) else None
    device = quantize(graph, calibration)
    codes = quantize_input(device, np.moveaxis(graph.arrange(x), 1, -1))
    outputs: NDArray[np.float64] = simulate(device, codes)[device.ending.name]
    return outputs
