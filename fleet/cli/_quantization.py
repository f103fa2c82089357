"""What the command line says about quantization, for `compile` and `plan` alike."""

from __future__ import annotations

from codegen.errors import CalibrationError
from codegen.quantization.calibration import Method, RangeRule
from codegen.quantization.model import QuantizationOptions


def quantization_options(
    method: Method | None, percentile: float | None, *, equalize: bool, report: bool = False
) -> QuantizationOptions:
    """What the command line says about quantization.

    Raises CalibrationError for a percentile without the method that uses it, or out of range.
    """
    if percentile is not None and method != "percentile":
        raise CalibrationError(
            f"--percentile {percentile:g} belongs to --calibration-method percentile; give both"
        )
    if method is None:
        rule = None
    elif percentile is None:
        rule = RangeRule(method)
    else:
        rule = RangeRule(method, percentile)
    return QuantizationOptions(rule=rule, equalize=equalize, report=report)
