"""The C of the page on inference does what the page says."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

from codegen.emit.sources import emit
from codegen.host_toolchain import host_toolchain
from codegen.program.blob import published_by
from codegen.program.lowering import lower
from codegen.program.plans import default_plans
from codegen.reference.interpreter import Interpreter
from device_runtime import engine_sources, include_directories
from tests.codegen.random_graphs import random_picture_graph

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "infer-on-a-device.md"

AROUND = """
tf_engine *loaded(uint32_t plan) {
    static tf_engine engine;
    static uint64_t pool[1 << 12];
    const tf_status status = tf_engine_load(&engine, &tf_the_model, &tf_the_model.plans[plan],
                                            tf_the_model.factory_weights, pool, sizeof pool);
    return status == TF_OK ? &engine : 0;
}
"""


def test_an_autoencoders_picture_and_difference_are_the_interpreters(tmp_path: Path) -> None:
    graph, samples = random_picture_graph(3)
    programs = [lower(graph, plan) for plan in default_plans(graph)]
    weights = published_by(graph, [program.plan for program in programs])
    for name, text in emit(graph, programs, weights, "00" * 32).items():
        (tmp_path / name).write_text(text)
    (example,) = re.findall(r"```c\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "example.c").write_text(example + AROUND)
    built = host_toolchain().build_host(
        [*tmp_path.glob("*.c"), *engine_sources()],
        include_dirs=[tmp_path, *include_directories()],
        output=tmp_path / "example.so",
    )
    library = ctypes.CDLL(str(built.output))
    library.loaded.restype = ctypes.c_void_p
    library.difference.restype = ctypes.c_uint32
    library.picture_code.restype = ctypes.c_int32
    assert len(programs) > 1
    for number, program in enumerate(programs):
        engine = ctypes.c_void_p(library.loaded(number))
        assert engine
        interpreter = Interpreter(program)
        for sample in samples[:3]:
            interpreter.score(sample, 0)
            assert library.difference(engine, sample.tobytes()) == interpreter.loss_q16
            codes = [library.picture_code(engine, i) for i in range(graph.ending.outputs)]
            assert codes == interpreter.logits.tolist()
