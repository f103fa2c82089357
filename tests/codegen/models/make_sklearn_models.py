"""Writes the pipelines of scikit-learn in this folder; needs skl2onnx, which nothing else does.

    pip install skl2onnx && python tests/codegen/models/make_sklearn_models.py

Written with scikit-learn 1.9.1 and skl2onnx 1.20.0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDER = Path(__file__).parent


def main() -> None:
    """Ten classes with a dictionary of probabilities, and a yes or no whose labels are words."""
    x, y = load_digits(return_X_y=True)
    write("sklearn_digits", x, y, zipmap=True)
    write("sklearn_high", x, np.where(y >= 5, "high", "low"), zipmap=False)


def write(name: str, x: np.ndarray, y: np.ndarray, *, zipmap: bool) -> None:
    """Trains a pipeline on every second sample and writes it."""
    network = MLPClassifier(hidden_layer_sizes=(16,), max_iter=300, random_state=1)
    pipeline = make_pipeline(StandardScaler(), network).fit(x[::2].astype(np.float32), y[::2])
    model = to_onnx(pipeline, x[:1].astype(np.float32), options={"zipmap": zipmap}, target_opset=17)
    onnx.save(model, FOLDER / f"{name}.onnx")


if __name__ == "__main__":
    main()
