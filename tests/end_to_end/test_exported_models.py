"""Files that people's exporters wrote, whole way: interpreter, host library and ARM image agree."""

from pathlib import Path

import numpy as np
import pytest

from codegen.quantization.calibration import uncoded
from codegen.quantization.quantize import quantize, quantize_input
from tests.codegen.exported import MODELS, exported
from tests.codegen.onnxruntime_oracle import quantize_file
from tests.codegen.random_graphs import full_plan, random_plan
from tests.end_to_end.engines import assert_trains_to_the_same_bits, toolchain_or_skip

USUAL = ["fire_dynamo", "inertial_script", "autoencoder_dynamo", "ds_cnn_flat_script",
         "preactivation_dynamo", "temporal_script", "shufflenet_dynamo",
         "autoencoder_upsampling_dynamo", "mobilenet_v3_script", "keras_pictures",
         "gru_keywords_dynamo"]  # fmt: skip
OTHERS = ["efficientnet_script", "shufflenet_v2_dynamo", "matchbox_script", "bc_resnet_dynamo",
          "ds_cnn_script", "resnet8_dynamo", "convmixer_script", "ghostnet_dynamo",
          "mobileone_dynamo", "convnext_dynamo", "sequence_script", "stacked_lstm_script",
          "both_directions_dynamo", "keras_signals", "keras_lstm", "keras_gru_both",
          "keras_unrolled", "keras_signal_autoencoder", "keras_upsampled",
          "sklearn_digits"]  # fmt: skip
QUANTIZED = ["mobilenet_v3_dynamo", "keras_pictures"]


def also_long(usual: list[str], others: list[str]) -> pytest.MarkDecorator:
    """``usual`` names of files in every run, ``others`` in long ones."""
    long = [pytest.param(name, marks=pytest.mark.long) for name in others]
    return pytest.mark.parametrize("name", [*usual, *long])


@pytest.mark.slow
@also_long(USUAL, OTHERS)
def test_an_exported_model_trains_to_the_same_bits_everywhere(name: str, tmp_path: Path) -> None:
    assert_trains(MODELS / f"{name}.onnx", tmp_path)


@pytest.mark.slow
@also_long(["resnet8_script"], QUANTIZED)
def test_so_does_one_that_onnxruntime_has_quantized(name: str, tmp_path: Path) -> None:
    source, target = MODELS / f"{name}.onnx", tmp_path / "quantized.onnx"
    shape = exported(source.name).sample_shape
    quantize_file(source, target, np.random.default_rng(1).normal(size=(16, *shape)).astype("f4"))
    assert_trains(target, tmp_path)


def assert_trains(path: Path, folder: Path) -> None:
    """Asserts that the model of ``path`` trains to the same bits, for an STM32F746."""
    toolchain = toolchain_or_skip("gcc")
    float_graph = exported(path.name, path)
    given = np.random.default_rng(1).normal(size=(16, *float_graph.sample_shape))
    samples = float_graph.arrange(given.astype(np.float32))
    graph = quantize(float_graph, samples if uncoded(float_graph) else None)
    assert_trains_to_the_same_bits(
        graph,
        [full_plan(graph), random_plan(graph, 5)],
        quantize_input(graph, np.moveaxis(samples, 1, -1)),
        range(3),
        board="stm32f746",
        toolchain=toolchain,
        folder=folder,
    )
