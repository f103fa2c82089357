"""Small models of other people's kinds, from the shared folder, against onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from codegen.graph.ir import Loss
from codegen.importer.model import import_model
from codegen.quantization.calibration import uncoded
from codegen.quantization.model import quantize_model
from codegen.quantization.quantize import quantize_input
from codegen.quantization.report import simulate
from tests.codegen.onnxruntime_oracle import agreement, run
from tests.shared import SHARED, needs

CASES = SHARED / "cases"

LOSSES: dict[str, Loss | None] = {
    "binary_sigmoid": None,
    "bn_over_frequency": "cross-entropy",
    "channel_split": "cross-entropy",
    "classifier_3_in_3_out": None,
    "dead_branch": "cross-entropy",
    "dilation_2": "cross-entropy",
    "flash_table": "cross-entropy",
    "group_2": "cross-entropy",
    "int8_input": "cross-entropy",
    "normalize_channels_last": "cross-entropy",
    "qcdq_clip": "cross-entropy",
    "qdq_tiny_channel": "cross-entropy",
    "qdq_zero_and_tiny_channel": "cross-entropy",
    "qdq_zero_channel": "cross-entropy",
    "qdq_zero_filter_7x7_pixels": "cross-entropy",
    "regression_1": "none",
    "regression_3": "none",
    "scores_and_argmax": None,
}
"""What each is imported with; None: told by the file, or by the labels beside its samples."""


@needs(CASES)
@pytest.mark.parametrize("name", LOSSES)
def test_a_shared_case_answers_as_onnxruntime_does(name: str) -> None:
    path = CASES / f"{name}.onnx"
    archive = path.with_suffix(".npz")
    float_graph = import_model(path, LOSSES[name], archive)
    graph = quantize_model(float_graph, archive if uncoded(float_graph) else None).graph
    samples = np.load(archive)["x"]
    codes = quantize_input(graph, np.moveaxis(float_graph.arrange(samples), 1, -1))
    found = simulate(graph, codes)[graph.head.name]
    choice = float_graph.loss_choice
    assert choice is not None
    x = codes.transpose(0, 3, 1, 2) if float_graph.integer_input else samples
    proto = onnx.load(path)
    expected = np.concatenate([run(proto, sample[None], [choice.output])[0] for sample in x])
    if name.startswith("regression"):
        assert np.abs(found - expected).max() < 0.05 * np.ptp(expected)
    elif choice.loss == "binary":
        assert ((found > 0) == (expected > 0.5)).mean() >= 0.95
    else:
        assert agreement(found, expected) >= 0.95
