"""The machines by name: how a device of a fleet can be run, and what each of these ways can.

``unicorn``: the board's image in an emulator, exact to the instruction. ``renode``: the same image
in Renode, where that is installed. ``qemu``: the image of one of Arm's own boards in QEMU.
``host``: the same C as a library of this computer, hundreds of devices a core.
docs/howto/add-a-machine.md adds another.

Each kind imports its machine when it is asked for one, so that a worker holds in memory only what
its devices run as.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from codegen.errors import CodegenError
from codegen.firmware.boards import Board, list_boards, load_board
from codegen.firmware.bundle import MANIFEST, FlashInfo, load_bundle
from simulator.clock import Milliseconds, host_milliseconds
from simulator.devices.flash_image import Identity, provision
from simulator.errors import FleetError, SimulatorError
from simulator.machines.device_spec import DeviceSpec
from simulator.machines.protocol import Capability, Machine

GROUP = "tinyfleet.machines"
"""The entry points that other packages' machines are found by: a `MachineKind`'s class each."""
FlashContent = list[tuple[int, bytes]]
"""(address, bytes)"""


class MachineKind(Protocol):
    """A way to run devices."""

    title: str
    """What it is, in a line."""
    capabilities: frozenset[Capability]
    """What it can beside what every ``Machine`` can."""

    def runs(self, board: Board) -> bool:
        """Whether it can be this board."""
        ...

    def why_absent(self) -> str:
        """Why it can't be used on this computer, and the remedy; empty where it can."""
        ...

    def counting(self, machine: Machine) -> AbstractContextManager[Callable[[], int]]:
        """Within it the function tells how many instructions ``machine`` has executed so far.

        Raises: SimulatorError where the kind doesn't declare that it counts them.
        """
        ...

    def prepare(self, bundle: Path, output: Path) -> None:
        """Once per bundle, before any device of it is built: make ``output`` where one is needed.

        Devices are built in other processes; whatever takes long is better done here.
        """
        ...

    def build(
        self, spec: DeviceSpec, content: FlashContent, prepared: Path, clock: Milliseconds
    ) -> Machine:
        """The device, powered on, with ``content`` in its flash; ``prepared`` is the ``output``."""
        ...


class _Kind:
    """What most kinds have in common."""

    title: str
    capabilities: frozenset[Capability]

    def why_absent(self) -> str:
        return ""

    def counting(self, machine: Machine) -> AbstractContextManager[Callable[[], int]]:
        raise SimulatorError(f"{type(machine).__name__} doesn't count instructions")

    def prepare(self, bundle: Path, output: Path) -> None:
        del bundle, output


class _Unicorn(_Kind):
    title = "the board's image in an emulator, exact to the instruction"
    capabilities = frozenset(Capability) - {Capability.CHARGING}

    def runs(self, board: Board) -> bool:
        from simulator.machines.unicorn_board import can_run

        return can_run(board)

    @contextmanager
    def counting(self, machine: Machine) -> Iterator[Callable[[], int]]:
        from simulator.machines.counting import InstructionCounter
        from simulator.machines.unicorn import UnicornMachine

        assert isinstance(machine, UnicornMachine)
        with InstructionCounter(machine) as counter:
            yield lambda: counter.total

    def build(
        self, spec: DeviceSpec, content: FlashContent, prepared: Path, clock: Milliseconds
    ) -> Machine:
        from simulator.machines.unicorn import UnicornMachine

        del prepared
        return UnicornMachine(
            load_board(Path(spec.bundle) / "board.json"),
            Path(spec.bundle) / "firmware.elf",
            clock=clock,
            battery_percent=lambda: spec.battery_percent,
            seed=spec.seed,
            flash_content=content,
            takes_turns=True,
        )


class _Host(_Kind):
    title = "the same C as a library of this computer: hundreds of devices a core"
    capabilities = frozenset({Capability.POWER_CUT, Capability.EXTERNAL_FLASH, Capability.CHARGING})

    def runs(self, board: Board) -> bool:
        del board
        return True

    def prepare(self, bundle: Path, output: Path) -> None:
        from simulator.machines.host import build_host_library

        build_host_library(load_bundle(bundle), output)

    def build(
        self, spec: DeviceSpec, content: FlashContent, prepared: Path, clock: Milliseconds
    ) -> Machine:
        from simulator.machines.host import HostMachine

        return HostMachine(
            spec.bundle,
            prepared,
            clock=clock,
            battery_percent=lambda: spec.battery_percent,
            charging=spec.charging,
            seed=spec.seed,
            flash_content=content,
        )


class _Renode(_Kind):
    title = "the board's image in Renode (docs/howto/renode.md)"
    capabilities = frozenset(
        {
            Capability.LINE_SPEED,
            Capability.POWER_CUT,
            Capability.EXTERNAL_FLASH,
            Capability.INSTRUCTION_COUNT,
        }
    )

    def runs(self, board: Board) -> bool:
        from simulator.machines.renode.platform_text import can_run

        return can_run(board)

    def why_absent(self) -> str:
        from simulator.machines.renode.monitor import RenodeError, find_renode

        return _refusal(find_renode, RenodeError)

    @contextmanager
    def counting(self, machine: Machine) -> Iterator[Callable[[], int]]:
        from simulator.machines.renode.machine import RenodeMachine

        assert isinstance(machine, RenodeMachine)
        before = machine.executed_instructions
        yield lambda: machine.executed_instructions - before

    def build(
        self, spec: DeviceSpec, content: FlashContent, prepared: Path, clock: Milliseconds
    ) -> Machine:
        from simulator.machines.renode.machine import RenodeMachine

        del prepared
        return RenodeMachine(
            load_board(Path(spec.bundle) / "board.json"),
            Path(spec.bundle) / "firmware.elf",
            clock=clock,
            battery_percent=lambda: spec.battery_percent,
            seed=spec.seed,
            flash_content=content,
        )


class _Qemu(_Kind):
    title = "the image of one of Arm's own boards in QEMU"
    capabilities = frozenset({Capability.POWER_CUT, Capability.STACK_USE, Capability.CHARGING})

    def runs(self, board: Board) -> bool:
        from simulator.machines.qemu.machine import can_run

        return can_run(board)

    def why_absent(self) -> str:
        from simulator.machines.qemu.debugger import QemuError
        from simulator.machines.qemu.process import find_qemu

        return _refusal(find_qemu, QemuError)

    def build(
        self, spec: DeviceSpec, content: FlashContent, prepared: Path, clock: Milliseconds
    ) -> Machine:
        from simulator.machines.qemu.machine import QemuMachine

        del prepared
        return QemuMachine(
            load_board(Path(spec.bundle) / "board.json"),
            Path(spec.bundle) / "firmware.elf",
            clock=clock,
            battery_percent=lambda: spec.battery_percent,
            charging=spec.charging,
            flash_content=content,
        )


def _refusal(find: Callable[[], str], error: type[SimulatorError]) -> str:
    try:
        find()
    except error as why:
        return str(why)
    return ""


MACHINES: Mapping[str, MachineKind] = {
    "unicorn": _Unicorn(),
    "host": _Host(),
    "renode": _Renode(),
    "qemu": _Qemu(),
}


def machine_kind(name: str) -> MachineKind:
    """The kind with this name.

    Raises: FleetError that names those there are.
    """
    if name in MACHINES:
        return MACHINES[name]
    for found in entry_points(group=GROUP, name=name):
        kind: MachineKind = found.load()()
        return kind
    raise FleetError(f"no machine {name!r}; devices run as one of {', '.join(machine_names())}")


def machine_names() -> list[str]:
    """All that there are, sorted: those of tinyfleet and those that other packages bring."""
    return sorted({*MACHINES, *entry_points(group=GROUP).names})


def boards_of(kind: MachineKind) -> list[str]:
    """Names of the boards that come with tinyfleet and that this kind runs, sorted."""
    return [name for name in list_boards() if kind.runs(load_board(name))]


def prepare_bundle(machine: str, bundle: Path, output: Path) -> None:
    """Have the machine's kind make what it needs of a bundle.

    Raises: FleetError for a bundle whose board it can't be; OSError, CodegenError.
    """
    _kind_that_runs(machine, bundle).prepare(bundle, output)


@functools.lru_cache(maxsize=64)
def _board(path: Path, changed: int) -> Board:
    """Of a bundle; a fleet asks once per device."""
    del changed  # another bundle in the same place is another entry
    return load_board(path)


def _kind_that_runs(name: str, bundle: Path) -> MachineKind:
    kind = machine_kind(name)
    path = Path(bundle) / "board.json"
    board = _board(path, path.stat().st_mtime_ns)
    if not kind.runs(board):
        others = [other for other in machine_names() if machine_kind(other).runs(board)]
        raise FleetError(
            f"machine {name} doesn't run board {board.name}, only {', '.join(boards_of(kind))}; "
            f"run the bundle as {' or '.join(others)}, or compile the model for another board"
        )
    return kind


def build_machine(
    spec: DeviceSpec, prepared: Path, clock: Milliseconds = host_milliseconds
) -> Machine:
    """A machine with the bundle's image, the device's identity and its samples in its flash.

    ``prepared`` is what its kind's ``prepare`` was given as output for the bundle.

    Raises: FleetError naming the device.
    """
    try:
        kind = _kind_that_runs(spec.machine, spec.bundle)
        return kind.build(spec, flash_content(spec), prepared, clock)
    except (OSError, ValueError, KeyError, CodegenError, SimulatorError) as error:
        raise FleetError(f"device {spec.device}, bundle {spec.bundle}: {error}") from error


@functools.lru_cache(maxsize=64)
def _flash_info(manifest: Path, changed: int) -> tuple[FlashInfo, str]:
    """The layout and what samples mean; a fleet asks once per device."""
    del changed  # another bundle in the same place is another entry
    content = json.loads(manifest.read_text())
    return FlashInfo.model_validate(content["flash"]), content["model"]["sample_digest"]


def flash_content(spec: DeviceSpec) -> FlashContent:
    """What is in a device's flash besides its firmware: what was left there, identity, samples."""
    path = Path(spec.bundle) / MANIFEST
    flash, sample_digest = _flash_info(path, path.stat().st_mtime_ns)
    written = provision(
        flash,
        sample_digest,
        Identity(
            spec.device,
            spec.fleet,
            spec.password,
            spec.reserved_sram_bytes,
            spec.link_bits_per_second,
        ),
        spec.samples,
        spec.labels,
        spec.keys,
        spec.authority,
        spec.keyring,
    )
    return [*spec.flash, *written]
