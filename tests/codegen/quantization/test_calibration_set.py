"""Calibration files: what is read, and one clear error for each that doesn't fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from codegen.errors import CalibrationError
from codegen.graph.floats import FloatGraph
from codegen.quantization.calibration_set import FEWEST_SAMPLES, fit_to_input, load_calibration


def graph_with_input(*shape: int) -> FloatGraph:
    return FloatGraph("any", "image", {"image": shape}, ())  # type: ignore[dict-item]


def inputs(count: int = 40) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(count, 3, 5, 4)).astype(np.float32)


def test_files_hold_x_or_a_single_array(tmp_path: Path) -> None:
    path = tmp_path / "calibration.npz"
    np.savez(path, x=inputs(), y=np.arange(40))
    np.testing.assert_array_equal(load_calibration(path), inputs())
    np.savez(path, images=inputs())
    np.testing.assert_array_equal(load_calibration(path), inputs())
    np.savez(path, images=inputs(), y=np.arange(40))
    with pytest.raises(CalibrationError, match="must be named 'x'"):
        load_calibration(path)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut", b"garbage"])
def test_damaged_files_give_one_clear_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "calibration.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CalibrationError, match=r"numpy\.savez"):
        load_calibration(path)


def test_a_single_npy_and_objects_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", inputs())
    with pytest.raises(CalibrationError, match=r"not an \.npz"):
        load_calibration(tmp_path / "one.npy")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    with pytest.raises(CalibrationError):
        load_calibration(tmp_path / "objects.npz")


def test_integers_are_refused_with_their_range_and_both_remedies(tmp_path: Path) -> None:
    path = tmp_path / "pixels.npz"
    pixels = np.arange(8 * 60).reshape(8, 3, 5, 4) % 256
    np.savez(path, x=pixels.astype(np.uint8))
    with pytest.raises(CalibrationError, match=r"uint8 from 0 to 255; float32 is expected") as told:
        load_calibration(path)
    assert "x / 255" in str(told.value)
    assert "x.astype(numpy.float32)" in str(told.value)


@pytest.mark.parametrize("kind", [np.bool_, np.complex64, "U3"])
def test_other_kinds_of_values_are_refused(tmp_path: Path, kind: str) -> None:
    np.savez(tmp_path / "other.npz", x=np.ones((8, 3, 5, 4)).astype(kind))
    with pytest.raises(CalibrationError, match="array of"):
        load_calibration(tmp_path / "other.npz")


def test_too_few_samples_are_refused_with_how_many_are_needed(tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", x=inputs(FEWEST_SAMPLES - 1))
    with pytest.raises(CalibrationError, match=r"7 samples; at least 8 are needed"):
        load_calibration(tmp_path / "few.npz")
    np.savez(tmp_path / "enough.npz", x=inputs(FEWEST_SAMPLES))
    assert len(load_calibration(tmp_path / "enough.npz")) == FEWEST_SAMPLES
    np.savez(tmp_path / "number.npz", x=np.float32(1.0))
    with pytest.raises(CalibrationError, match="one number"):
        load_calibration(tmp_path / "number.npz")


@pytest.mark.parametrize(
    ("found", "remedy"),
    [
        ((10, 5, 4, 3), r"x\.transpose\(0, 3, 1, 2\)"),
        ((10, 8, 8, 3), r"resize, then x\.transpose\(0, 3, 1, 2\)"),
        ((10, 3, 8, 8), "resize the samples to 5 x 4"),
        ((3, 5, 4), "one sample: stack"),
        ((10, 1, 5, 4), "the samples have 1 channels: preprocess"),
        ((10, 5, 4, 1), "the samples have 1 channels: preprocess"),
        ((10, 60), r"flattened: give x\.reshape\(-1, 3, 5, 4\)"),
        ((10, 61), "width\\)$"),
        ((0, 3, 5, 4), "there are no samples in it$"),
    ],
)
def test_a_wrong_shape_is_refused_with_both_shapes_and_a_remedy(
    found: tuple[int, ...], remedy: str
) -> None:
    with pytest.raises(CalibrationError, match=rf"needs \(samples, 3, 5, 4\).*{remedy}") as told:
        fit_to_input(graph_with_input(3, 5, 4), np.ones(found, np.float32))
    assert str(found) in str(told.value)


def test_axes_of_size_1_may_be_left_out_or_stand_elsewhere() -> None:
    series = np.random.default_rng(0).normal(size=(9, 6, 128)).astype(np.float32)
    fitted = fit_to_input(graph_with_input(6, 1, 128), series)
    np.testing.assert_array_equal(fitted[:, :, 0], series)
    grey = np.random.default_rng(0).normal(size=(9, 8, 7, 1)).astype(np.float32)
    fitted = fit_to_input(graph_with_input(1, 8, 7), grey)
    np.testing.assert_array_equal(fitted[:, 0], grey[..., 0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_with_the_number_of_samples(value: float) -> None:
    samples = inputs()
    samples[[3, 8, 9], 0, 1, 2] = value
    with pytest.raises(CalibrationError, match="NaN or infinity in 3 of 40 samples"):
        fit_to_input(graph_with_input(3, 5, 4), samples)


def test_a_set_of_one_constant_is_refused() -> None:
    with pytest.raises(CalibrationError, match="every value of the calibration set is 2"):
        fit_to_input(graph_with_input(3, 5, 4), np.full((9, 3, 5, 4), 2.0, np.float32))


def test_without_a_set_the_error_says_how_to_give_one() -> None:
    with pytest.raises(CalibrationError, match="--calibration FILE"):
        fit_to_input(graph_with_input(3, 5, 4), None)
