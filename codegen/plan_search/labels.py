"""Labels of samples as a device has them: numbers, and for some losses targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codegen.errors import CalibrationError
from codegen.graph.ir import Ending
from codegen.importer.labels import Labels


def labels_of(
    ending: Ending, y: NDArray[np.generic] | None, count: int, path: Path | str
) -> NDArray[np.int64]:
    """A label (n,) for each of ``count`` samples: classes, or bits of a binary loss.

    ``y`` has a class per sample, or a row of zeros and ones per sample with a value for each output
    (of one output a number each will do). Losses of other kinds have labels 0, whatever ``y`` is.
    Raises CalibrationError for what isn't such.
    """
    if ending.loss not in ("cross-entropy", "binary"):
        return np.zeros(count, np.int64)
    outputs = ending.outputs
    wanted = f"row of {outputs} zeros and ones" if outputs > 1 else "0 or 1"
    if ending.loss == "cross-entropy":
        wanted = "class"
    if y is None:
        raise CalibrationError(f"{path}: no array 'y'; give one {wanted} per sample")
    given = Labels(y, None)
    shown = f"{path}: y of shape {y.shape} for {count} samples; give one {wanted} per sample"
    if y.ndim == 0 or len(y) != count:
        raise CalibrationError(shown)
    if y.dtype.kind in "SU" and y.size:
        raise CalibrationError(
            f"{path}: y has words, as '{y.reshape(-1)[0]}'; give numbers of classes, which "
            "`tinyfleet compile` prints beside the names that the model file has for them"
        )
    if ending.loss == "binary":
        bits = given.bits(outputs)
        if bits is None:
            raise CalibrationError(shown)
        return np.asarray((bits << np.arange(outputs)).sum(axis=1), np.int64)
    if given.could_be_classes(outputs):
        return given.classes
    if y.shape not in ((count,), (count, 1)):
        raise CalibrationError(shown)
    mend = given.remedy(outputs)
    mend = f"; {mend}" if mend else ""
    if not given.are_integers:
        raise CalibrationError(f"{path}: y of {y.dtype}; classes are integers from 0{mend}")
    labels = given.classes
    wrong = int(labels.min()) if labels.min() < 0 else int(labels.max())
    raise CalibrationError(
        f"{path}: y has class {wrong}; the model's {outputs} classes are 0 … {outputs - 1}{mend}"
    )


def targets_of(
    ending: Ending, y: NDArray[np.generic] | None, count: int, path: Path | str
) -> NDArray[np.float64]:
    """Targets (n, outputs). Raises CalibrationError where ``y`` isn't that."""
    outputs = ending.outputs
    if y is None or y.dtype.kind not in "iuf" or y.ndim == 0 or len(y) != count:
        raise CalibrationError(f"{path}: give targets as floats y (samples, {outputs})")
    if y.size != count * outputs:
        raise CalibrationError(
            f"{path}: y of shape {y.shape}; targets have shape (samples, {outputs})"
        )
    targets = y.reshape(count, outputs).astype(np.float64)
    if not np.isfinite(targets).all():
        raise CalibrationError(f"{path}: y holds NaN or infinity; clean it")
    return targets
