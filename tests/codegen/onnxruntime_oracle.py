"""onnxruntime as the oracle of the importer: its outputs, and its quantizer."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static


def outputs(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Outputs of ``model`` before any Softmax, one sample of ``x`` after the other."""
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    for node in model.graph.node:
        if node.op_type in ("Softmax", "LogSoftmax"):
            asked.graph.output.append(onnx.ValueInfoProto(name=node.input[0]))
    session = onnxruntime.InferenceSession(asked.SerializeToString())
    source = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {source: sample[None]})[-1] for sample in x])


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
    per_channel: bool = True,
    symmetric: bool = False,
) -> None:
    """Writes the model ``source`` to ``target`` in QDQ form, calibrated with ``samples``."""
    logging.disable(logging.WARNING)  # that a model wasn't preprocessed
    quantize_static(
        str(source),
        str(target),
        _Samples(samples, onnx.load(source).graph.input[0].name),
        quant_format=QuantFormat.QDQ,
        activation_type=activation,
        weight_type=QuantType.QInt8,
        per_channel=per_channel,
        extra_options={"ActivationSymmetric": symmetric},
    )
    logging.disable(logging.NOTSET)
