"""Files of PyTorch's exporters, whole way: interpreter, host library and ARM image agree."""

from pathlib import Path

import numpy as np
import pytest

from codegen.quantization.quantize import quantize, quantize_input
from tests.codegen.exported import exported
from tests.codegen.random_graphs import full_plan, random_plan
from tests.end_to_end.engines import assert_trains_to_the_same_bits, toolchain_or_skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["fire_dynamo", "inertial_script", "autoencoder_dynamo", "ds_cnn_flat_script",
             "preactivation_dynamo", "temporal_script", "shufflenet_dynamo",
             "autoencoder_upsampling_dynamo"],
)  # fmt: skip
def test_an_exported_model_trains_to_the_same_bits_everywhere(name: str, tmp_path: Path) -> None:
    toolchain = toolchain_or_skip("gcc")
    float_graph = exported(f"{name}.onnx")
    given = np.random.default_rng(1).normal(size=(16, *float_graph.sample_shape))
    samples = float_graph.arrange(given.astype(np.float32))
    graph = quantize(float_graph, samples)
    assert_trains_to_the_same_bits(
        graph,
        [full_plan(graph), random_plan(graph, 5)],
        quantize_input(graph, np.moveaxis(samples, 1, -1)),
        range(3),
        board="stm32f746",
        toolchain=toolchain,
        folder=tmp_path,
    )
