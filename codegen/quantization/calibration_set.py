"""The samples that a float model is calibrated with: reading them, and whether they fit the model.

What is wrong with a set is said in one sentence: what the model expects, what was found, and how
to change it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from codegen.errors import CalibrationError
from codegen.graph.floats import ChannelsFirst, Coding, FloatGraph

FEWEST_SAMPLES = 8
"""A file with fewer is refused: ranges of so few samples clip much of what comes later."""

_HOW_TO_GIVE = (
    "save about 100 typical inputs, preprocessed as for the model and shaped as its input with the "
    "samples first, as float32 with numpy.savez(FILE, x=inputs) and pass --calibration FILE"
)


@contextmanager
def open_npz(path: Path | str, remedy: str) -> Iterator[NpzFile]:
    """An .npz of samples, to be read inside the context.

    Raises CalibrationError, with ``remedy`` behind it, for a file that is missing or damaged; its
    arrays are only read, and found to be damaged, when they are asked for.
    """
    try:
        # Asked first, since numpy takes any other file for a pickle and says so.
        with Path(path).open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise CalibrationError(f"{path}: not an .npz; {remedy}")
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    except FileNotFoundError as error:
        raise CalibrationError(f"{path}: no such file; {remedy}") from error
    except CalibrationError:
        raise
    except Exception as error:  # numpy raises zipfile, zlib, struct, ... errors for damaged files
        raise CalibrationError(f"{path}: not a readable .npz file ({error}); {remedy}") from error


def load_calibration(path: Path | str, codes: Coding | None = None) -> NDArray[np.float32]:
    """Reads array `x` (or the only array) of an .npz: float32 (samples, channels, height, width).

    For a model that takes integers, ``codes`` is what these stand for. Samples then may be codes,
    int8, or uint8 that are those plus 128; floats are real numbers, as for any model.

    Raises CalibrationError for a file that is missing, damaged, has no such array, too few samples
    in it, for integers without ``codes``, of which nobody knows whether they are preprocessed, and
    for floats that are ``codes`` themselves.
    """
    with open_npz(path, _HOW_TO_GIVE) as archive:
        names = archive.files
        if "x" not in names and len(names) != 1:
            raise CalibrationError(
                f"{path}: holds arrays {names}; the calibration samples must be named 'x'"
            )
        array = archive["x" if "x" in names else names[0]]
    if codes is not None:
        array = _real_numbers(path, array, codes)
    _check_numbers(path, array)
    if array.ndim == 0 or len(array) < FEWEST_SAMPLES:
        found = "one number" if array.ndim == 0 else f"{len(array)} samples"
        raise CalibrationError(
            f"{path}: {found}; at least {FEWEST_SAMPLES} are needed, about 100 are good"
        )
    return np.asarray(array, dtype=np.float32)


def _real_numbers(
    path: Path | str, array: NDArray[np.generic], codes: Coding
) -> NDArray[np.generic]:
    """What codes stand for; other arrays stay as they are."""
    if array.dtype in (np.int8, np.uint8):
        offset = 128 if array.dtype == np.uint8 else 0
        return codes.scale * (array.astype(np.float32) - np.float32(offset + codes.zero_point))
    # Real numbers hardly ever are whole, and beyond what has codes.
    low, high = codes.range.low - codes.scale, codes.range.high + codes.scale
    whole = array.dtype.kind == "f" and array.size > 0 and np.array_equal(array, np.rint(array))
    if whole and (array.min() < low or array.max() > high):
        raise CalibrationError(
            f"{path}: whole numbers from {array.min():g} to {array.max():g}, where the model's "
            f"codes stand for {codes.range.low:g} to {codes.range.high:g}; save codes with the "
            "type of the model's input (int8 or uint8), or the real numbers as float32"
        )
    return array


def _check_numbers(path: Path | str, array: NDArray[np.generic]) -> None:
    if array.dtype.kind == "f":
        return
    if array.dtype.kind not in "iu":
        raise CalibrationError(f"{path}: array of {array.dtype}; {_HOW_TO_GIVE}")
    span = f" from {array.min()} to {array.max()}" if array.size else ""
    raise CalibrationError(
        f"{path}: array of {array.dtype}{span}; float32 is expected, preprocessed as in training. "
        "Scale it (for pixels often x / 255, then minus mean, over standard deviation), or, if the "
        "model takes these very numbers, save x.astype(numpy.float32)"
    )


def fit_to_input(
    graph: FloatGraph, calibration: NDArray[np.floating] | None
) -> NDArray[np.floating]:
    """``calibration`` as (samples, channels, height, width) of the graph's input.

    Samples are shaped as the model file's input, or as the graph's. Axes of size 1 may stand
    elsewhere or be left out: that moves no value. Raises CalibrationError when there is no set, it
    doesn't fit the model's input, or it can't tell a range.
    """
    expected = graph.shapes[graph.input]
    needed = shapes_taken(expected, graph.sample_shape if graph.sample_layout else None)
    if calibration is None:
        raise CalibrationError(f"a float model needs a calibration set, {needed}: {_HOW_TO_GIVE}")
    if calibration.shape[1:] == graph.sample_shape:
        calibration = graph.arrange(calibration)
    if calibration.ndim < 2 or len(calibration) == 0 or not same_but_ones(calibration, expected):
        raise CalibrationError(
            f"calibration set of shape {calibration.shape}; the model's input '{graph.input}' "
            f"needs {needed}{shape_remedy(calibration.shape, expected)}"
        )
    samples = calibration.reshape(len(calibration), *expected)
    unclean = int((~np.isfinite(samples)).any(axis=(1, 2, 3)).sum())
    if unclean:
        raise CalibrationError(
            f"the calibration set holds NaN or infinity in {unclean} of {len(samples)} samples; "
            "leave these out or repair the preprocessing"
        )
    if samples.max() == samples.min():
        raise CalibrationError(
            f"every value of the calibration set is {samples.flat[0]:g}; give typical inputs"
        )
    return samples


def shapes_taken(shape: ChannelsFirst, in_file: tuple[int, ...] | None) -> str:
    """In words: how samples for an input of ``shape`` may be shaped, or as the model file has it
    where that differs."""
    channels, height, width = shape
    own = f"(samples, {channels}, {height}, {width}) = (samples, channels, height, width)"
    if in_file is None:
        return own
    shown = ", ".join(str(size) for size in in_file)
    return f"(samples, {shown}), as the model file has it, or {own}"


def same_but_ones(samples: NDArray[np.generic], expected: ChannelsFirst) -> bool:
    """Whether ``samples`` have the axes of ``expected``, but for those of size 1."""
    found = [size for size in samples.shape[1:] if size != 1]
    return found == [size for size in expected if size != 1]


def shape_remedy(found: tuple[int, ...], expected: ChannelsFirst) -> str:
    """How samples of shape ``found`` become such of ``expected``, behind a semicolon; '' where
    nothing about them tells.
    """
    channels, height, width = expected
    if found[:1] == (0,):
        return "; there are no samples in it"
    if found[1:] == (height, width, channels):
        return "; the channels stand last: give x.transpose(0, 3, 1, 2)"
    if found == expected:
        return "; this is one sample: stack many of them with numpy.stack"
    if len(found) == 4 and found[1] == channels:
        return f"; resize the samples to {height} x {width} as the model's preprocessing does"
    if len(found) == 4 and found[3] == channels:
        return (
            "; the channels stand last and the size differs: resize, then x.transpose(0, 3, 1, 2)"
        )
    if len(found) == 4 and (found[2:] == (height, width) or found[1:3] == (height, width)):
        have = found[1] if found[2:] == (height, width) else found[3]
        return f"; the samples have {have} channels: preprocess them as for the model's training"
    if len(found) == 2 and found[1] == channels * height * width:
        return (
            f"; these are flattened: give x.reshape(-1, {channels}, {height}, {width}), in the "
            "order in which they were flattened"
        )
    return ""
