"""Writes the recurrent networks of Keras in this folder; needs TensorFlow and tf2onnx.

    pip install keras tensorflow tf2onnx && python tests/codegen/models/make_keras_recurrent.py

Written with Keras 3.15.1, TensorFlow 2.21.0 and tf2onnx 1.17.0. Weights are random (seeded).
"""

from __future__ import annotations

from pathlib import Path

import keras  # before tf2onnx, which else finds none
import onnx
import tensorflow
import tf2onnx

FOLDER = Path(__file__).parent
STEPS, FEATURES = 20, 6


def main() -> None:
    """An LSTM in both directions before another one, and a GRU, of which a Loop is made."""
    keras.utils.set_random_seed(20261130)
    both = keras.layers.Bidirectional(keras.layers.LSTM(7, return_sequences=True))
    write("keras_lstm", both, keras.layers.LSTM(9))
    write("keras_gru", keras.layers.GRU(8))


def write(name: str, *layers: keras.layers.Layer) -> None:
    """Writes a classifier of (steps, features)."""
    network = keras.Sequential([keras.Input((STEPS, FEATURES)), *layers, keras.layers.Dense(5)])
    sample = tensorflow.TensorSpec((None, STEPS, FEATURES), tensorflow.float32, name="x")
    function = tensorflow.function(lambda x: network(x), input_signature=[sample])
    model, _ = tf2onnx.convert.from_function(function, input_signature=[sample], opset=15)
    onnx.save(model, FOLDER / f"{name}.onnx")


if __name__ == "__main__":
    main()
