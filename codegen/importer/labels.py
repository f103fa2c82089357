"""The labels of an archive of samples: what they could be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codegen.errors import CalibrationError
from codegen.quantization.calibration_set import open_npz

LABELS = "y"
"""The array of labels in an archive of samples."""


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of an archive of samples, and its samples."""

    values: NDArray[np.generic]
    x: NDArray[np.generic] | None

    @classmethod
    def read(cls, samples: Path | str | None) -> Labels | None:
        """None where there is no archive, or no labels in it.

        Raises CalibrationError for one that can't be read, or has a label too few or too many.
        """
        if samples is None:
            return None
        with open_npz(samples, "give the samples as an .npz file") as archive:
            if LABELS not in archive.files:
                return None
            labels, x = archive[LABELS], archive["x"] if "x" in archive.files else None
        if x is not None and labels.shape[:1] != x.shape[:1]:
            raise CalibrationError(
                f"{samples}: labels '{LABELS}' of shape {list(labels.shape)} for samples of shape "
                f"{list(x.shape)}; give one label a sample, in their order"
            )
        return cls(labels, x)

    @property
    def are_integers(self) -> bool:
        """Booleans count as such."""
        return self.values.dtype.kind in "biu"

    @property
    def are_real(self) -> bool:
        """Whether they are floats, of any value."""
        return self.values.dtype.kind == "f"

    @property
    def are_the_input(self) -> bool:
        """Whether they are the samples over again."""
        if self.x is None or not self.are_real or self.values.size != self.x.size:
            return False
        return bool(np.array_equal(self.values.ravel(), self.x.ravel()))

    @property
    def classes(self) -> NDArray[np.int64]:
        """A number for each sample, also where classes are written as rows of zeros and a one."""
        if self._one_hot:
            return np.asarray(self.values.argmax(axis=1), dtype=np.int64)
        return self.values.reshape(-1).astype(np.int64)

    @property
    def largest(self) -> float:
        """Largest magnitude of a target; NaN where one is."""
        return float(np.abs(self.values.astype(np.float64)).max())

    @property
    def _zeros_and_ones(self) -> bool:
        if self.values.dtype.kind not in "biuf" or self.values.size == 0:
            return False
        return bool(np.isin(self.values.astype(np.float64), (0.0, 1.0)).all())

    @property
    def _one_hot(self) -> bool:
        if self.values.ndim != 2 or self.values.shape[1] < 2 or not self._zeros_and_ones:
            return False
        return bool((self.values.astype(np.float64).sum(axis=1) == 1.0).all())

    def _has_one_for_each(self, count: int) -> bool:
        """Whether a sample has ``count`` numbers."""
        if self.values.ndim == 0 or len(self.values) == 0:
            return False
        return self.values.size == len(self.values) * count

    def bits(self, count: int) -> NDArray[np.int64] | None:
        """Zeros and ones (n, count); None where these are no such."""
        if not self._has_one_for_each(count) or not self._zeros_and_ones:
            return None
        return self.values.reshape(-1, count).astype(np.int64)

    def could_be_bits(self, count: int) -> bool:
        """Whether these are zeros and ones for each of ``count`` outputs, and no classes."""
        return self.bits(count) is not None and not self._one_hot

    def could_be_classes(self, count: int) -> bool:
        """Whether these are numbers, or rows, of ``count`` classes."""
        if self._one_hot:
            return int(self.values.shape[1]) == count
        if not self.are_integers or not self._has_one_for_each(1):
            return False
        return bool(self.classes.min() >= 0 and self.classes.max() < count)

    def could_be_targets(self, count: int) -> bool:
        """Whether these are real numbers for each of ``count`` outputs."""
        return self.values.dtype.kind in "fiu" and self._has_one_for_each(count)

    def cover(self, count: int) -> bool:
        """Whether half of ``count`` classes occur: marks of other kinds, as of anomalies, don't."""
        return 2 * len(np.unique(self.classes)) >= count

    def remedy(self, count: int) -> str:
        """How these become numbers of ``count`` classes, where that can be told, else ''."""
        values = self.values
        if values.dtype.kind in "SU":
            return f"number the names: numpy.unique({LABELS}, return_inverse=True)[1]"
        if not self._has_one_for_each(1):
            return ""
        if values.dtype.kind == "f" and np.array_equal(values, np.rint(values)):
            return f"of classes save integers: {LABELS}.astype(numpy.int64)"
        if self.are_integers and values.min() == 1 and values.max() == count:
            return f"classes are counted from 0: {LABELS} - 1"
        return ""

    @property
    def description(self) -> str:
        """Their type, range and shape."""
        shape, kind = list(self.values.shape), self.values.dtype
        if kind.kind in "SU":
            return f"words of shape {shape}"
        if kind.kind == "f" and np.array_equal(self.values, np.rint(self.values)):
            return f"whole numbers of shape {shape}, but {kind}"
        if not self.are_integers or self.values.size == 0:
            return f"{kind} of shape {shape}"
        return f"integers from {self.values.min()} to {self.values.max()} of shape {shape}"
