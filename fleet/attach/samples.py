"""What sensors of virtual devices have recorded: of a file, or digits."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codegen.firmware.bundle import ActivationInfo
from fleet.errors import ConfigurationError
from fleet.protocol.manifest import Manifest
from simulator.world import digits

MIN_SAMPLES = 3
"""A device with fewer holds out none, so that nobody could say how good its model is."""
_DEAL = 0xDEA1


@dataclass(frozen=True, eq=False)
class Recording:
    """What one device has seen, in the order in which its log keeps it.

    ``x`` is (n, H, W, C): int8 codes of the model's input, or real values in the model's input
    scale. ``y`` is (n,).
    """

    x: NDArray[Any]
    y: NDArray[np.int64]


def input_codes(manifest: Manifest, x: NDArray[Any]) -> NDArray[np.int8]:
    """Samples (n, H, W, C) as the int8 codes that a device's sensor driver would log."""
    return ActivationInfo.model_validate(manifest.model.input.model_dump()).codes(x)


def deal_digits(names: Sequence[str], seed: int) -> list[digits.DeviceSamples]:
    """Every device's share of the digits. Raises ConfigurationError for too many devices."""
    try:
        return digits.deal(names, seed)
    except ValueError as error:
        raise ConfigurationError(f"{error}; choose fewer with --devices") from None


def takes_digits(manifest: Manifest) -> bool:
    """Whether the model has the digits' input and their classes."""
    model = manifest.model
    takes = (model.input.shape, model.loss, model.classes)
    return takes == ((digits.SIDE, digits.SIDE, 1), "cross-entropy", digits.CLASSES)


def deal_file(
    path: Path, names: Sequence[str], seed: int, needs_labels: bool = True
) -> list[Recording]:
    """Every device's share of the samples in an NPZ file.

    It has ``x`` (n, H, W, C) and ``y`` (n,) as in a `Recording`; where labels play no part, ``y``
    is 0 if it is left out. Where it has ``device`` (n,) as
    well, of names or of positions in ``names``, each device gets what is its own, in the file's
    order, and what belongs to none of ``names`` is left out; else all are dealt out evenly,
    whatever their labels, as the seed says.

    Raises: ConfigurationError naming the array, or the device that has too few.
    """
    arrays = _load(path, needs_labels)
    x, y = arrays["x"], arrays["y"].astype(np.int64)
    if "device" in arrays:
        shares = _of_owners(path, arrays["device"], names)
    else:
        order = np.random.default_rng([seed, _DEAL]).permutation(len(y))
        shares = [order[first :: len(names)] for first in range(len(names))]
    for name, share in zip(names, shares, strict=True):
        if len(share) < MIN_SAMPLES:
            raise ConfigurationError(
                f"{path} has {len(share)} samples for device {name}, {MIN_SAMPLES} are wanted at "
                "least, one of which is held out; give more samples, or fewer devices"
            )
    return [Recording(x[share], y[share]) for share in shares]


def check_samples(path: Path, recording: Recording, manifest: Manifest, bundle: Path) -> None:
    """Raises ConfigurationError for samples that the bundle's model can't have recorded."""
    model = manifest.model
    if recording.x.shape[1:] != model.input.shape:
        raise ConfigurationError(
            f"{path}: samples of x have shape {recording.x.shape[1:]}, the model of {bundle} takes "
            f"{model.input.shape} (height, width, channels)"
        )
    if not 0 <= recording.y.min() <= recording.y.max() < model.labels:
        kind = "classes" if model.loss == "cross-entropy" else "labels"
        raise ConfigurationError(
            f"{path}: labels of y are {recording.y.min()} … {recording.y.max()}, the model of "
            f"{bundle} has the {kind} 0 … {model.labels - 1}"
        )


def _load(path: Path, needs_labels: bool) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, NDArray[Any]] = dict(file)
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        # ValueError: objects, which could run code; TypeError: a single array, not a file of them.
        raise ConfigurationError(
            f"{path} can't be read as NPZ ({error}); write it with numpy.savez(file, x=…, y=…)"
        ) from None
    for name in ("x", "y") if needs_labels else ("x",):
        if name not in arrays:
            raise ConfigurationError(
                f"{path} has no array {name}; it needs x (n, H, W, C)"
                + (" and y (n,)" if needs_labels else "")
            )
    x = arrays["x"]
    y = arrays.setdefault("y", np.zeros(x.shape[:1], np.int64))
    if x.ndim != 4 or x.dtype.kind not in "fiu" or not np.isfinite(x).all():
        raise ConfigurationError(
            f"{path}: x has {x.ndim} axes of {x.dtype}; finite numbers (n, H, W, C) are wanted"
        )
    for name in sorted(arrays.keys() & {"y", "device"}):
        if arrays[name].shape != x.shape[:1]:
            raise ConfigurationError(
                f"{path}: {name} has shape {arrays[name].shape}, one entry for each of the "
                f"{len(x)} samples of x is wanted"
            )
    if y.dtype.kind not in "iu":
        raise ConfigurationError(f"{path}: y has {y.dtype}; integers are wanted")
    return arrays


def _of_owners(path: Path, owners: NDArray[Any], names: Sequence[str]) -> list[NDArray[np.intp]]:
    if owners.dtype.kind == "U":
        return [np.flatnonzero(owners == name) for name in names]
    if owners.dtype.kind in "iu":
        return [np.flatnonzero(owners == number) for number in range(len(names))]
    raise ConfigurationError(
        f"{path}: device has {owners.dtype}; names or numbers from 0 are wanted"
    )
