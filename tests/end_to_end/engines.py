"""The three ways to run a program, side by side: interpreter, host library, ARM image."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from codegen.compile import build_host_engine, compile_graph
from codegen.errors import ToolchainError
from codegen.firmware.boards import load_board
from codegen.firmware.host_engine import HostEngine
from codegen.firmware.toolchain import Toolchain, find_toolchain
from codegen.graph.ir import Graph, TensorOutput
from codegen.program.lowering import lower
from codegen.program.plans import Plan
from codegen.reference.interpreter import Interpreter
from simulator.machines.image_engine import ImageEngine, machine_for
from simulator.machines.registry import machine_kind


def toolchain_or_skip(compiler: Literal["gcc", "zig"]) -> Toolchain:
    """The toolchain; skips the test where it isn't installed."""
    try:
        return find_toolchain(compiler)
    except ToolchainError as error:
        pytest.skip(f"{compiler} can't be used here: {error}")


def assert_trains_to_the_same_bits(
    graph: Graph,
    plans: list[Plan],
    samples: NDArray[np.int8],
    labels: Sequence[int],
    *,
    board: str,
    toolchain: Toolchain,
    folder: Path,
) -> None:
    """Trains ``graph`` by every plan, one step per label, on all three engines.

    Logits, loss, delta and state must be equal; ``samples`` are input codes (n, H, W, C). Skips the
    test where the machine that has the board isn't installed.
    """
    if why := machine_kind(machine_for(load_board(board))).why_absent():
        pytest.skip(why)
    bundle = compile_graph(
        graph,
        load_board(board),
        plans,
        onnx_sha256="00" * 32,
        out=folder / "bundle",
        protocol_cddl=Path(str(files("fleet.protocol") / "tinyfleet.cddl")),
        toolchain=toolchain,
    )
    library = build_host_engine(bundle, folder / "engine.so")
    coded = isinstance(graph.ending, TensorOutput)
    for plan in plans:
        interpreter = Interpreter(lower(graph, plan))
        host = HostEngine(library, plan.id)
        with ImageEngine(bundle, plan.id) as image:
            for step, (sample, label) in enumerate(zip(samples, labels, strict=False)):
                engines = (interpreter, host, image)
                if coded:  # outputs are there until a training step needs the room
                    outputs = [(e.score(sample, label), e.logits)[1] for e in engines]
                for engine in engines:
                    engine.train_step(sample, label, 2**20 // 50, 99)
                if not coded:
                    outputs = [engine.logits for engine in engines]
                assert np.array_equal(outputs[0], outputs[1]), (plan.name, step)
                assert np.array_equal(outputs[0], outputs[2]), (plan.name, step)
                assert interpreter.loss_q16 == host.loss_q16 == image.loss_q16
            assert np.array_equal(interpreter.delta(), host.delta())
            assert host.state == image.state
