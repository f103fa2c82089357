"""One device of a fleet, whatever it is run as."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Place:
    """Where a device's modem dials in: a broker that speaks MQTT, or MQTT over TLS."""

    host: str
    port: int
    ca_file: Path | None = None
    """Certificate (PEM) of who vouches for the broker, which then speaks TLS as ``host``."""


@dataclass(frozen=True, eq=False)
class DeviceSpec:
    """Who the device is, what it runs, and what its sensor has recorded."""

    device: str
    bundle: Path
    """Folder of the bundle (docs/specification/bundle.md)."""
    password: str
    samples: NDArray[np.int8]
    """[N, ...] in the model's input scale, HWC."""
    labels: NDArray[np.integer[Any]]
    """[N]"""
    fleet: str = "demo"
    machine: str = "unicorn"
    """How it is run: a name of ``simulator.machines.registry``."""
    reserved_sram_bytes: int = 0
    battery_percent: float = 100.0
    charging: bool = False
    """Told by machines whose port can tell: `host`."""
    link_bits_per_second: int = 115200
    seed: int = 0
    place: Place | None = None
    """Where it dials in; None: where its fleet does."""
    flash: tuple[tuple[int, bytes], ...] = ()
    """(address, bytes) that firmware which was on the board before has left there."""
    keys: bytes | None = None
    """Its own, as its identity region has them (docs/specification/masking.md); None: none, or
    those that it makes itself."""
    authority: bytes | None = None
    """Public key of its fleet's authority; None: it takes unsigned tasks."""
    keyring: bytes | None = None
    """A signed one, which it begins with."""
