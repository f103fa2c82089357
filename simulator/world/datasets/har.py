"""Activities of people with a phone at the waist, by subject."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from simulator.world.datasets.dataset import Samples, SharedDataset

FILE = "har_uci_hapt.npz"
_SAMPLES = 128


class HumanActivity(SharedDataset):
    """10,411 windows of 128 samples (2.56 s), 30 subjects, 6 activities; half of each is the next.

    x is (n, 128, 1, 6): acceleration x, y, z in g and rotation x, y, z in rad/s, the latter divided
    by three so that both are of comparable size. The lab has the 21 subjects that the data set's
    authors train on.
    """

    source: ClassVar[str] = (
        "UCI HAR 2.1 with raw signals (HAPT; Reyes-Ortiz et al., Neurocomputing 2015), windows of "
        "128 samples with the arrays x, scale, y, subject, experiment, start and split in "
        "har_uci_hapt.npz"
    )
    name: Literal["har"] = "har"
    overlapping: bool = True
    """False: only windows that share no value with one before, about every second. What a device
    holds out is then nothing that it has trained on."""

    def load(self, folder: Path) -> Samples:
        """See `Dataset`."""
        with self._arrays(folder, FILE) as data:
            unit = data["scale"] / np.array([1, 1, 1, 3, 3, 3])
            x = (data["x"] * unit).astype(np.float32)[:, :, np.newaxis, :]
            # Zero is the middle of the range, about which sensors are turned.
            largest = float(np.abs(x).max())
            kept = np.ones(len(x), np.bool_)
            if not self.overlapping:
                kept = _apart(data["experiment"], data["start"])
            return Samples(
                x[kept],
                data["y"][kept].astype(np.int64),
                data["subject"][kept].astype(np.int64),
                lab=data["split"][kept] == 0,
                full_scale=(-largest, largest),
            )


def _apart(recording: NDArray[np.uint8], start: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Mask (n,) of windows that begin where the last one before them in the mask has ended.

    Windows are in order of their recording and of the sample that they begin with.
    """
    kept = np.zeros(len(start), np.bool_)
    ended: dict[int, int] = {}
    for place, (number, begin) in enumerate(zip(recording.tolist(), start.tolist(), strict=True)):
        if begin >= ended.get(number, 0):
            kept[place] = True
            ended[number] = begin + _SAMPLES
    return kept
