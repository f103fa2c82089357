"""The shared MCUNet model and its fixtures, made by PyTorch from the authors' own code.

Tests and benchmarks read them from here.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codegen.graph.ir import Conv, DepthwiseConv, Graph
from codegen.importer.model import import_model
from codegen.program.plans import Plan, load_plan, resolve
from codegen.quantization.quantize import quantize
from codegen.reference.interpreter import Interpreter
from tests.shared import SHARED, needs

MODEL = SHARED / "models" / "mcunet-5fps-head10-int8.onnx"
PLANS = SHARED / "models" / "mcunet-5fps-plans.json"

needs_mcunet = needs(MODEL)


@cache
def graph() -> Graph:
    """The int8 graph, as imported."""
    return quantize(import_model(MODEL), None)


@cache
def fixture() -> dict[str, NDArray[Any]]:
    """Arrays of the gradient fixture by name."""
    with np.load(SHARED / "models" / "mcunet-5fps-grads.npz") as file:
        return {name: file[name] for name in file.files}


def plan(name: str) -> Plan:
    """A published plan."""
    return resolve(load_plan(f"{PLANS}#{name}"), graph())


def sample(index: int) -> tuple[NDArray[np.int8], int]:
    """Input ``index`` of the fixture in HWC order, and its label."""
    values = fixture()
    picture = np.moveaxis(values[f"in{index}.x_q"], 0, -1)
    return np.ascontiguousarray(picture), int(values[f"in{index}.label"])


def convolution(name: str) -> Conv | DepthwiseConv:
    """The convolution of this name."""
    return next(op for op in graph().convolutions if op.name == name)


def in_device_order(layer: str, weight: NDArray[Any]) -> NDArray[Any]:
    """A weight-shaped array of the fixture (OIHW; depthwise C1HW) in the device's axes."""
    if isinstance(convolution(layer), Conv):
        return weight.transpose(0, 2, 3, 1)
    return weight[:, 0].transpose(1, 2, 0)


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Of the angle between two tensors; 1 where one is zero."""
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float((a * b).sum()) / norms if norms > 0 else 1.0


def raw_gradient(interpreter: Interpreter, layer: str, kind: str) -> NDArray[np.float64]:
    """dL/d(integer step) of the interpreter's last step: its errors are per output step."""
    codes, exponent = interpreter.gradients[f"{layer}.{kind}"]
    op = convolution(layer)
    tensors = graph().tensors
    factor = tensors[op.input].scale * op.weight_scale / tensors[op.output].scale
    if kind == "weight" and op.weight.ndim == 4:
        factor = factor[:, None, None, None]
    return codes * 2.0**exponent * factor
