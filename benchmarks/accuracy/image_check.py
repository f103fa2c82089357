"""The same steps on the host library and on the ARM image in emulation, compared bit for bit."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from benchmarks.accuracy.frozen import trained_tail
from benchmarks.accuracy.tasks import Task
from benchmarks.accuracy.training import Schedule, device_steps
from codegen.compile import build_host_engine, compile_graph
from codegen.firmware.boards import load_board
from codegen.firmware.host_engine import HostEngine
from codegen.firmware.toolchain import find_toolchain
from codegen.program.lowering import lower
from codegen.program.plans import State, resolve
from simulator.machines.image_engine import ImageEngine

BOARD = "stm32f746"


def check_on_image(
    task: Task, plan_name: str, schedule: Schedule, steps: int, state: State = "q8.8"
) -> None:
    """The first ``steps`` of seed 0 on both; raises SystemExit at the first different bit."""
    whole, cases = task.prepare(0)
    plan = replace(resolve(task.plans(whole)[plan_name], whole), state=state)
    graph, samples = trained_tail(whole, plan, next(iter(cases.values())))
    order = device_steps(next(schedule.order(len(samples.train), 0)), schedule)
    with tempfile.TemporaryDirectory() as folder:
        library = build_host_engine((graph, [lower(graph, plan)]), Path(folder) / "engine.so")
        bundle = compile_graph(
            graph,
            load_board(BOARD),
            [plan],
            onnx_sha256="00" * 32,
            out=Path(folder) / "bundle",
            protocol_cddl=Path(str(files("fleet.protocol") / "tinyfleet.cddl")),
            toolchain=find_toolchain(),
        )
        host = HostEngine(library, plan.id)
        with ImageEngine(bundle, plan.id) as image:
            for done, (index, rate_q20) in zip(range(steps), order, strict=False):
                sample, label = samples.train[index], int(samples.train_labels[index])
                host.train_step(sample, label, rate_q20, 0)
                image.train_step(sample, label, rate_q20, 0)
                if host.state != image.state or host.loss_q16 != image.loss_q16:
                    raise SystemExit(f"plan {plan_name}: different bits after step {done + 1}")
    print(f"plan {plan_name}: {steps} steps, {len(host.state):,} bytes of state, all bits equal")
