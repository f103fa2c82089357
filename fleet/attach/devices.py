"""Virtual devices: who they are, what they run, and what they have recorded."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fleet.attach.samples import (
    Recording,
    check_samples,
    deal_digits,
    deal_file,
    input_codes,
    takes_digits,
)
from fleet.errors import ConfigurationError
from fleet.protocol.keys import DeviceKeys
from fleet.protocol.manifest import Manifest
from fleet.security.provisioning import FleetKeys
from simulator.devices.flash_image import held_out_mask
from simulator.machines.device_spec import DeviceSpec
from simulator.machines.registry import machine_kind


def virtual_devices(
    names: Sequence[str],
    passwords: Mapping[str, str],
    bundles: Mapping[str, Path],
    fleet: str,
    *,
    machine: str = "unicorn",
    data: Path | None = None,
    seed: int = 0,
    fleet_keys: FleetKeys | None = None,
    device_keys: Mapping[str, DeviceKeys] | None = None,
    shuffle_training_labels: Collection[str] = (),
    shuffle_held_out_labels: Collection[str] = (),
) -> list[DeviceSpec]:
    """Devices that are ready to be attached; the same arguments give the same devices.

    Args:
        names: of the devices. Those of several sites belong in one call, so that no two of them
            are dealt the same sample.
        passwords: name → password at the broker.
        bundles: board → folder of its bundle; the devices get them in turn.
        fleet: its name.
        machine: how they are run, a name of ``simulator.machines.registry``.
        data: NPZ file of samples (``deal_file`` says what is in it). Without one the devices get
            digits, where that is what the model takes.
        seed: of all that is random.
        fleet_keys: whom they believe; None: they take unsigned tasks, and mask nothing.
        device_keys: name → its own keys, where they don't make them themselves.
        shuffle_training_labels: devices whose labels are shuffled among the samples that they train
            on; what they score themselves on is right.
        shuffle_held_out_labels: devices whose labels are shuffled among the samples that they score
            themselves on.

    Raises: ConfigurationError, ManifestError; the simulator's FleetError for an unknown machine.
    """
    machine_kind(machine)
    _check_names(names, passwords, {*shuffle_training_labels, *shuffle_held_out_labels})
    if not bundles:
        raise ConfigurationError("virtual devices need the bundle of at least one board")
    manifests = {board: Manifest.read(folder) for board, folder in bundles.items()}
    for board, manifest in manifests.items():
        if manifest.model.target_scale is not None:
            raise ConfigurationError(
                f"the model of {bundles[board]} is trained for targets, which virtual devices "
                "don't record; try it with tinyfleet measure --data"
            )
    recordings = _recordings(names, bundles, manifests, data, seed)
    boards = list(bundles)
    specs = []
    for index, (name, recording) in enumerate(zip(names, recordings, strict=True)):
        board = boards[index % len(boards)]
        if data is not None:
            check_samples(data, recording, manifests[board], bundles[board])
        labels, held_out = recording.y, held_out_mask(len(recording.y))
        if name in shuffle_training_labels:
            labels = _shuffled(labels, ~held_out, _seed_of(name, seed, "training"))
        if name in shuffle_held_out_labels:
            labels = _shuffled(labels, held_out, _seed_of(name, seed, "held out"))
        specs.append(
            DeviceSpec(
                device=name,
                bundle=bundles[board],
                password=passwords[name],
                samples=input_codes(manifests[board], recording.x),
                labels=labels,
                fleet=fleet,
                machine=machine,
                seed=_seed_of(name, seed, "machine"),
                keys=device_keys[name].encode() if device_keys else None,
                authority=fleet_keys.authority if fleet_keys else None,
                keyring=fleet_keys.keyring.encode() if fleet_keys else None,
            )
        )
    return specs


def _check_names(names: Sequence[str], passwords: Mapping[str, str], spoilt: set[str]) -> None:
    if not names or len(set(names)) != len(names):
        raise ConfigurationError("give at least one virtual device, and each a name of its own")
    if without := sorted(set(names) - passwords.keys()):
        raise ConfigurationError(f"devices without a password: {', '.join(without)}")
    if strangers := sorted(spoilt - set(names)):
        raise ConfigurationError(
            f"labels of {', '.join(strangers)} can't be shuffled: no virtual devices are called so"
        )


def _recordings(
    names: Sequence[str],
    bundles: Mapping[str, Path],
    manifests: Mapping[str, Manifest],
    data: Path | None,
    seed: int,
) -> list[Recording]:
    if data is not None:
        needs_labels = any(one.model.has_accuracy for one in manifests.values())
        return deal_file(data, names, seed, needs_labels)
    for board, manifest in manifests.items():
        if not takes_digits(manifest):
            height, width, channels = manifest.model.input.shape
            labels = f" and y (n,) of 0 … {manifest.model.labels - 1}"
            raise ConfigurationError(
                f"virtual devices with the model {manifest.model.name} of {bundles[board]} need "
                f"samples: give an NPZ file with --data, with x (n, {height}, {width}, {channels})"
                + (labels if manifest.model.has_accuracy else "")
            )
    return [Recording(share.x, share.y) for share in deal_digits(names, seed)]


def _shuffled(labels: NDArray[np.int64], which: NDArray[np.bool_], seed: int) -> NDArray[np.int64]:
    shuffled = labels.copy()
    shuffled[which] = np.random.default_rng(seed).permutation(labels[which])
    return shuffled


def _seed_of(name: str, seed: int, use: str) -> int:
    """32 bits for one use of one device, whatever other devices there are."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{use}/{name}".encode()).digest()[:4], "little")
