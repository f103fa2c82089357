"""Models too large for a board: the table of needs has the code in it, plans that fit are named."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codegen.compile import compile_graph
from codegen.errors import BudgetError
from codegen.firmware.boards import Board, load_board
from codegen.firmware.bundle import Bundle
from codegen.firmware.toolchain import find_toolchain
from codegen.graph.ir import Graph
from codegen.importer.model import import_model
from codegen.plan_search.nearest import suggestion
from codegen.program.plans import Plan, PlanSpec, resolve
from codegen.quantization.calibration_set import load_calibration
from codegen.quantization.quantize import quantize
from tests.codegen.test_compile import CALIBRATION, CDDL, COMPILERS, MODEL


@cache
def heavy_graph(weight_bytes: int) -> Graph:
    """The digits' network with a stretched head, so that the blob has about that many bytes."""
    graph = quantize(import_model(MODEL), load_calibration(CALIBRATION))
    classes = weight_bytes // (2 * graph.head.weight.shape[1])
    head = dataclasses.replace(
        graph.head,
        weight=np.resize(graph.head.weight, (classes, graph.head.weight.shape[1])),
        bias=np.resize(graph.head.bias, classes),
    )
    return dataclasses.replace(graph, ops=(*graph.ops[:-1], head))


def compiled_heavy(out: Path, weight_bytes: int, board: Board, kind: Any) -> Bundle:
    return compile_graph(
        heavy_graph(weight_bytes),
        board,
        None,
        onnx_sha256="0" * 64,
        out=out,
        protocol_cddl=CDDL,
        toolchain=find_toolchain(kind),
    )


@pytest.mark.parametrize("kind", COMPILERS)
@pytest.mark.parametrize("weight_bytes", [170_000, 300_000])
def test_a_model_too_big_for_the_flash_gives_the_table_of_needs(
    kind: Any, weight_bytes: int, tmp_path: Path
) -> None:
    board = load_board("stm32f746").model_copy(update={"external_flash": None})
    with pytest.raises(BudgetError, match=r"doesn't fit the flash of stm32f746") as caught:
        compiled_heavy(tmp_path / "out", weight_bytes, board, kind)
    text = str(caught.value)
    assert "smaller model" in text
    # The code is in the row of the firmware, also where no layout had room to link it in.
    shown = re.search(r"firmware with factory weights +([\d,]+) bytes", text)
    assert shown is not None
    external = load_board("stm32f746").external_flash
    sram = board.sram.model_copy(update={"bytes": 500_000})
    room = {"external_flash": external, "sram": sram, "sram_limit_bytes": sram.bytes}
    roomy = board.model_copy(update=room)
    sizes = compiled_heavy(tmp_path / "roomy", weight_bytes, roomy, kind).report.flash_bytes
    assert int(shown[1].replace(",", "")) == pytest.approx(sizes.total, abs=40_000)


def test_where_the_code_cannot_be_compiled_either_both_reasons_are_given(tmp_path: Path) -> None:
    board = load_board("stm32f746").model_copy(update={"external_flash": None, "clock_hz": 1_000})
    with pytest.raises(BudgetError, match=r"(?s)weights, without code .* can't compile clocks.c"):
        compiled_heavy(tmp_path / "out", 300_000, board, "gcc")


def test_a_head_that_is_too_large_is_left_out_of_the_plan_that_is_named(tmp_path: Path) -> None:
    graph, board = heavy_graph(300_000), load_board("stm32f746")

    def compiled_with(plans: list[Plan] | None) -> Bundle:
        return compile_graph(
            graph,
            board,
            plans,
            onnx_sha256="0" * 64,
            out=tmp_path / "out",
            protocol_cddl=CDDL,
            toolchain=find_toolchain("gcc"),
            suggest=suggestion,
        )

    with pytest.raises(BudgetError, match=r"None of them fits") as caught:
        compiled_with(None)
    suggested = [line for line in str(caught.value).splitlines() if line.startswith("The nearest")]
    assert len(suggested) == 3
    spec = PlanSpec.model_validate_json(suggested[0].partition(": ")[2])
    assert not spec.head
    (report,) = compiled_with([resolve(spec, graph)]).report.plans
    assert report.fits
    assert f"({report.sram_bytes.total:,} bytes of SRAM)" in suggested[0]


def test_weights_beyond_any_flash_are_refused_without_being_compiled(tmp_path: Path) -> None:
    board = load_board("stm32f746").model_copy(update={"external_flash": None})
    with pytest.raises(BudgetError, match=r"factory weights, without code +1,[12]\d\d,"):
        compiled_heavy(tmp_path / "out", 1_200_000, board, "gcc")
