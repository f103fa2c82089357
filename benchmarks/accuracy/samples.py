"""Data sets as int8 samples: what a device's sensor would hand to its network."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

Codes = NDArray[np.int8]
Labels = NDArray[np.int64]

MCUNET_SIZE = 128


@dataclass(frozen=True)
class Samples:
    """int8 samples (N, H, W, C) with labels (N,), for training and for testing."""

    train: Codes
    train_labels: Labels
    test: Codes
    test_labels: Labels


def shared_folder() -> Path:
    """Where data sets and models lie that aren't part of the repository.

    Raises SystemExit naming what to set where there is no such folder.
    """
    beside = Path(__file__).resolve().parents[2].parent / "shared"
    folder = Path(os.environ.get("TINYFLEET_SHARED", beside))
    if not (folder / "data").is_dir():
        raise SystemExit(f"{folder} has no data sets; set TINYFLEET_SHARED to the folder that has")
    return folder


def flowers96() -> Samples:
    """500 and 201 photos of 5 flowers, photographers disjoint, enlarged to 128x128."""
    with np.load(shared_folder() / "data" / "flowers96.npz") as data:
        return _photos(data["x_train"], data["y_train"], data["x_test"], data["y_test"])


def cifar10_sub(train: int = 500) -> Samples:
    """The first ``train`` images, as many of each of 10 classes, and all 2,000 for tests.

    Enlarged to 128x128. With fewer tests, one seed's differences are noise of several points.
    """
    with np.load(shared_folder() / "data" / "cifar10_sub.npz") as data:
        first = _balanced(data["y_train"], train)
        return _photos(
            data["x_train"][first], data["y_train"][first], data["x_test"], data["y_test"]
        )


def _balanced(labels: NDArray[np.uint8], count: int) -> NDArray[np.intp]:
    classes = np.unique(labels)
    each = count // len(classes)
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:each] for c in classes]))


def _photos(
    train: NDArray[np.uint8],
    train_labels: NDArray[np.uint8],
    test: NDArray[np.uint8],
    test_labels: NDArray[np.uint8],
) -> Samples:
    return Samples(
        enlarged(train),
        train_labels.astype(np.int64),
        enlarged(test),
        test_labels.astype(np.int64),
    )


def enlarged(images: NDArray[np.uint8]) -> Codes:
    """Pixels (N, H, W, C) at MCUNet's size, bilinear, as codes: pixel - 128."""
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))
    large = F.interpolate(pixels, size=(MCUNET_SIZE, MCUNET_SIZE), mode="bilinear")
    codes = torch.round(large).clamp(0, 255) - 128
    return codes.numpy().astype(np.int8).transpose(0, 2, 3, 1)
