"""What each row of the table of operators owes to the stages that don't know it by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from codegen.operators import OPERATORS
from codegen.operators.base import Operator
from codegen.program.instructions import RATES
from codegen.program.lowering import lower
from tests.codegen.random_graphs import (
    full_plan,
    random_gated_graph,
    random_graph,
    random_pooled_graph,
    random_recurrent_graph,
)

HEADER = Path(__file__).parents[3] / "device_runtime" / "include" / "tinyfleet" / "kernels.h"
EACH = pytest.mark.parametrize("operator", OPERATORS, ids=lambda row: row.kind.__name__)


@EACH
def test_every_kernel_of_a_row_is_in_numpy_in_c_and_in_the_estimates(
    operator: Operator[Any, Any],
) -> None:
    assert operator.kernels.keys() == operator.arguments.keys()
    header = HEADER.read_text()
    for kernel in operator.kernels:
        assert re.search(rf"\btf_{kernel}\(", header), f"tf_{kernel} has no prototype"
        assert kernel in RATES, f"{kernel} has no rates in codegen/program/instructions.py"
    assert re.search(rf"\}} {operator.struct};", header), f"{operator.struct} is no struct"


def test_random_graphs_go_through_every_kernel_of_every_row() -> None:
    makers = (random_graph, random_pooled_graph, random_gated_graph, random_recurrent_graph)
    graphs = [make(seed)[0] for make in makers for seed in range(12)]
    programs = [lower(graph, full_plan(graph)) for graph in graphs]
    calls = [call for one in programs for step in one.steps for call in step.calls()]
    seen = {(type(call.op), call.kernel) for call in calls}
    for operator in OPERATORS:
        for kernel in operator.kernels:
            assert (operator.kind, kernel) in seen, f"{operator.kind.__name__}: {kernel}"
