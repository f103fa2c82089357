"""Writes keras_NAME.onnx: networks of Keras by tf2onnx, channels last or recurrent.

Needs `pip install tensorflow-cpu==2.21.0 tf2onnx==1.17.0`, in an environment of its own; run it as
`python -m tests.codegen.models.make_keras_models` from the root of the repository, or with names of
forms behind that. Weights are trained for some seconds, those of forms drawn (seeded).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from tensorflow import keras
from tensorflow.keras import layers

from tests.codegen.models.patterns import patterns

HERE = Path(__file__).parent
CLASSES = 6
OPSET = 17


def pictures() -> keras.Model:
    """MobileNet's blocks, padded as keras.applications does, a gate, and scaling inside."""
    source = layers.Input((20, 20, 3))
    x = layers.Rescaling(0.5, offset=0.1)(source)
    x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    x = layers.Conv2D(8, 3, strides=2, use_bias=False)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(8, 1, activation="sigmoid")(layers.Conv2D(4, 1, activation="relu")(gate))
    x = layers.Multiply()([x, gate])
    x = layers.SeparableConv2D(12, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.Activation("swish")(layers.BatchNormalization()(x))
    shortcut = x
    x = layers.Conv2D(12, 3, padding="same")(x)
    x = layers.ReLU()(layers.Add()([layers.BatchNormalization()(x), shortcut]))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(source, layers.Dense(CLASSES, activation="softmax")(x))


def signals() -> keras.Model:
    """Windows of six channels over time: normalized, convolved causally, flattened."""
    normalization = layers.Normalization(mean=[0.1] * 6, variance=[1.5] * 6)
    return keras.Sequential([
        layers.Input((48, 6)),
        normalization,
        layers.Conv1D(8, 5, padding="causal", activation="relu"),
        layers.MaxPooling1D(2),
        layers.Conv1D(12, 3, padding="causal", dilation_rate=2, use_bias=False),
        layers.BatchNormalization(),
        layers.LeakyReLU(negative_slope=0.1),
        layers.AveragePooling1D(4),
        layers.Flatten(),
        layers.Dense(16, activation="relu"),
        layers.Dense(CLASSES),
    ])  # fmt: skip


def lstm() -> keras.Model:
    """Both directions, of which all states are read, before a layer whose last one decides."""
    return keras.Sequential([
        layers.Input((20, 6)),
        layers.Bidirectional(layers.LSTM(7, return_sequences=True)),
        layers.LSTM(9),
        layers.Dense(CLASSES),
    ])  # fmt: skip


def gru() -> keras.Model:
    """One layer, of which tf2onnx makes a Loop."""
    return keras.Sequential([layers.Input((20, 6)), layers.GRU(8), layers.Dense(CLASSES)])


def gru_both() -> keras.Model:
    """A Loop for each direction, whose gates are reset before their matrix, and one behind both."""
    return sequential(
        (10, 6),
        layers.Bidirectional(
            layers.GRU(7, return_sequences=True, reset_after=False, name="g"), name="both"
        ),
        layers.GRU(6, use_bias=False, name="last"),
    )


def unrolled() -> keras.Model:
    """Steps one by one: all states of both directions, and one layer behind them."""
    return sequential(
        (3, 4),
        layers.Bidirectional(
            layers.LSTM(5, unroll=True, return_sequences=True, name="l"), name="b"
        ),
        layers.GRU(6, unroll=True, name="g"),
    )


def masked() -> keras.Model:
    """Windows whose steps of zeros don't count."""
    return sequential((10, 6), layers.Masking(name="mask"), layers.GRU(5, name="g"))


def simple() -> keras.Model:
    """A plain recurrent layer."""
    return sequential((10, 6), layers.SimpleRNN(5, name="r"))


def signal_autoencoder() -> keras.Model:
    """A window's state, repeated for each of its steps, and a layer for each step by itself."""
    return keras.Sequential(
        [
            layers.Input((6, 4)),
            layers.LSTM(5, name="encoder"),
            layers.RepeatVector(6, name="repeated"),
            layers.LSTM(5, return_sequences=True, name="decoder"),
            layers.TimeDistributed(layers.Dense(4), name="steps"),
        ],
        name="m",
    )


def picture_autoencoder() -> keras.Model:
    """Pooled and made larger again, by unlike factors."""
    return keras.Sequential(
        [
            layers.Input((6, 8, 2)),
            layers.Conv2D(4, 3, padding="same", activation="relu"),
            layers.MaxPooling2D((3, 2)),
            layers.Conv2D(6, 3, padding="same", activation="relu"),
            layers.UpSampling2D((3, 2)),
            layers.Conv2D(2, 3, padding="same", activation="sigmoid"),
        ],
        name="m",
    )


def upsampled() -> keras.Model:
    """Signals at half their rate, beside what they were."""
    source = layers.Input((12, 5))
    x = layers.Conv1D(6, 3, padding="same", activation="relu")(source)
    low = layers.Conv1D(6, 3, padding="same", activation="relu")(layers.MaxPooling1D(2)(x))
    x = layers.Concatenate()([x, layers.UpSampling1D(2)(low)])
    x = layers.GlobalAveragePooling1D()(layers.Conv1D(8, 1, activation="relu")(x))
    return keras.Model(source, layers.Dense(CLASSES)(x), name="m")


FORMS = (gru_both, unrolled, masked, simple, signal_autoencoder, picture_autoencoder, upsampled)


def sequential(shape: tuple[int, ...], *inner: keras.layers.Layer) -> keras.Model:
    """``inner`` before classes."""
    return keras.Sequential([layers.Input(shape), *inner, layers.Dense(CLASSES)], name="m")


def drawn(model: keras.Model) -> keras.Model:
    """``model`` with biases and slopes that aren't all alike."""
    draw = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(np.asarray(weight) * 1.3 + draw.normal(0, 0.2, weight.shape))
    return model


def trained(model: keras.Model) -> keras.Model:
    """``model`` after some epochs of `patterns`."""
    samples, labels = patterns(model.input_shape[1:], CLASSES, 512, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=model.layers[-1].activation is not keras.activations.softmax
    )
    model.compile(keras.optimizers.Adam(0.005), loss)
    model.fit(samples, labels, batch_size=32, epochs=15, verbose=0)
    return model


def convert(name: str, model: keras.Model) -> None:
    """Writes ``model`` by way of a SavedModel, which keeps the constants of a Normalization."""
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, verbose=False)
        command = [sys.executable, "-m", "tf2onnx.convert", "--opset", str(OPSET)]
        target = str(HERE / f"keras_{name}.onnx")
        subprocess.run([*command, "--saved-model", folder, "--output", target], check=True)


def main() -> None:
    """Writes the first by Keras, the others by tf2onnx; or the forms that are named alone."""
    for make in FORMS:
        if make.__name__ in sys.argv[1:] or not sys.argv[1:]:
            keras.utils.set_random_seed(20261130)
            convert(make.__name__, drawn(make()))
    if sys.argv[1:]:
        return
    keras.utils.set_random_seed(20261130)
    options = {"format": "onnx", "opset_version": OPSET, "verbose": False}
    trained(pictures()).export(HERE / "keras_pictures.onnx", **options)
    for make in (signals, lstm, gru):
        convert(make.__name__, trained(make()))


if __name__ == "__main__":
    main()
