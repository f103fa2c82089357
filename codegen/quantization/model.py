"""From a float graph and a calibration file to the int8 graph: the quantizer's passes in order.

Read the samples, observe the tensors, check them, equalize where asked, code, assemble, and
compare with the float graph where asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from codegen.errors import CalibrationError
from codegen.graph import ir
from codegen.graph.floats import FloatGraph
from codegen.quantization.calibration import HeadStatistics, RangeRule, observe
from codegen.quantization.calibration_set import load_calibration
from codegen.quantization.checks import (
    check_integers,
    check_logits,
    check_samples,
    check_statistics,
    notes,
)
from codegen.quantization.cross_layer import Equalization, equalize
from codegen.quantization.quantize import assemble, codings_of, samples_for
from codegen.quantization.report import QuantizationReport, compare


@dataclass(frozen=True)
class QuantizationOptions:
    """What is chosen on the command line, for models that aren't quantized yet.

    ``rule`` None takes min-max. ``equalize`` is cross-layer equalization. ``report`` compares the
    int8 graph with the float one, which takes about three times as long as calibration.
    """

    rule: RangeRule | None = None
    equalize: bool = False
    report: bool = False


DEFAULT_OPTIONS = QuantizationOptions()


@dataclass(frozen=True, eq=False)
class QuantizedModel:
    """The int8 graph, what should be known of it, and the report if there is one."""

    graph: ir.Graph
    notes: tuple[str, ...]
    report: QuantizationReport | None


def quantize_model(
    float_graph: FloatGraph,
    calibration: Path | str | None,
    options: QuantizationOptions = DEFAULT_OPTIONS,
) -> QuantizedModel:
    """Quantizes ``float_graph`` with the samples of the .npz ``calibration``.

    Raises CalibrationError where the file or the options don't fit the model, ModelError where the
    model can't be quantized.
    """
    codes = float_graph.codings.get(float_graph.input) if float_graph.integer_input else None
    given = None if calibration is None else load_calibration(calibration, codes)
    samples = samples_for(float_graph, given)
    if samples is None:
        if options != DEFAULT_OPTIONS:
            raise CalibrationError(
                f"model {float_graph.name} is quantized already: there is nothing to calibrate, to "
                "equalize or to compare with; leave out --calibration-method, --percentile, "
                "--equalize and --quantization-report, or give the float model"
            )
        graph = assemble(float_graph, codings_of(float_graph, {}, RangeRule()))
        told = (*float_graph.notes, *notes(check_integers(graph, float_graph)))
        return QuantizedModel(graph, told, None)
    head = HeadStatistics()
    statistics = observe(float_graph, samples, head)
    findings = check_samples(float_graph, samples, statistics)
    equalized: tuple[Equalization, ...] | None = None
    if options.equalize:
        if float_graph.codings:
            raise CalibrationError(
                f"model {float_graph.name} is quantized in parts, whose integers can't be "
                "equalized; leave out --equalize, or give the float model"
            )
        float_graph, equalized = equalize(float_graph, statistics)
        statistics = observe(float_graph, samples)
    rule = options.rule or RangeRule()
    graph = assemble(float_graph, codings_of(float_graph, statistics, rule))
    findings += check_statistics(float_graph, statistics)
    findings += check_integers(graph, float_graph)
    findings += check_logits(float_graph, head)
    report = None
    if options.report:
        report = QuantizationReport(
            model=float_graph.name,
            method=rule.method,
            percentile=rule.percentile if rule.method == "percentile" else None,
            equalized=equalized,
            findings=tuple(findings),
            comparison=compare(float_graph, graph, samples),
        )
    return QuantizedModel(graph, (*float_graph.notes, *notes(findings)), report)
