"""Samples of one's own in an NPZ file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from codegen.errors import CodegenError
from codegen.quantization.calibration_set import open_npz
from simulator.errors import WorldError
from simulator.world.datasets.dataset import Dataset, Samples, numbered
from simulator.world.fields import Range

_KNOWN = {"x", "y", "subject"}


class OwnSamples(Dataset):
    """A file that `numpy.savez(file, x=…, y=…, subject=…)` has made.

    x is (n, height, width, channels): real values in the model's input scale, or int8 codes; y (n,)
    labels from 0; subject (n,), which may be left out, numbers or names.
    """

    source: ClassVar[str] = "a file of the user's own"
    name: Literal["npz"] = "npz"
    path: Annotated[str, Field(min_length=1)]
    full_scale: Range | None = None
    """Lowest and highest value of the sensor, its zero in the middle where it has one; left out:
    those that occur."""

    def load(self, folder: Path) -> Samples:
        """See `Dataset`."""
        path = folder / self.path
        arrays = _arrays(path)
        x, y, subject = arrays["x"], arrays["y"], arrays.get("subject")
        if y.dtype.kind not in "iu":
            raise WorldError(f"{path}: y has {y.dtype}; labels are integers from 0")
        if subject is not None and subject.dtype.kind not in "iuU":
            raise WorldError(f"{path}: subject has {subject.dtype}; numbers or names are wanted")
        try:
            return Samples(
                x.astype(np.float32) if x.dtype.kind == "f" else x,
                y.astype(np.int64),
                None if subject is None else numbered(subject),
                full_scale=self.full_scale,
            )
        except WorldError as error:
            raise WorldError(f"{path}: {error}") from None


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with open_npz(path, "write it with numpy.savez(FILE, x=…, y=…, subject=…)") as archive:
            arrays: dict[str, NDArray[Any]] = dict(archive)
    except CodegenError as error:
        raise WorldError(f"data.dataset.path: {error}") from None
    if not {"x", "y"} <= arrays.keys() <= _KNOWN:
        raise WorldError(
            f"{path} has the arrays {', '.join(sorted(arrays))}; it needs x and y, may have "
            "subject, and nothing else"
        )
    return arrays
