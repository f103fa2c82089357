"""The sample region of a device's flash: who it is, and what its sensor recorded.

Format: docs/specification/flash.md, "Sample log"; the identity is the CDDL's `identity`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass

import cbor2
import numpy as np
from numpy.typing import NDArray

from codegen.firmware.flash_layout import record_alignment
from simulator.errors import ImageError

_MAGIC = 0x4C53
_IDENTITY, _SAMPLE = 1, 2
_HELD_OUT = 1
_HEADER = struct.Struct("<HBBHHI")
_HEADER_BYTES = 16
_LENGTH_SHIFT = 4
_PROTOCOL = 1


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

    identity: Identity
    samples: NDArray[np.int8]
    """[N, bytes of one sample]"""
    labels: NDArray[np.int64]
    """[N]"""
    held_out: NDArray[np.bool_]
    """[N]: every third sample only scores, it never trains."""


def held_out_mask(count: int) -> NDArray[np.bool_]:
    """Which of ``count`` samples, in order of recording, are held out: ordinal % 3 = 2."""
    return np.asarray(np.arange(count) % 3 == 2, np.bool_)


def _record(kind: int, flags: int, label: int, payload: bytes, unit: int) -> bytes:
    flags |= len(payload) >> 16 << _LENGTH_SHIFT
    size = len(payload) & 0xFFFF
    header = _HEADER.pack(_MAGIC, kind, flags, size, label, zlib.crc32(payload))
    record = header + struct.pack("<I", zlib.crc32(header)) + payload
    return record + b"\xff" * (-len(record) % unit)


def sample_region(
    identity: Identity, samples: NDArray[np.int8], labels: NDArray[np.integer], region_bytes: int
) -> bytes:
    """Records for the start of the sample region; the rest of it is erased flash.

    Args:
        identity: of the device.
        samples: int8 [N, ...] in the model's input scale, HWC.
        labels: [N], 0 … 65535.
        region_bytes: size of the region in the bundle's manifest.

    Raises: ImageError when samples and labels don't match or don't fit.
    """
    if samples.dtype != np.int8 or len(samples) != len(labels):
        raise ImageError(
            f"device {identity.device}: {len(samples)} samples of {samples.dtype} and"
            f" {len(labels)} labels; give one label for each int8 sample"
        )
    unit = record_alignment(region_bytes)
    parts = [_record(_IDENTITY, 0, 0, cbor2.dumps([_PROTOCOL, *astuple(identity)]), unit)]
    held_out = held_out_mask(len(samples))
    for sample, label, held in zip(samples, labels, held_out, strict=True):
        flags = _HELD_OUT if held else 0
        parts.append(_record(_SAMPLE, flags, int(label), sample.tobytes(), unit))
    content = b"".join(parts)
    if len(content) > region_bytes:
        raise ImageError(
            f"device {identity.device}: {len(samples)} samples take {len(content)} bytes, the"
            f" sample region has {region_bytes}; give it fewer samples"
        )
    return content


def _records(content: bytes, region_bytes: int | None) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, label, payload) of every record that is sound, as the device finds them."""
    first, unit = 0, record_alignment(len(content) if region_bytes is None else region_bytes)
    while first + _HEADER_BYTES <= len(content):
        header = content[first : first + 12]
        magic, kind, flags, size, label, payload_crc = _HEADER.unpack(header)
        (header_crc,) = struct.unpack_from("<I", content, first + 12)
        end = first + _HEADER_BYTES + (size | flags >> _LENGTH_SHIFT << 16)
        if magic != _MAGIC or header_crc != zlib.crc32(header) or end > len(content):
            first += unit
            continue
        payload = content[first + _HEADER_BYTES : end]
        if zlib.crc32(payload) == payload_crc:
            yield kind, flags, label, payload
        first = end + -end % unit


def read_sample_region(content: bytes, region_bytes: int | None = None) -> SampleLog:
    """What a device with this sample region would find in it.

    ``region_bytes`` is the size of the region where ``content`` is only its beginning.

    Raises: ImageError when there is no identity.
    """
    identity: Identity | None = None
    samples: list[bytes] = []
    labels: list[int] = []
    held_out: list[bool] = []
    for kind, flags, label, payload in _records(content, region_bytes):
        if kind == _IDENTITY:
            identity = Identity(*cbor2.loads(payload)[1:])
        elif kind == _SAMPLE:
            samples.append(payload)
            labels.append(label)
            held_out.append(bool(flags & _HELD_OUT))
    if identity is None:
        raise ImageError("the sample region holds no identity; write one with sample_region")
    return SampleLog(
        identity,
        np.frombuffer(b"".join(samples), np.int8).reshape(
            len(samples), len(samples[0]) if samples else 0
        ),
        np.array(labels, np.int64),
        np.array(held_out, np.bool_),
    )
