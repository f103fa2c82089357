"""Sets of kernels: what they hold, which runs, and that all of them train to the same bits."""

import ctypes
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from codegen.compile import build_host_engine
from codegen.emit.sources import emit
from codegen.errors import PlanError
from codegen.firmware.host_engine import HostEngine, choose_kernels, kernel_sets
from codegen.graph.ir import Graph
from codegen.host_kernels import PORTABLE, SETS, host_engine_sources
from codegen.host_toolchain import HostToolchain, Source, host_toolchain, version_of, zig_command
from codegen.importer.model import import_model
from codegen.program.blob import published_by
from codegen.program.lowering import lower
from codegen.program.plans import load_plan, resolve
from codegen.program.steps import Program
from codegen.quantization.calibration_set import load_calibration
from codegen.quantization.quantize import quantize, quantize_input
from device_runtime import include_directories

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
RATE_Q20 = 2**20 // 100
STEPS = 12


def test_the_table_has_every_kernel() -> None:
    folder = include_directories()[0] / "tinyfleet"
    kernels = re.findall(r"^\w+ tf_(\w+)\(", (folder / "kernels.h").read_text(), re.MULTILINE)
    called = [name for name in kernels if not name.endswith("_scratch_bytes")]
    table = (folder / "kernel_table.h").read_text()
    assert sorted(re.findall(r"member\((\w+)\)", table)) == sorted(called)
    names = (folder / "kernel_names.h").read_text()
    assert set(kernels) <= set(re.findall(r"TF_KERNEL\((\w+)\)", names))


@pytest.fixture(scope="module")
def digits() -> tuple[Graph, np.ndarray, Program]:
    calibration = load_calibration(DIGITS / "calibration.npz")
    graph = quantize(import_model(DIGITS / "digits.onnx"), calibration)
    samples = quantize_input(graph, np.moveaxis(calibration, 1, -1))
    return graph, samples, lower(graph, resolve(load_plan(f"{DIGITS / 'plans.json'}#full"), graph))


@pytest.mark.parametrize("compiler", ["cc", pytest.param("zig", marks=pytest.mark.slow)])
def test_all_sets_of_kernels_train_to_the_same_bits(
    compiler: str, digits: tuple[Graph, np.ndarray, Program], tmp_path: Path
) -> None:
    graph, samples, program = digits
    if not is_there(compiler):
        pytest.skip(f"there is no {compiler} here")
    toolchain = zig() if compiler == "zig" else host_toolchain(compiler)
    library = build_host_engine((graph, [program]), tmp_path / "engine.so", toolchain)
    engine = HostEngine(library, program.plan.id)
    states = {}
    for name in kernel_sets(library):
        choose_kernels(library, name)
        engine.load()
        for index in range(STEPS):
            engine.train_step(samples[index], index % 10, RATE_Q20, 3)
        states[name] = engine.state, engine.loss_q16, engine.delta().tobytes()
    assert PORTABLE in states
    assert len(set(states.values())) == 1
    assert np.frombuffer(states[PORTABLE][2], np.int32).any()


@pytest.mark.slow
def test_sets_of_64_bit_arm_hosts_train_to_the_same_bits_as_those_here(
    digits: tuple[Graph, np.ndarray, Program], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, _, program = digits
    emulator = shutil.which("qemu-aarch64")
    if emulator is None or zig_command() is None:
        pytest.skip("qemu-aarch64 (Debian: qemu-user) or zig isn't there")
    here = trained_by(build_trainer(graph, program, tmp_path / "here", host_toolchain()), SETS[-1:])
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    command = *(zig_command() or ()), "-target", "aarch64-linux-musl"
    arm = HostToolchain("host", command, "zig for aarch64")
    trainer = build_trainer(graph, program, tmp_path / "there", arm)
    assert trained_by([emulator, *trainer], ["neon", PORTABLE]) == here * 2


def build_trainer(
    graph: Graph, program: Program, folder: Path, toolchain: HostToolchain
) -> list[str]:
    """The program of train.c."""
    folder.mkdir()
    weights = published_by(graph, [program.plan])
    generated = []
    for name, text in emit(graph, [program], weights, "00" * 32).items():
        (folder / name).write_text(text)
        generated += [Source(folder / name)] if name.endswith(".c") else []
    trainer = Source(Path(__file__).parent / "train.c", flags=("-DTF_KERNEL_SETS",))
    toolchain.build_host(
        [*host_engine_sources(generated), trainer],
        include_dirs=[folder, *include_directories()],
        output=folder / "train",
        shared=False,
    )
    return [str(folder / "train")]


def trained_by(command: list[str], sets: Sequence[str]) -> list[str]:
    """The checksums of what sets of kernels have trained."""
    done = subprocess.run([*command, *sets], capture_output=True, text=True, check=True)
    return [line.split()[1] for line in done.stdout.splitlines()]


def test_an_unknown_set_of_kernels_is_refused(
    digits: tuple[Graph, np.ndarray, Program], tmp_path: Path
) -> None:
    graph, _, program = digits
    library = build_host_engine((graph, [program]), tmp_path / "engine.so")
    before = chosen(library)
    with pytest.raises(PlanError, match=f"no kernels 'mmx'; it has .*{PORTABLE}"):
        choose_kernels(library, "mmx")
    assert chosen(library) == before
    assert set(kernel_sets(library)) <= set(SETS)


def is_there(compiler: str) -> bool:
    """Whether the compiler can be called."""
    return zig_command() is not None if compiler == "zig" else shutil.which(compiler) is not None


def zig() -> HostToolchain:
    """zig for this machine, whatever else there is."""
    command = zig_command()
    assert command is not None
    return HostToolchain("host", command, version_of(command, "zig"))


def chosen(library: Path) -> int:
    """Where the table of the set in use lies."""
    return ctypes.c_void_p.in_dll(ctypes.CDLL(str(library)), "tf_kernels").value or 0
