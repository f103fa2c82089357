"""Files of PyTorch's exporters, whole way: interpreter, host library and ARM image agree."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from codegen.boards import load_board
from codegen.compile import build_host_engine, compile_graph
from codegen.errors import ToolchainError
from codegen.host_engine import HostEngine
from codegen.importer import import_model
from codegen.interpreter import Interpreter
from codegen.lowering import lower
from codegen.quantize import quantize, quantize_input
from codegen.toolchain import find_toolchain
from simulator.image_engine import ImageEngine
from tests.codegen.random_graphs import full_plan, random_plan

MODELS = Path(__file__).parents[1] / "codegen" / "models"
STEPS = 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["fire_dynamo", "inertial_script", "autoencoder_dynamo", "ds_cnn_flat_script",
             "preactivation_dynamo"],
)  # fmt: skip
def test_an_exported_model_trains_to_the_same_bits_everywhere(name: str, tmp_path: Path) -> None:
    try:
        toolchain = find_toolchain("gcc")
    except ToolchainError as error:
        pytest.skip(f"gcc can't be used here: {error}")
    float_graph = import_model(MODELS / f"{name}.onnx")
    given = np.random.default_rng(1).normal(size=(16, *float_graph.sample_shape))
    samples = float_graph.arrange(given.astype(np.float32))
    graph = quantize(float_graph, samples)
    codes = quantize_input(graph, np.moveaxis(samples, 1, -1))
    plans = [full_plan(graph), random_plan(graph, 5)]
    bundle = compile_graph(
        graph,
        load_board("stm32f746"),
        plans,
        onnx_sha256="00" * 32,
        out=tmp_path / "bundle",
        protocol_cddl=Path(str(files("fleet.protocol") / "tinyfleet.cddl")),
        toolchain=toolchain,
    )
    library = build_host_engine(bundle, tmp_path / "engine.so")
    for plan in plans:
        interpreter = Interpreter(lower(graph, plan))
        host = HostEngine(library, plan.id)
        with ImageEngine(bundle, plan.id) as image:
            for step in range(STEPS):
                for engine in (interpreter, host, image):
                    engine.train_step(codes[step], step, 2**20 // 50, 99)
                assert np.array_equal(interpreter.logits, host.logits), (plan.name, step)
                assert np.array_equal(interpreter.logits, image.logits), (plan.name, step)
                assert interpreter.loss_q16 == host.loss_q16 == image.loss_q16
            assert np.array_equal(interpreter.delta(), host.delta())
            assert host.state == image.state
