"""What is written to a device's flash from outside: who it is, and what its sensor recorded.

Formats: docs/specification/flash.md, "Identity" and "Sample log"; the identity is the CDDL's
`identity`.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass

import cbor2
import numpy as np
from numpy.typing import NDArray

from codegen.firmware.bundle import FlashInfo, SamplesInfo
from codegen.firmware.flash_layout import UNIT_HEADER_BYTES, record_alignment
from codegen.firmware.flash_record import (
    IDENTITY_KIND,
    identity_records,
    newest_records,
)
from codegen.firmware.model_digest import slot_word
from simulator.errors import ImageError

_UNIT_MAGIC = 0x31534654
_UNIT = struct.Struct("<6I")
_EVERYTHING = _ERASED = 0xFFFFFFFF
_SAMPLE_MAGIC, _SAMPLE = 0x4C53, 2
_HELD_OUT = 1
_HEADER = struct.Struct("<HBBHHI")
_HEADER_BYTES = 16
_LENGTH_SHIFT = 4
_PROTOCOL = 3


@dataclass(frozen=True)
class Identity:
    """What a device is told once, when it is commissioned."""

    device: str
    fleet: str
    password: str
    reserved_sram_bytes: int = 0
    link_bits_per_second: int = 115200


@dataclass(frozen=True, eq=False)
class SampleLog:
    """Content of a sample region."""

    samples: NDArray[np.int8]
    """[N, bytes of one sample]"""
    labels: NDArray[np.int64]
    """[N]"""
    held_out: NDArray[np.bool_]
    """[N]: every third sample only scores, it never trains."""


def provision(
    flash: FlashInfo,
    sample_digest: str,
    identity: Identity,
    samples: NDArray[np.int8],
    labels: NDArray[np.integer],
    keys: bytes | None = None,
    authority: bytes | None = None,
    keyring: bytes | None = None,
) -> list[tuple[int, bytes]]:
    """(address, bytes) of what a new device gets besides its firmware.

    Args:
        flash: of the bundle's manifest; so is
        sample_digest: `model.sample_digest`.
        identity: of the device.
        samples: int8 [N, ...] in the model's input scale, HWC.
        labels: [N], 0 … 65535.
        keys: as ``identity_region``'s; so are
        authority: and
        keyring: of the device.

    Raises: ImageError naming the device when samples and labels don't match or don't fit.
    """
    try:
        log = sample_region(samples, labels, flash.samples, sample_digest)
    except ImageError as error:
        raise ImageError(f"device {identity.device}: {error}") from None
    region = identity_region(identity, keys, authority, keyring)
    return [(flash.identity.address, region), (flash.samples.address, log)]


def identity_region(
    identity: Identity,
    keys: bytes | None = None,
    authority: bytes | None = None,
    keyring: bytes | None = None,
) -> bytes:
    """The records for the start of the identity region; the rest of it is erased flash.

    ``keys`` are the device's own (``fleet.protocol.keys.DeviceKeys.encode()``), ``authority`` is a
    public key, ``keyring`` a signed one (``SignedKeyring.encode()``); None leaves the record out.
    """
    message = cbor2.dumps([_PROTOCOL, *astuple(identity)])
    return identity_records(message, keys, authority, keyring)


def read_identity(content: bytes) -> Identity:
    """Who a device with this identity region is.

    Raises: ImageError when there is no identity.
    """
    payload = newest_records(content).get(IDENTITY_KIND)
    if payload is None:
        raise ImageError("the region holds no identity; write one with identity_region")
    return Identity(*cbor2.loads(payload)[1:])


def held_out_mask(count: int) -> NDArray[np.bool_]:
    """Which of ``count`` samples, in order of recording, are held out: ordinal % 3 = 2."""
    return np.asarray(np.arange(count) % 3 == 2, np.bool_)


def _unit_header(digest: int, unit_bytes: int, sequence: int, ordinal: int) -> bytes:
    header = _UNIT.pack(_UNIT_MAGIC, digest, unit_bytes, sequence, ordinal, _EVERYTHING)
    return header + struct.pack("<II", zlib.crc32(header), _ERASED)


def _record(flags: int, label: int, payload: bytes, place: int) -> bytes:
    flags |= len(payload) >> 16 << _LENGTH_SHIFT
    size = len(payload) & 0xFFFF
    header = _HEADER.pack(_SAMPLE_MAGIC, _SAMPLE, flags, size, label, zlib.crc32(payload))
    record = header + struct.pack("<I", zlib.crc32(header)) + payload
    return record + b"\xff" * (-len(record) % place)


def sample_region(
    samples: NDArray[np.int8], labels: NDArray[np.integer], region: SamplesInfo, sample_digest: str
) -> bytes:
    """Records for the start of the sample region; the rest of it is erased flash.

    Args:
        samples: int8 [N, ...] in the model's input scale, HWC.
        labels: [N], 0 … 65535.
        region: `flash.samples` of the bundle's manifest; so is
        sample_digest: `model.sample_digest`.

    Raises: ImageError when samples and labels don't match or don't fit.
    """
    if samples.dtype != np.int8 or len(samples) != len(labels):
        raise ImageError(
            f"{len(samples)} samples of {samples.dtype} and {len(labels)} labels; give one label "
            "for each int8 sample"
        )
    place = record_alignment(region.bytes)
    unit_bytes = region.bytes // region.units
    digest = slot_word(sample_digest)
    content = bytearray()
    units = 0
    for ordinal, (sample, label, held) in enumerate(
        zip(samples, labels, held_out_mask(len(samples)), strict=True)
    ):
        record = _record(_HELD_OUT if held else 0, int(label), sample.tobytes(), place)
        # The last place of a unit stays free.
        if len(content) + len(record) > units * unit_bytes - place:
            content += b"\xff" * (units * unit_bytes - len(content))
            units += 1
            content += _unit_header(digest, unit_bytes, units, ordinal)
            content += b"\xff" * (-len(content) % place)
            if units > region.units or len(content) + len(record) > units * unit_bytes - place:
                raise ImageError(
                    f"{len(samples)} samples of {sample.nbytes} bytes don't fit the sample region "
                    f"of {region.bytes} bytes in {region.units} units; give fewer samples"
                )
        content += record
    return bytes(content)


def _records(content: bytes, place: int) -> Iterator[tuple[int, int, bytes]]:
    """(flags, label, payload) of every record of a unit that is sound, as the device finds them."""
    first = -(-UNIT_HEADER_BYTES // place) * place
    while first + _HEADER_BYTES <= len(content):
        header = content[first : first + 12]
        magic, kind, flags, size, label, payload_crc = _HEADER.unpack(header)
        (header_crc,) = struct.unpack_from("<I", content, first + 12)
        end = first + _HEADER_BYTES + (size | flags >> _LENGTH_SHIFT << 16)
        if (magic, kind) != (_SAMPLE_MAGIC, _SAMPLE) or header_crc != zlib.crc32(header):
            first += place
            continue
        if end > len(content):
            first += place
            continue
        payload = content[first + _HEADER_BYTES : end]
        if zlib.crc32(payload) == payload_crc:
            yield flags, label, payload
        first = end + -end % place


def _sequence(unit: bytes, digest: int, unit_bytes: int) -> int:
    """Of a unit with samples of that model; 0 for any other."""
    magic, model, size, sequence, _, _ = _UNIT.unpack_from(unit)
    crc, retired = struct.unpack_from("<II", unit, _UNIT.size)
    counts = (
        (magic, model, size, retired) == (_UNIT_MAGIC, digest, unit_bytes, _ERASED)
    ) and crc == zlib.crc32(unit[: _UNIT.size])
    return int(sequence) if counts else 0


def read_sample_region(content: bytes, region: SamplesInfo, sample_digest: str) -> SampleLog:
    """What a device with this sample region, or the beginning of one, would find in it."""
    place = record_alignment(region.bytes)
    unit_bytes = region.bytes // region.units
    digest = slot_word(sample_digest)
    whole = content + b"\xff" * (region.bytes - len(content))
    units = [
        whole[start : start + unit_bytes - place] for start in range(0, region.bytes, unit_bytes)
    ]
    in_order = sorted(
        (unit for unit in units if _sequence(unit, digest, unit_bytes)),
        key=lambda unit: _sequence(unit, digest, unit_bytes),
    )
    found = list(itertools.chain.from_iterable(_records(unit, place) for unit in in_order))
    return SampleLog(
        np.frombuffer(b"".join(payload for _, _, payload in found), np.int8).reshape(
            len(found), len(found[0][2]) if found else 0
        ),
        np.array([label for _, label, _ in found], np.int64),
        np.array([bool(flags & _HELD_OUT) for flags, _, _ in found], np.bool_),
    )
