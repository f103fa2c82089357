"""Labelled samples of the user's own, as int8 codes of the device, with a part held out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codegen.errors import CalibrationError
from codegen.graph.floats import FloatGraph
from codegen.graph.ir import Graph, with_targets
from codegen.plan_search.labels import labels_of, targets_of
from codegen.quantization.calibration_set import (
    open_npz,
    same_but_ones,
    shape_remedy,
    shapes_taken,
)
from codegen.quantization.quantize import quantize_input

HELD_OUT_SHARE = 1 / 3
"""As on the devices, which hold out every third sample."""

MOST_OF_A_CLASS = 1 / 2
"""That a group may have which is held out since none keeps to ``HELD_OUT_SHARE``."""

LEAST_SAMPLES = 6

MOST_BEYOND = 1 / 2
"""Share of what isn't 0 that may be beyond the input's codes by more than their whole range."""

_HOW_TO_GIVE = (
    "save labelled samples with numpy.savez(FILE, x=inputs, y=labels): x shaped as the model's "
    "input with the samples first, floats as the model takes them, or the device's codes as int8, "
    "or those plus 128 as uint8; y the class of each, an integer from 0; group, if known: what "
    "each comes from; and pass --data FILE"
)


@dataclass(frozen=True, eq=False)
class Samples:
    """Codes (n, height, width, channels) int8, labels (n,) int64, and where each comes from.

    Where the loss has targets, codes are flat (n, bytes), with the targets behind the input.

    ``groups`` (n,) int64 numbers people, places or devices; None where nothing is known of them.
    ``reals`` (n, channels, height, width) are the numbers that codes were made of; None where codes
    were given.
    """

    codes: NDArray[np.int8]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None
    reals: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> Samples:
        """The samples at ``indices``, in that order."""
        groups = None if self.groups is None else self.groups[indices]
        reals = None if self.reals is None else self.reals[indices]
        return Samples(self.codes[indices], self.labels[indices], groups, reals)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of codes, labels and groups."""
        content = hashlib.sha256(repr(self.codes.shape).encode())
        content.update(np.ascontiguousarray(self.codes).tobytes())
        content.update(np.ascontiguousarray(self.labels).tobytes())
        if self.groups is not None:
            content.update(np.ascontiguousarray(self.groups).tobytes())
        return content.hexdigest()


def load_samples(path: Path | str, graph: Graph, source: FloatGraph | None = None) -> Samples:
    """Reads arrays `x`, `y` and, where there is one, `group` of an .npz as samples for ``graph``.

    ``x`` is (samples, channels, height, width): floats in the model's units, which are coded as a
    device's sensor driver would; int8 as codes; uint8 as codes plus 128 (pixels of a model whose
    codes are pixels minus 128). Samples shaped as the model file has its input will do as well
    where ``source``, the model as imported, is given. ``y`` has one class per sample, or what the
    model's loss has for labels (`labels_of`) or targets; ``group`` a number or a name of whom each
    comes from.

    Raises CalibrationError for a file that is missing or damaged, or doesn't fit the model.
    """
    x, y, group = _arrays(
        path, needs_labels=not graph.ending.reconstructs and graph.ending.loss != "none"
    )
    height, width, channels = graph.tensors[graph.input].shape
    expected = (channels, height, width)
    if source is not None and x.shape[1:] == source.sample_shape:
        x = source.arrange(x)
    if x.ndim > 1 and same_but_ones(x, expected):
        x = x.reshape(len(x), *expected)
    if x.ndim != 4 or x.shape[1:] != expected:
        in_file = source.sample_shape if source and source.sample_layout else None
        remedy = shape_remedy(x.shape, expected)
        if source is None:
            remedy += "; with the ONNX file (--model) samples may be shaped as its input is"
        raise CalibrationError(
            f"{path}: x of shape {x.shape}; the model's input '{graph.input}' needs "
            f"{shapes_taken(expected, in_file)}{remedy}"
        )
    if len(x) < LEAST_SAMPLES:
        raise CalibrationError(
            f"{path}: {len(x)} samples; at least {LEAST_SAMPLES} are needed, hundreds are better"
        )
    labels = labels_of(graph.ending, y, len(x), path)
    codes = _codes(x, graph, path)
    if graph.ending.target_scale is not None:
        targets = targets_of(graph.ending, y, len(x), path)
        codes = with_targets(codes, targets, graph.ending.target_scale)
    reals = np.asarray(x, np.float32) if x.dtype.kind == "f" else None
    return Samples(codes, labels, _groups(group, len(x), path), reals)


def _groups(
    group: NDArray[np.generic] | None, count: int, path: Path | str
) -> NDArray[np.int64] | None:
    if group is None:
        return None
    if group.shape != (count,) or group.dtype.kind not in "iuSU":
        raise CalibrationError(
            f"{path}: group of shape {group.shape}, {group.dtype}, for {count} samples; give the "
            "number or the name of one person, place or device per sample"
        )
    numbers: NDArray[np.int64] = np.unique(group, return_inverse=True)[1].astype(np.int64)
    return numbers


def _arrays(
    path: Path | str, needs_labels: bool
) -> tuple[NDArray[np.generic], NDArray[np.generic] | None, NDArray[np.generic] | None]:
    with open_npz(path, _HOW_TO_GIVE) as archive:
        needed = ("x", "y") if needs_labels else ("x",)
        missing = [name for name in needed if name not in archive.files]
        if missing:
            raise CalibrationError(
                f"{path}: no array {missing[0]!r} (it holds {', '.join(archive.files)}); "
                f"{_HOW_TO_GIVE}"
            )
        y, group = (archive[name] if name in archive.files else None for name in ("y", "group"))
        return archive["x"], y, group


def _codes(x: NDArray[np.generic], graph: Graph, path: Path | str) -> NDArray[np.int8]:
    channels_last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    if channels_last.dtype == np.int8:
        return channels_last.astype(np.int8)
    if channels_last.dtype == np.uint8:
        return (channels_last.astype(np.int16) - 128).astype(np.int8)
    if channels_last.dtype.kind != "f":
        raise CalibrationError(f"{path}: x of {x.dtype}; {_HOW_TO_GIVE}")
    reals = channels_last.astype(np.float32)
    if not np.isfinite(reals).all():
        raise CalibrationError(f"{path}: x holds NaN or infinity; clean it")
    _check_range(reals, graph, path)
    return quantize_input(graph, reals)


def _check_range(reals: NDArray[np.float32], graph: Graph, path: Path | str) -> None:
    """Raises CalibrationError for samples of which the input's codes hold next to nothing."""
    tensor = graph.tensors[graph.input]
    low, high = (tensor.scale * (code - tensor.zero_point) for code in (-128, 127))
    # A few times as large is what another sensor gives; pixels for shares are 255 times.
    width = high - low
    beyond = (reals < low - width) | (reals > high + width)
    share = float(beyond.sum() / max(np.count_nonzero(reals), 1))
    if share > MOST_BEYOND:
        raise CalibrationError(
            f"{path}: x from {reals.min():g} to {reals.max():g}, and {100 * share:.0f} % of what "
            f"isn't 0 is far beyond what the model's input holds, {low:g} to {high:g}: preprocess "
            "the samples as those that the model was calibrated with; the device's codes are given "
            "as int8, or plus 128 as uint8"
        )


def hold_out(samples: Samples, seed: int, share: float = HELD_OUT_SHARE) -> tuple[Samples, Samples]:
    """Samples to train on and samples to score on; which are which follows from ``seed``.

    ``share`` of each class (rounded, of a class's first one on the training side) is held out.
    Where samples have groups, each group is on one side: scores then are of people, places or
    devices that weren't trained on. Whole groups seldom make just that; it may be less. Where each
    is larger than that, the one whose largest share of a class is least is held out.

    Raises CalibrationError where that would be more than half of a class.
    """
    rest, held = split(samples, seed, share)
    return samples.take(rest), samples.take(held)


def split(
    samples: Samples, seed: int, share: float = HELD_OUT_SHARE
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The indices, ascending, of what ``hold_out`` gives to train on and to score on."""
    rng = np.random.default_rng([seed, len(samples)])
    sizes = np.bincount(samples.labels)
    room = np.minimum(np.round(share * sizes).astype(int), np.maximum(sizes - 1, 0))
    scored: list[int] = []
    if samples.groups is None:
        for label in np.unique(samples.labels):
            of_class = np.flatnonzero(samples.labels == label)
            scored += rng.choice(of_class, room[label], replace=False).tolist()
        if not scored:  # one sample per class: score on one of them all the same
            scored = [int(rng.integers(len(samples)))]
    else:
        shares: list[tuple[float, list[int]]] = []
        for group in rng.permutation(np.unique(samples.groups)):
            of_group = np.flatnonzero(samples.groups == group)
            wanted = np.bincount(samples.labels[of_group], minlength=len(room))
            shares.append((float((wanted / np.maximum(sizes, 1)).max()), of_group.tolist()))
            if (wanted <= room).all():
                room -= wanted
                scored += of_group.tolist()
        if not scored:
            share, scored = min(shares, key=lambda entry: entry[0])
            if share > MOST_OF_A_CLASS:
                raise CalibrationError(
                    f"each of the {len(shares)} groups has more than half of a class, so none can "
                    "be held out; give samples of more groups, or leave `group` out"
                )
    held = np.array(sorted(scored), np.int64)
    return np.setdiff1d(np.arange(len(samples)), held), held
