"""What int8 costs, by calibration method, with and without equalization across layers.

Three networks: the digit classifier; the same with its channels rescaled at random so that the
function stays (as networks are that nobody looked after); and MCUNet, pretrained on ImageNet, on
photos of flowers, where a linear classifier trained on the float network's features is given the
int8 network's. Ranges come from a calibration set, all figures from other samples.
"""

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.mcunet import SHARED
from codegen.graph import ir
from codegen.graph.floats import Clamp, FloatConv, FloatGraph, FloatHead
from codegen.importer.model import import_model
from codegen.operators.execution import execute
from codegen.quantization.calibration import RangeRule, batches, observe
from codegen.quantization.calibration_set import load_calibration
from codegen.quantization.cross_layer import equalize, pairs
from codegen.quantization.quantize import assemble, codings_of, quantize_input
from codegen.quantization.report import simulate
from simulator.world import digits

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "examples" / "digits"

SPREAD = 4.0  # channels of the rescaled network differ by up to 2^±4
CALIBRATION_PHOTOS = 100
SIDE = 128  # pixels of MCUNet's input

RULES = {
    "min-max": RangeRule("min-max"),
    "percentile 99.9": RangeRule("percentile", 99.9),
    "percentile 99.99": RangeRule("percentile", 99.99),
    "percentile 99.999": RangeRule("percentile", 99.999),
    "mse": RangeRule("mse"),
}
EQUALIZED = ("min-max", "percentile 99.99", "mse")

Array = NDArray[np.float64]
Accuracy = Callable[[Array, Array], float]
"""Share of right answers for pooled features (N, C) and outputs (N, classes)."""


def float_values(graph: FloatGraph, x: NDArray[np.float32]) -> tuple[Array, Array]:
    """Inputs (N, C) of the head and its outputs (N, classes)."""
    features, outputs = [], []
    for batch in batches(graph, x):
        for op, inputs, result in execute(graph, batch):
            if isinstance(op, FloatHead):
                features.append(inputs[0].reshape(len(batch), -1))
                outputs.append(result)
    return np.concatenate(features), np.concatenate(outputs)


def int8_values(graph: ir.Graph, source: FloatGraph, x: NDArray[np.float32]) -> tuple[Array, Array]:
    features, outputs = [], []
    for batch in batches(source, x):
        values = simulate(graph, quantize_input(graph, batch.transpose(0, 2, 3, 1)))
        features.append(values[graph.head.input].reshape(len(batch), -1))
        outputs.append(values[graph.head.name])
    return np.concatenate(features), np.concatenate(outputs)


def decibels(exact: Array, found: Array) -> float:
    return 10.0 * math.log10(float((exact**2).sum() / ((found - exact) ** 2).sum()))


def show(
    title: str,
    graph: FloatGraph,
    calibration: NDArray[np.float32],
    x: NDArray[np.float32],
    accuracy: Accuracy,
) -> None:
    exact = float_values(graph, x)
    print(f"\n{title}\n{len(calibration)} samples for calibration, {len(x)} others measured")
    print(f"{'':38}{'accuracy':>9}{'same class':>12}{'SQNR dB':>9}{'seconds':>9}")
    print(f"{'float':38}{accuracy(*exact):9.1%}")
    began = time.perf_counter()
    statistics = observe(graph, calibration)
    observing = time.perf_counter() - began
    even, done = equalize(graph, statistics)
    changed = sum(pair.strength is not None for pair in done)
    even_statistics = observe(even, calibration)
    rows = [(name, graph, statistics) for name in RULES]
    rows += [(name, even, even_statistics) for name in EQUALIZED]
    for name, source, observed in rows:
        began = time.perf_counter()
        quantized = assemble(source, codings_of(source, observed, RULES[name]))
        seconds = observing + time.perf_counter() - began
        features, outputs = int8_values(quantized, source, x)
        if source is even:
            name, seconds = f"{name}, {changed} pairs equalized", seconds + observing
            features = unscaled(graph, even, features)
        same = float((outputs.argmax(axis=1) == exact[1].argmax(axis=1)).mean())
        print(
            f"{name:38}{accuracy(features, outputs):9.1%}{same:12.1%}"
            f"{decibels(exact[1], outputs):9.1f}{seconds:9.1f}"
        )


def unscaled(graph: FloatGraph, even: FloatGraph, features: Array) -> Array:
    """Features of the equalized graph in the units of the other: its head tells the factors."""
    column = np.abs(graph.head.weight).argmax(axis=0), np.arange(features.shape[1])
    return features * (even.head.weight[column] / graph.head.weight[column])


def rescaled(graph: FloatGraph, seed: int) -> FloatGraph:
    """The same function with channels of very different ranges; every activation must be Relu."""
    random = np.random.default_rng(seed)
    layers = {op.output: op for op in graph.ops}
    for pair in pairs(graph):
        first, second = layers[pair.first.output], layers[pair.second.output]
        assert isinstance(first, FloatConv)
        factor = 2.0 ** random.uniform(-SPREAD, SPREAD, len(first.bias))
        rows = factor[:, np.newaxis, np.newaxis, np.newaxis]
        layers[first.output] = dataclasses.replace(
            first, weight=first.weight * rows, bias=first.bias * factor
        )
        if isinstance(second, FloatConv):
            divided = second.weight / (rows if second.depthwise else rows[:, 0])
            layers[second.output] = dataclasses.replace(second, weight=divided)
        elif isinstance(second, FloatHead):
            layers[second.output] = dataclasses.replace(second, weight=second.weight / factor)
    return dataclasses.replace(graph, ops=tuple(layers[op.output] for op in graph.ops))


def with_relu(graph: FloatGraph) -> FloatGraph:
    return dataclasses.replace(
        graph,
        ops=tuple(
            dataclasses.replace(op, clamp=Clamp(low=0.0))
            if isinstance(op, FloatConv) and op.clamp.high < math.inf
            else op
            for op in graph.ops
        ),
    )


def show_digits() -> None:
    calibration = load_calibration(DIGITS / "calibration.npz")
    images, labels = digits.load()
    rest = digits.lab_split()[1]
    x, y = images[rest].transpose(0, 3, 1, 2), labels[rest]

    def accuracy(features: Array, outputs: Array) -> float:
        return float((outputs.argmax(axis=1) == y).mean())

    graph = import_model(DIGITS / "digits.onnx")
    show("Digits", graph, calibration, x, accuracy)
    uneven = rescaled(with_relu(graph), seed=1)
    show("Digits with Relu, channels rescaled at random", uneven, calibration, x, accuracy)


def photos(name: str, count: int | None = None) -> NDArray[np.float32]:
    """Flowers as MCUNet takes them: 128 x 128, (pixel - 128) * 2 / 255."""
    images = np.load(SHARED / "data" / "flowers96.npz")[name]
    images = images[:: len(images) // count] if count else images
    factor = SIDE / images.shape[1]
    large = np.stack([ndimage.zoom(image, (factor, factor, 1), order=1) for image in images])
    codes = large.astype(np.float32).transpose(0, 3, 1, 2) - 128.0
    return np.asarray(codes * (2.0 / 255.0), dtype=np.float32)


def show_mcunet() -> None:
    graph = import_model(SHARED / "models" / "mcunet-5fps-fp32.onnx")
    labels = np.load(SHARED / "data" / "flowers96.npz")
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    probe.fit(float_values(graph, photos("x_train"))[0], labels["y_train"])

    def accuracy(features: Array, outputs: Array) -> float:
        return float(probe.score(features, labels["y_test"]))

    calibration, x = photos("x_train", CALIBRATION_PHOTOS), photos("x_test")
    show("MCUNet-5FPS on flowers, classes of ImageNet", graph, calibration, x, accuracy)


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    show_digits()
    if (SHARED / "models").is_dir():
        show_mcunet()
    else:
        print(f"\nMCUNet is left out: {SHARED} has no models; set TINYFLEET_SHARED to their folder")
    return 0


if __name__ == "__main__":
    sys.exit(main())
