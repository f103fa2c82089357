"""From a calibration file and options to an int8 graph, notes and a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from codegen.errors import CalibrationError
from codegen.firmware.model_digest import model_digest
from codegen.graph.floats import Coding, FloatGraph, FloatOp
from codegen.importer.model import import_model
from codegen.operators.execution import execute
from codegen.program.blob import all_published
from codegen.quantization.calibration import RangeRule
from codegen.quantization.model import QuantizationOptions, quantize_model
from codegen.quantization.quantize import quantize
from codegen.quantization.report import QuantizationReport
from tests.codegen.quantization.uneven_network import RELU6, network, samples
from tests.shared import SHARED, needs

MCUNET = SHARED / "models" / "mcunet-5fps-fp32.onnx"


def saved(folder: Path, x: NDArray[np.floating]) -> Path:
    path = folder / "calibration.npz"
    np.savez(path, x=x)
    return path


def test_without_options_it_is_plain_min_max_quantization(tmp_path: Path) -> None:
    graph = network()
    made = quantize_model(graph, saved(tmp_path, samples()))
    plain = quantize(graph, samples())
    assert made.report is None
    assert made.graph.tensors == plain.tensors
    for one, other in zip(made.graph.convolutions, plain.convolutions, strict=True):
        np.testing.assert_array_equal(one.weight, other.weight)


@pytest.mark.parametrize("equalize", [False, True])
def test_the_order_in_which_a_cpu_adds_changes_neither_weights_nor_digest(
    equalize: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, path = network(spread=5.0), saved(tmp_path, samples())
    options = QuantizationOptions(equalize=equalize)
    here = quantize_model(graph, path, options).graph

    def elsewhere(*arguments: Any) -> Iterator[tuple[FloatOp, Any, NDArray[np.float64]]]:
        for op, inputs, values in execute(*arguments):
            yield op, inputs, np.where(values == 0, values, np.nextafter(values, np.inf))

    monkeypatch.setattr("codegen.quantization.calibration.execute", elsewhere)
    there = quantize_model(graph, path, options).graph
    ours, theirs = all_published(here), all_published(there)
    assert model_digest(there, theirs) == model_digest(here, ours)
    assert theirs.published.pack() == ours.published.pack()


def test_notes_warn_even_without_a_report(tmp_path: Path) -> None:
    made = quantize_model(network(spread=9.0), saved(tmp_path, samples()))
    assert any("--equalize" in note for note in made.notes)


def test_the_report_says_what_was_chosen_and_what_it_costs(tmp_path: Path) -> None:
    graph, path = network(spread=5.0), saved(tmp_path, samples())
    options = QuantizationOptions(RangeRule("percentile", 99.5), equalize=True, report=True)
    report = quantize_model(graph, path, options).report
    assert report is not None
    assert (report.model, report.method, report.percentile) == ("network", "percentile", 99.5)
    assert report.equalized is not None
    assert [pair.first for pair in report.equalized] == ["expand", "dw", "project", "last"]
    assert report.comparison.samples == 48
    assert QuantizationReport.model_validate_json(report.model_dump_json()) == report
    plain = quantize_model(graph, path, dataclasses.replace(options, equalize=False)).report
    assert plain is not None
    assert plain.equalized is None
    before, after = (r.comparison.layers[-1].accumulated.sqnr_db for r in (plain, report))
    assert before is not None
    assert after is not None
    assert after > before


def test_unscaled_pixels_are_refused(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 3, 8, 8)).astype(np.float32)
    with pytest.raises(CalibrationError, match="not scaled as in training"):
        quantize_model(network(spread=0.0, clamp=RELU6), saved(tmp_path, pixels))


@pytest.mark.parametrize(
    "options",
    [
        QuantizationOptions(rule=RangeRule("mse")),
        QuantizationOptions(equalize=True),
        QuantizationOptions(report=True),
    ],
)
def test_options_for_a_model_that_is_quantized_already_are_refused(
    options: QuantizationOptions,
) -> None:
    graph = network(spread=0.0)
    codings = dict.fromkeys(graph.shapes, Coding(0.1, -128))
    ops = tuple(op for op in graph.ops if op.name in ("pool", "head"))
    quantized = FloatGraph("coded", "last", graph.shapes, ops, codings)
    with pytest.raises(CalibrationError, match="quantized already"):
        quantize_model(quantized, None, options)
    assert quantize_model(quantized, None).graph.name == "coded"


def test_a_model_quantized_in_parts_is_calibrated_and_compared_but_not_equalized(
    tmp_path: Path,
) -> None:
    graph = network(spread=0.0)
    coded = dataclasses.replace(graph, codings={"dw": Coding(0.25, -128)})
    rule = RangeRule("percentile", 99.0)
    made = quantize_model(coded, saved(tmp_path, samples()), QuantizationOptions(rule, report=True))
    assert made.report is not None
    free = quantize(graph, samples(), rule).tensors
    assert made.graph.tensors == {**free, "dw": dataclasses.replace(free["dw"], scale=0.25)}
    with pytest.raises(CalibrationError, match=r"quantized in parts.*--equalize"):
        quantize_model(coded, tmp_path / "calibration.npz", QuantizationOptions(equalize=True))


def pictures(count: int, part: str = "x_train") -> NDArray[np.float32]:
    """Flower photos as MCUNet takes them: doubled by nearest neighbour, cut to 128 x 128."""
    images = np.load(SHARED / "data" / "flowers96.npz")[part]
    images = images[:: len(images) // count][:count]
    large = images.repeat(2, axis=1).repeat(2, axis=2)[:, 32:160, 32:160]
    codes = large.astype(np.float32).transpose(0, 3, 1, 2) - 128.0
    return np.asarray(codes * (2.0 / 255.0), dtype=np.float32)


@pytest.mark.slow
@needs(MCUNET)
@pytest.mark.parametrize("equalize", [False, True])
def test_dead_channels_of_a_pretrained_network_break_nothing(
    tmp_path: Path, equalize: bool
) -> None:
    """MCUNet's weights have 62 channels with scales down to 4e-9."""
    options = QuantizationOptions(RangeRule("percentile"), equalize=equalize, report=True)
    made = quantize_model(import_model(MCUNET), saved(tmp_path, pictures(32)), options)
    assert made.report is not None
    tiny = [finding for finding in made.report.findings if finding.check == "tiny-scale"]
    assert sum(finding.value for finding in tiny) == 62
    for layer in made.report.comparison.layers:
        assert layer.own.sqnr_db is None or layer.own.sqnr_db > 20.0, layer
        assert layer.accumulated.sqnr_db is None or layer.accumulated.sqnr_db > 12.0, layer
    assert made.report.comparison.top1_agreement > 0.75
