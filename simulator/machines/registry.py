"""The machines by name: how a device of a fleet can be run.

``unicorn``: the board's image in an emulator, exact to the instruction. ``renode``: the same image
in Renode, where that is installed. ``host``: the same C as a library of this computer, hundreds of
devices a core. docs/howto/add-a-machine.md adds another.

Each kind imports its machine when it is asked for one, so that a worker holds in memory only what
its devices run as.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from codegen.errors import CodegenError
from codegen.firmware.boards import load_board
from codegen.firmware.bundle import MANIFEST, FlashInfo, load_bundle
from simulator.clock import Milliseconds, host_milliseconds
from simulator.devices.flash_image import Identity, provision
from simulator.errors import FleetError, SimulatorError
from simulator.machines.device_spec import DeviceSpec
from simulator.machines.protocol import Machine

GROUP = "tinyfleet.machines"
"""The entry points that other packages' machines are found by: a `MachineKind`'s class each."""
FlashContent = list[tuple[int, bytes]]
"""(address, bytes)"""


class MachineKind(Protocol):
    """A way to run devices."""

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


class _Unicorn:
    def prepare(self, bundle: Path, output: Path) -> None:
        del bundle, output

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
        )


class _Host:
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


class _Renode:
    def prepare(self, bundle: Path, output: Path) -> None:
        del bundle, output

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
            flash_content=content,
        )


MACHINES: Mapping[str, MachineKind] = {
    "unicorn": _Unicorn(),
    "host": _Host(),
    "renode": _Renode(),
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


def build_machine(
    spec: DeviceSpec, prepared: Path, clock: Milliseconds = host_milliseconds
) -> Machine:
    """A machine with the bundle's image, the device's identity and its samples in its flash.

    ``prepared`` is what its kind's ``prepare`` was given as output for the bundle.

    Raises: FleetError naming the device.
    """
    try:
        return machine_kind(spec.machine).build(spec, flash_content(spec), prepared, clock)
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
    )
    return [*spec.flash, *written]
