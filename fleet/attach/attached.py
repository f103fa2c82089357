"""Running virtual devices of one or several sites, and looking into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from codegen.firmware.bundle import Bundle, load_bundle
from codegen.firmware.flash_layout import slot_header_bytes
from simulator.devices.weights_slot import released_weights
from simulator.errors import FleetError
from simulator.fleet.fleet import DeviceStats, Fleet, worker_count
from simulator.machines.device_spec import DeviceSpec, Place


class Attached:
    """Virtual devices that run until the context is left."""

    def __init__(
        self, devices: Mapping[Place, Sequence[DeviceSpec]], *, workers: int | None = None
    ) -> None:
        """Nothing is started before the context is entered.

        Args:
            devices: by where they dial in; names differ between places, too.
            workers: processes for all of them together; None: two, or one on a single core.

        Raises: the simulator's FleetError for names that aren't each device's own.
        """
        specs = [replace(spec, place=place) for place, group in devices.items() for spec in group]
        self._specs = {spec.device: spec for spec in specs}
        self._bundles: dict[Path, Bundle] = {}
        self._fleet = Fleet(specs, workers=workers or worker_count())

    def __enter__(self) -> Self:
        """Boot the devices. Raises the simulator's FleetError naming one that can't be."""
        self._fleet.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Cut the power of all."""
        self._fleet.stop()

    def stats(self) -> dict[str, DeviceStats]:
        """State and counters of every device."""
        return self._fleet.stats()

    def online(self) -> set[str]:
        """Devices whose modem has a stream to the broker."""
        return {name for name, stats in self.stats().items() if stats.link == "connected"}

    def power_cycle(self, device: str, off_seconds: float = 0.1) -> None:
        """Cut power now and give it back later: SRAM is lost, flash is kept."""
        self._fleet.power_cycle(device, off_seconds)

    def flash_of(self, device: str) -> bytes:
        """The weights that a device's application infers with, as they lie in its flash.

        Raises: the simulator's FleetError for a device that isn't one of these.
        """
        bundle = self._bundle(device)
        manifest = bundle.manifest
        size = slot_header_bytes(manifest.weights.bytes) + manifest.weights.bytes
        slots = [
            self._fleet.read_flash(device, slot.address, size)
            for slot in (manifest.flash.slot_a, manifest.flash.slot_b)
        ]
        learnt = released_weights(slots, manifest.model.digest, manifest.weights.bytes)
        # Without a released version it is the one that is built into the firmware.
        return bundle.weights if learnt is None else learnt

    def _bundle(self, device: str) -> Bundle:
        try:
            folder = self._specs[device].bundle
        except KeyError:
            known = ", ".join(sorted(self._specs))
            raise FleetError(f"no virtual device {device!r}; there are {known}") from None
        if folder not in self._bundles:
            self._bundles[folder] = load_bundle(folder)
        return self._bundles[folder]
