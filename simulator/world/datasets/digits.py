"""Handwritten digits, which come with scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from simulator.world import digits
from simulator.world.datasets.dataset import Dataset, Samples


class Digits(Dataset):
    """1,797 scans of 8x8 pixels, 0 … 1; the lab has the 600 that the demo's model is trained on."""

    source: ClassVar[str] = "scikit-learn's load_digits (UCI, Alpaydin and Kaynak), installed"
    name: Literal["digits"] = "digits"

    def load(self, folder: Path) -> Samples:
        """See `Dataset`."""
        del folder
        x, y = digits.load()
        lab = np.zeros(len(y), np.bool_)
        lab[digits.lab_split()[0]] = True
        return Samples(x, y, lab=lab, full_scale=(0.0, 1.0))
