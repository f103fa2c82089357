"""A device's identity as a file that is flashed beside its firmware.

Firmware is the same for all devices of a bundle; who a device is stands in a region of its own,
which is whole sectors (docs/specification/flash.md, "Identity"). So a programmer that erases the
sectors it writes replaces the identity and touches nothing else.
"""

from __future__ import annotations

from typing import Literal

from codegen.firmware.bundle import FlashInfo
from codegen.firmware.flash_record import (
    IDENTITY_KIND,
    KEYS_KIND,
    identity_records,
    newest_records,
)
from codegen.firmware.intel_hex import intel_hex
from fleet.errors import ConfigurationError, KeysError
from fleet.protocol import Identity
from fleet.protocol.keys import DeviceKeys, Enrolment
from fleet.security.provisioning import FleetKeys

ImageFormat = Literal["bin", "hex"]


def identity_image(
    flash: FlashInfo,
    identity: Identity,
    format: ImageFormat,
    fleet_keys: FleetKeys | None = None,
    device_keys: DeviceKeys | None = None,
) -> bytes:
    """The file with a device's identity, for boards with this layout.

    Args:
        flash: of the bundle's manifest.
        identity: of the device.
        format: ``hex`` is Intel HEX, which says where it belongs; ``bin`` is the bytes alone, which
            belong at ``flash.identity.address``.
        fleet_keys: whom the device is to believe; None: it takes unsigned tasks, and masks nothing.
        device_keys: its own; None: it makes them itself, where its port has entropy.

    Raises: ProtocolError for an identity that no device would take, ConfigurationError for one
        that the region has no room for.
    """
    region = flash.identity
    record = identity_records(
        identity.encode(),
        None if device_keys is None else device_keys.encode(),
        None if fleet_keys is None else fleet_keys.authority,
        None if fleet_keys is None else fleet_keys.keyring.encode(),
    )
    if len(record) > region.bytes:
        raise ConfigurationError(
            f"the identity of {identity.device} has {len(record)} bytes, its region at "
            f"{region.address:#010x} only {region.bytes}; compile the bundle again"
        )
    return intel_hex([(region.address, record)]) if format == "hex" else record


def enrolment_in(region: bytes) -> Enrolment:
    """The public side of the keys in an identity region, signed with the key that is in there.

    Raises: KeysError where the device has no keys yet, ProtocolError where its identity is none.
    """
    records = newest_records(region)
    if IDENTITY_KIND not in records:
        raise KeysError("there is no identity: it is no dump of an identity region")
    identity = Identity.decode(records[IDENTITY_KIND])
    if KEYS_KIND not in records:
        raise KeysError(
            f"{identity.device} has no keys of its own: it makes them at its first start with an "
            "authority, where its port has entropy; else `tinyfleet devices image --keys` does"
        )
    keys = DeviceKeys.decode(records[KEYS_KIND])
    if not keys.signing.is_pair:
        raise KeysError(f"{identity.device}'s signing key is damaged: write its identity again")
    return keys.enrol(identity.fleet, identity.device)
