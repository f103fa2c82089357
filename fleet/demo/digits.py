"""The demo's model, boards and population: which device has which board, samples and resources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fleet import examples
from fleet.attach.samples import input_codes
from fleet.protocol.manifest import Manifest
from simulator.machines.device_spec import DeviceSpec
from simulator.world.digits import DeviceSamples

BOARDS = ("stm32f746", "stm32f407")
PLANS = ("small", "middle", "full")


@dataclass(frozen=True)
class Resources:
    """What a device can spare for training; the coordinator chooses its plan by that."""

    battery_percent: float
    link_bits_per_second: int


# A third of the devices each: mains and a fast link; a narrow-band link, over which the update of
# every layer would take too long; a low battery.
RESOURCES = (
    Resources(battery_percent=95.0, link_bits_per_second=115_200),
    Resources(battery_percent=80.0, link_bits_per_second=9_600),
    Resources(battery_percent=20.0, link_bits_per_second=115_200),
)


def example_folder() -> Path:
    """Where the digit model lies."""
    return examples.folder("digits")


def device_names(count: int) -> list[str]:
    """Names of the devices, in order."""
    return [f"mcu-{number:02}" for number in range(1, count + 1)]


def board_of(index: int) -> str:
    """Board of device number ``index``, from 0. Every plan meets every board."""
    return BOARDS[(index // len(RESOURCES)) % len(BOARDS)]


def resources_of(index: int) -> Resources:
    """Resources of device number ``index``, from 0."""
    return RESOURCES[index % len(RESOURCES)]


def population(
    shares: Sequence[DeviceSamples],
    bundles: Mapping[str, Path],
    passwords: Mapping[str, str],
    seed: int,
) -> list[DeviceSpec]:
    """The devices with what their sensors have recorded; all of it follows from the seed."""
    manifests = {
        board: Manifest.read(folder / "manifest.json") for board, folder in bundles.items()
    }
    specs = []
    for index, share in enumerate(shares):
        board, resources = board_of(index), resources_of(index)
        specs.append(
            DeviceSpec(
                device=share.device,
                bundle=bundles[board],
                password=passwords[share.device],
                samples=input_codes(manifests[board], share.x),
                labels=share.y,
                fleet="demo",
                battery_percent=resources.battery_percent,
                link_bits_per_second=resources.link_bits_per_second,
                seed=seed * 1000 + index,
            )
        )
    return specs
