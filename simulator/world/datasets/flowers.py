"""Photos of flowers, by photographer."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage  # type: ignore[import-untyped]

from simulator.world.datasets.dataset import Samples, SharedDataset, numbered

FILE = "flowers96.npz"
AUTHORS = "flowers96_attribution.csv"
_SIDE = 96


class Flowers(SharedDataset):
    """701 photos, 374 photographers, 5 flowers: the data set's 201 test photos are held out.

    x is (n, side, side, 3) int8: pixel - 128, as MCUNet takes it, enlarged linearly.
    """

    source: ClassVar[str] = (
        "tf_flowers (photos CC BY 2.0), 96x96, with the arrays x_train, y_train, x_test and y_test "
        "in flowers96.npz and photographers in flowers96_attribution.csv"
    )
    name: Literal["flowers"] = "flowers"
    side: Annotated[int, Field(ge=8, le=512)] = 128
    """Pixels in height and width."""

    def load(self, folder: Path) -> Samples:
        """See `Dataset`."""
        with self._arrays(folder, FILE) as data:
            x = np.concatenate([data["x_train"], data["x_test"]])
            y = np.concatenate([data["y_train"], data["y_test"]]).astype(np.int64)
            train = len(data["y_train"])
        with self._file(folder, AUTHORS) as path, path.open(newline="", encoding="utf-8") as file:
            first = {"train": 0, "test": train}
            authors = np.full(len(y), "", dtype=object)
            for row in csv.DictReader(file):
                authors[first[row["split"]] + int(row["index"])] = row["author"]
            if "" in authors:
                raise ValueError(f"it has no author for photo {np.flatnonzero(authors == '')[0]}")
        return Samples(
            (_resized(x, self.side).astype(np.int16) - 128).astype(np.int8),
            y,
            numbered(authors.astype(str)),
            held_out=np.arange(len(y)) >= train,
        )


def _resized(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Pixels are areas, as in other programs' bilinear interpolation without aligned corners."""
    if side == _SIDE:
        return images
    factors = (side / images.shape[1], side / images.shape[2], 1)
    return np.stack(
        [ndimage.zoom(one, factors, order=1, mode="nearest", grid_mode=True) for one in images]
    )
