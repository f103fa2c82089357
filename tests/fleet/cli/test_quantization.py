"""Options of the command line for quantization."""

from __future__ import annotations

import pytest

from codegen.errors import CalibrationError
from codegen.quantization.calibration import Method, RangeRule
from codegen.quantization.model import DEFAULT_OPTIONS
from fleet.cli._quantization import quantization_options


def test_no_options_leave_quantization_as_it_is() -> None:
    assert quantization_options(None, None, equalize=False) == DEFAULT_OPTIONS


def test_the_percentile_can_be_set() -> None:
    options = quantization_options("percentile", 99.5, equalize=True, report=True)
    assert options.rule == RangeRule("percentile", 99.5)
    assert options.equalize
    assert options.report
    default = quantization_options("percentile", None, equalize=False)
    assert default.rule == RangeRule("percentile")


@pytest.mark.parametrize("method", [None, "mse", "min-max"])
def test_a_percentile_without_its_method_is_refused(method: Method | None) -> None:
    with pytest.raises(CalibrationError, match="--calibration-method percentile"):
        quantization_options(method, 99.0, equalize=False)
