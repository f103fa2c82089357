"""Writes full_integer_KIND.onnx: a Keras network as a TFLite file of integers only, by tf2onnx.

Needs `pip install tensorflow-cpu==2.21.0 tf2onnx==1.17.0`, in an environment of its own; run it as
`python -m tests.codegen.models.make_full_integer` from the root of the repository. Weights are
random (seeded), and so are the statistics of batch normalization.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf2onnx
from numpy.typing import NDArray
from tensorflow import keras

HERE = Path(__file__).parent
KINDS = {"int8": tf.int8, "uint8": tf.uint8}
SHAPE = (16, 12, 3)
OPSET = 17


def network() -> keras.Model:
    """A stem, a depthwise separable block with a shortcut, both pools, and a classifier."""
    layers = keras.layers
    source = layers.Input(SHAPE)

    def normalized(x: keras.KerasTensor) -> keras.KerasTensor:
        return layers.ReLU(6.0)(layers.BatchNormalization()(x))

    x = normalized(layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(source))
    shortcut = x
    x = normalized(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x))
    x = layers.BatchNormalization()(layers.Conv2D(8, 1, use_bias=False)(x))
    x = layers.ReLU()(layers.Add()([x, shortcut]))
    x = normalized(layers.Conv2D(12, 3, padding="same", use_bias=False)(layers.MaxPooling2D()(x)))
    x = layers.Dense(6)(layers.Flatten()(layers.AveragePooling2D(2)(x)))
    return keras.Model(source, layers.Softmax()(x))


def randomize(model: keras.Model, random: np.random.Generator) -> None:
    """Weights as they are after training, roughly."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            channels = layer.gamma.shape[0]
            gamma, variance = random.uniform(0.6, 1.4, channels), random.uniform(0.4, 2.0, channels)
            beta, mean = random.normal(0, 0.3, (2, channels))
            layer.set_weights([gamma, beta, mean, variance])


def samples(random: np.random.Generator) -> Iterator[list[NDArray[np.float32]]]:
    """Pictures from 0 to 1, of unlike brightness."""
    for _ in range(100):
        middle = random.uniform(0.2, 0.8, (1, 1, 1, SHAPE[2]))
        yield [np.clip(random.normal(middle, 0.25, (1, *SHAPE)), 0, 1).astype(np.float32)]


def main() -> None:
    """Writes the files."""
    keras.utils.set_random_seed(20261130)
    model = network()
    randomize(model, np.random.default_rng(20261130))
    for name, kind in KINDS.items():
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: samples(np.random.default_rng(3))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = kind
        path = HERE / f"full_integer_{name}"
        path.with_suffix(".tflite").write_bytes(converter.convert())
        tf2onnx.convert.from_tflite(
            str(path.with_suffix(".tflite")), opset=OPSET, output_path=f"{path}.onnx"
        )
        path.with_suffix(".tflite").unlink()


if __name__ == "__main__":
    main()
