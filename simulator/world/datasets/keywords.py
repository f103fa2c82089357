"""Spoken keywords, by speaker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from simulator.errors import WorldError
from simulator.world.datasets.dataset import Samples, SharedDataset

FILE = "kws_arabic_mfcc.npz"
_DIVISOR = 32.0


class Keywords(SharedDataset):
    """12,000 clips of a second, 30 speakers, 40 keywords, as MFCC.

    x is (n, 49, 10, 1): 49 frames of 10 coefficients, an int8 code through 32. The lab has 18
    speakers, 6 more are held out.
    """

    source: ClassVar[str] = (
        "Arabic Speech Commands (Ghandoura et al., 2021, CC BY 4.0), MFCC as int8 with the arrays "
        "x, y, speaker, split and class_names in kws_arabic_mfcc.npz"
    )
    name: Literal["keywords"] = "keywords"
    keywords: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Those that there are, by their English names; label 0 is the first. All where left out."""

    def load(self, folder: Path) -> Samples:
        """See `Dataset`."""
        with self._arrays(folder, FILE) as data:
            names = [str(name) for name in data["class_names"]]
            for keyword in self.keywords:
                if keyword not in names:
                    raise WorldError(
                        f"data set keywords: no keyword {keyword!r}; there are {', '.join(names)}"
                    )
            label = np.full(len(names), -1, np.int64)
            wanted = [names.index(keyword) for keyword in self.keywords or names]
            label[wanted] = np.arange(len(wanted))
            y = label[data["y"]]
            chosen = y >= 0
            return Samples(
                (data["x"][chosen].astype(np.float32) / _DIVISOR)[..., np.newaxis],
                y[chosen],
                data["speaker"][chosen].astype(np.int64),
                lab=data["split"][chosen] == 0,
                held_out=data["split"][chosen] == 2,
                full_scale=(-128 / _DIVISOR, 127 / _DIVISOR),
            )
