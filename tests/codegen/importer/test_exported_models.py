"""Files that PyTorch's exporters wrote (tests/codegen/models): every family, both exporters.

Those of Keras are beside them where classes are compared.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from codegen.graph.floats import FloatConv, FloatGraph, FloatTensorOutput
from codegen.importer.model import import_model
from codegen.operators.concat import Concat
from codegen.operators.execution import evaluate
from codegen.operators.global_average_pool import GlobalAveragePool
from codegen.operators.max_pool import MaxPool
from codegen.quantization.quantize import quantize, quantize_input
from codegen.quantization.report import simulate
from tests.codegen.exported import MODELS, exported
from tests.codegen.int8_network import int8_outputs
from tests.codegen.models.patterns import patterns
from tests.codegen.onnxruntime_oracle import agreement, outputs

FILES = sorted(path.name for kind in ("dynamo", "script") for path in MODELS.glob(f"*_{kind}.onnx"))
# Of each family one file: both exporters give the same operations.
CLASSIFIERS = [
    *(name for i, name in enumerate(FILES) if i % 4 in (0, 3) and not name.startswith("autoenc")),
    *("keras_pictures.onnx", "keras_signals.onnx", "keras_lstm.onnx"),
]


def inputs(graph: FloatGraph, count: int, seed: int = 5) -> np.ndarray:
    """Samples in the shape of the model file."""
    random = np.random.default_rng(seed)
    return random.normal(size=(count, *graph.sample_shape)).astype(np.float32)


@pytest.mark.parametrize("name", FILES)
def test_an_exported_model_evaluates_as_onnxruntime_does(name: str) -> None:
    graph = exported(name)
    x = inputs(graph, 4)
    expected = outputs(onnx.load(MODELS / name), x)
    if graph.ending.loss == "mse":
        expected = graph.arrange(expected).reshape(len(x), -1)
    got = evaluate(graph, graph.arrange(x))[graph.ending.output]
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_samples_that_nobody_has_seen_get_onnxruntimes_classes(name: str) -> None:
    graph = exported(name)
    classes = graph.head.bias.size
    seen, _ = patterns(graph.sample_shape, classes, 64, seed=1)
    x, labels = patterns(graph.sample_shape, classes, 200, seed=2)
    expected = outputs(onnx.load(MODELS / name), x)
    # The network tells classes apart, so that agreeing with it means something.
    assert len(set(expected.argmax(axis=1))) == classes
    assert (expected.argmax(axis=1) == labels).mean() > 0.6
    assert agreement(int8_outputs(graph, x, seen), expected) >= 0.95


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("_dynamo.onnx")])
def test_both_exporters_give_the_same_operations(name: str) -> None:
    dynamo = exported(name)
    script = exported(name.replace("_dynamo", "_script"))
    assert [type(op) for op in dynamo.ops] == [type(op) for op in script.ops]
    assert list(dynamo.shapes.values()) == list(script.shapes.values())
    for one, other in zip(dynamo.ops, script.ops, strict=True):
        if isinstance(one, FloatConv) and isinstance(other, FloatConv):
            np.testing.assert_allclose(one.weight, other.weight, atol=1e-5)
            assert (one.stride, one.padding, one.clamp) == (
                other.stride,
                other.padding,
                other.clamp,
            )


@pytest.mark.parametrize("name", FILES)
def test_a_quantized_export_stays_near_its_float_outputs(name: str) -> None:
    graph = exported(name)
    samples = graph.arrange(inputs(graph, 48))
    quantized = quantize(graph, samples)
    codes = quantize_input(quantized, samples[:8].transpose(0, 2, 3, 1))
    exact = evaluate(graph, samples[:8])[graph.ending.output][:, graph.output_order]
    rounded = simulate(quantized, codes)[quantized.ending.name]
    spread = exact - exact.mean(axis=0)
    noise = (rounded - exact) - (rounded - exact).mean(axis=0)
    assert (noise**2).mean() < 0.05 * (spread**2).mean()


def test_flat_features_become_the_picture_that_the_network_makes_of_them() -> None:
    graph = exported("ds_cnn_flat_script.onnx")
    assert graph.sample_shape == (490,)
    assert graph.shapes[graph.input] == (1, 49, 10)
    x = inputs(graph, 2)
    assert np.array_equal(graph.arrange(x)[:, 0].reshape(2, -1), x)


def test_samples_with_the_channels_last_are_turned_for_the_device() -> None:
    graph = exported("inertial_separable_dynamo.onnx")
    assert graph.sample_shape == (40, 3)
    assert graph.shapes[graph.input] == (3, 1, 40)
    x = inputs(graph, 2)
    assert np.array_equal(graph.arrange(x)[:, :, 0], x.transpose(0, 2, 1))


def test_asymmetric_padding_written_as_pad_goes_into_the_convolution() -> None:
    graph = exported("ds_cnn_script.onnx")
    stem = graph.ops[0]
    assert isinstance(stem, FloatConv)
    assert stem.weight.shape[2:] == (10, 4)
    assert (stem.padding.top, stem.padding.bottom) == (4, 5)
    assert (stem.padding.left, stem.padding.right) == (1, 1)


def test_an_activation_behind_a_max_pool_is_folded_into_the_convolution_before_it() -> None:
    graph = exported("lenet_script.onnx")
    kinds = [type(op) for op in graph.ops[:4]]
    assert kinds == [FloatConv, MaxPool, FloatConv, MaxPool]
    assert all(op.clamp.low == 0.0 for op in graph.ops if isinstance(op, FloatConv))


def test_the_mean_is_taken_before_a_convolution_that_classifies() -> None:
    graph = exported("fire_dynamo.onnx")
    assert isinstance(graph.ops[-2], GlobalAveragePool)
    assert isinstance(graph.ops[-3], Concat)
    assert graph.head.weight.shape == (5, 16)


def test_an_autoencoder_is_trained_by_squared_error() -> None:
    graph = exported("autoencoder_script.onnx")
    assert graph.head.loss == "mse"
    assert graph.head.weight.shape == (40, 16)
    others = [name for name in FILES if not name.startswith("autoencoder")]
    assert {exported(name).head.loss for name in others} == {"cross-entropy"}


@pytest.mark.parametrize("kind", ["transposed_script", "copies_dynamo"])
def test_a_picture_that_a_convolution_makes_has_onnxruntimes_reconstruction_error(
    kind: str,
) -> None:
    file = MODELS / f"autoencoder_{kind}.onnx"
    graph = import_model(file)  # nobody has to say what it is trained for
    assert isinstance(graph.ending, FloatTensorOutput)
    assert graph.ending.loss == "mse"
    louder = np.linspace(0.2, 1.0, 48, dtype=np.float32).reshape(-1, 1, 1, 1)
    x = inputs(graph, 48, seed=6) * louder
    expected = ((outputs(onnx.load(file), x) - x) ** 2).mean(axis=(1, 2, 3))
    quantized = quantize(graph, inputs(graph, 64))
    pictures = np.moveaxis(x, 1, -1)
    made = simulate(quantized, quantize_input(quantized, pictures))[quantized.ending.name]
    error = ((made - pictures.reshape(48, -1)) ** 2).mean(axis=1)
    np.testing.assert_allclose(error, expected, rtol=0.05)
    # What is anomalous is told by the order of the errors.
    assert np.corrcoef(error.argsort().argsort(), expected.argsort().argsort())[0, 1] > 0.99
