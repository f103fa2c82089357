"""What a data set is: labelled samples as a sensor gives them, and whose they are."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from codegen.errors import CodegenError
from codegen.quantization.calibration_set import open_npz
from simulator.errors import WorldError
from simulator.world.fields import Section

VARIABLE = "TINYFLEET_DATA"
"""Environment variable with the folder of data sets that don't come with tinyfleet."""

_INT8 = (-128.0, 127.0)


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples in the order in which they were recorded.

    Raises WorldError where the arrays don't belong together.
    """

    x: NDArray[Any]
    """(n, height, width, channels): float32 real values in the model's input scale, or int8 codes
    of the model's input."""
    y: NDArray[np.int64]
    """(n,): labels from 0."""
    subjects: NDArray[np.int64] | None = None
    """(n,): number of the person or place that each is of, where that is known."""
    lab: NDArray[np.bool_] | None = None
    """(n,): what the lab's first model is trained on, where the data set itself says so."""
    held_out: NDArray[np.bool_] | None = None
    """(n,): what no device of the fleet may have, where the data set itself says so."""
    full_scale: tuple[float, float] | None = None
    """Lowest and highest value that a sensor can give, its zero in the middle where it has one;
    None: those of float32 that occur."""

    def __post_init__(self) -> None:
        """Check types and shapes."""
        if self.x.ndim != 4 or self.x.dtype not in (np.float32, np.int8):
            raise WorldError(
                f"x is {self.x.dtype} of shape {self.x.shape}; give float32 values or int8 codes "
                "(samples, height, width, channels)"
            )
        if not len(self.x) or not np.isfinite(self.x).all():
            raise WorldError("x is empty or holds NaN or infinity; give finite samples")
        for name in ("y", "subjects", "lab", "held_out"):
            values = getattr(self, name)
            kind = np.bool_ if name in ("lab", "held_out") else np.int64
            if values is not None and (values.shape != self.x.shape[:1] or values.dtype != kind):
                raise WorldError(
                    f"{name} is {values.dtype} of shape {values.shape}; give one {kind.__name__} "
                    f"for each of the {len(self.x)} samples"
                )
        if self.y.min() < 0:
            raise WorldError(f"y has label {self.y.min()}; labels are integers from 0")

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.y)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of samples, labels and subjects."""
        content = hashlib.sha256(f"{self.x.dtype} {self.x.shape}".encode())
        for part in (self.x, self.y, self.subjects):
            content.update(b"" if part is None else np.ascontiguousarray(part).data)
        return content.hexdigest()

    @property
    def scale(self) -> tuple[float, float]:
        """Lowest and highest value that a sensor can give."""
        if self.x.dtype == np.int8:
            return _INT8
        return self.full_scale or (float(self.x.min()), float(self.x.max()))

    def take(self, chosen: NDArray[Any]) -> Samples:
        """The samples at these positions, or where a mask is true, with the same full scale."""
        return Samples(
            self.x[chosen],
            self.y[chosen],
            None if self.subjects is None else self.subjects[chosen],
            full_scale=None if self.x.dtype == np.int8 else self.scale,
        )


class Dataset(Section, ABC):
    """A data set and its settings. A subclass has a `name` of its own: `Literal["har"] = "har"`."""

    source: ClassVar[str]
    """Where the data come from, in one line."""

    name: str

    @abstractmethod
    def load(self, folder: Path) -> Samples:
        """All samples; paths in the settings begin in ``folder``.

        Raises: WorldError that says where data come from and where to put them, or what is wrong
        with them.
        """


class SharedDataset(Dataset):
    """A data set that lies in a folder of the user's, since it can't come with tinyfleet."""

    folder: str | None = None
    """Where its files lie; left out: the folder that TINYFLEET_DATA names."""

    @contextmanager
    def _file(self, folder: Path, name: str) -> Iterator[Path]:
        """The file of that name.

        Raises: WorldError where it is missing, or can't be read within the context.
        """
        named = os.environ.get(VARIABLE)
        place = folder / self.folder if self.folder else Path(named) if named else None
        path = place / name if place else None
        if path is None or not path.is_file():
            looked = f"{path} is missing" if path else f"no folder has {name}"
            raise WorldError(
                f"data set {self.name}: {looked}. It comes from {self.source}. Put the file into a "
                f"folder and name that by dataset.folder, or by {VARIABLE} in the environment"
            )
        try:
            yield path
        except (OSError, ValueError, KeyError, CodegenError) as error:
            raise WorldError(f"data set {self.name}: {path} isn't that file: {error}") from None

    @contextmanager
    def _arrays(self, folder: Path, name: str) -> Iterator[NpzFile]:
        """The arrays of the NPZ file of that name. Raises as `_file`."""
        remedy = f"get it anew from {self.source}"
        with self._file(folder, name) as path, open_npz(path, remedy) as arrays:
            yield arrays


def numbered(names: NDArray[Any]) -> NDArray[np.int64]:
    """Subjects (n,) by numbers from 0, in order of their names."""
    numbers: NDArray[np.int64] = np.unique(names, return_inverse=True)[1].ravel().astype(np.int64)
    return numbers
