"""onnxruntime as the oracle of the importer: its outputs, and its quantizer.

Every session of the repository is made here, and computes what the file says, node by node. Kernels
for uint8 inputs and int8 weights do not: on CPUs with AVX2 and without VNNI they saturate sums of
two products to 16 bits. Graph optimizations put them in place of quantized nodes and are off; where
a file has them itself, it gets the same weights as uint8.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

_INTEGER_PRODUCTS = ("QLinearConv", "QLinearMatMul", "QGemm")


def session(model: onnx.ModelProto, optimized: bool = False) -> onnxruntime.InferenceSession:
    """``model`` as it stands in the file, with the same numbers on any number of cores.

    ``optimized`` is for models that must give the same numbers in everyone's sessions.
    """
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        model = _with_unsigned_weights(model)
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)


def _with_unsigned_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function, without products of uint8 and int8 in integer operators."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in made.graph.initializer}

    def numbers(name: str, dtype: type) -> NDArray[Any] | None:
        found = constants.get(name)
        values = None if found is None else numpy_helper.to_array(found)
        return values if values is not None and values.dtype == dtype else None

    for node in made.graph.node:
        if node.op_type not in _INTEGER_PRODUCTS or numbers(node.input[2], np.uint8) is None:
            continue
        for place in (3, 5):  # the weights, and their zero point
            values = numbers(node.input[place], np.int8)
            if values is not None:
                raised = (values.astype(np.int16) + 128).astype(np.uint8)
                name = f"{node.input[place]}@unsigned"
                if name not in constants:
                    made.graph.initializer.append(numpy_helper.from_array(raised, name))
                    constants[name] = made.graph.initializer[-1]
                node.input[place] = name
    return made


def run(
    model: onnx.ModelProto, x: NDArray[Any], names: Sequence[str] | None = None
) -> list[NDArray[Any]]:
    """The tensors ``names`` of ``model`` for the batch ``x``; its outputs where none are given."""
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    known = {output.name for output in model.graph.output}
    asked.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names or () if n not in known)
    made = session(asked)
    tensors: list[NDArray[Any]] = made.run(names, {made.get_inputs()[0].name: x})
    return tensors


def outputs(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Outputs of ``model`` before any Softmax, one sample of ``x`` after the other."""
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    for node in model.graph.node:
        if node.op_type in ("Softmax", "LogSoftmax"):
            asked.graph.output.append(onnx.ValueInfoProto(name=node.input[0]))
    made = session(asked)
    source = made.get_inputs()[0].name
    return np.concatenate([made.run(None, {source: sample[None]})[-1] for sample in x])


def agreement(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Share of samples (n, classes) whose best class in ``got`` is one of the best expected."""
    best = expected == expected.max(axis=1, keepdims=True)
    return float(best[np.arange(len(got)), got.argmax(axis=1)].mean())


def codes_of(model: onnx.ModelProto, x: NDArray[np.float32]) -> dict[str, NDArray[np.int64]]:
    """What every QuantizeLinear makes of the batch ``x``, as int8 codes, by its input's name."""
    coded = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    made = run(model, x, list(coded))
    return {
        name: codes.astype(np.int64) - (128 if codes.dtype == np.uint8 else 0)
        for name, codes in zip(coded.values(), made, strict=True)
    }


class _Samples(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, samples: NDArray[np.float32], name: str) -> None:
        self._rows = iter([{name: sample[None]} for sample in samples])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._rows, None)


def quantize_file(
    source: Path,
    target: Path,
    samples: NDArray[np.float32],
    *,
    activation: QuantType = QuantType.QInt8,
    weight: QuantType = QuantType.QInt8,
    quant_format: QuantFormat = QuantFormat.QDQ,
    per_channel: bool = True,
    symmetric: bool = False,
) -> None:
    """Writes the model ``source`` to ``target`` quantized, calibrated with ``samples``."""
    logging.disable(logging.WARNING)  # that a model wasn't preprocessed
    quantize_static(
        str(source),
        str(target),
        _Samples(samples, onnx.load(source).graph.input[0].name),
        quant_format=quant_format,
        activation_type=activation,
        weight_type=weight,
        per_channel=per_channel,
        extra_options={"ActivationSymmetric": symmetric},
    )
    logging.disable(logging.NOTSET)
