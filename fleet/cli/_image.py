"""A device's identity as a file that is flashed beside its firmware.

Firmware is the same for all devices of a bundle; who a device is stands in a region of its own,
which is whole sectors (docs/specification/flash.md, "Identity"). So a programmer that erases the
sectors it writes replaces the identity and touches nothing else.
"""

from __future__ import annotations

from typing import Literal

from codegen.firmware.bundle import FlashInfo
from codegen.firmware.flash_record import identity_records
from codegen.firmware.intel_hex import intel_hex
from fleet.errors import ConfigurationError
from fleet.protocol import Identity

ImageFormat = Literal["bin", "hex"]


def identity_image(flash: FlashInfo, identity: Identity, format: ImageFormat) -> bytes:
    """The file with a device's identity, for boards with this layout.

    Args:
        flash: of the bundle's manifest.
        identity: of the device.
        format: ``hex`` is Intel HEX, which says where it belongs; ``bin`` is the bytes alone, which
            belong at ``flash.identity.address``.

    Raises: ProtocolError for an identity that no device would take, ConfigurationError for one
        that the region has no room for.
    """
    record, region = identity_records(identity.encode()), flash.identity
    if len(record) > region.bytes:
        raise ConfigurationError(
            f"the identity of {identity.device} has {len(record)} bytes, its region at "
            f"{region.address:#010x} only {region.bytes}; compile the bundle again"
        )
    return intel_hex([(region.address, record)]) if format == "hex" else record
