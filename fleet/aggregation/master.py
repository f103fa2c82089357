"""The server's master weights: one float64 vector in integer steps.

A coordinate is a position in the manifest's tensors laid end to end. Devices hold the same
values as integers in a blob (docs/specification/bundle.md); the server keeps the fractions
that rounding would lose, so that many small rounds add up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fleet.errors import AggregationError
from fleet.protocol.manifest import TensorEntry

FloatVector = npt.NDArray[np.float64]
IndexVector = npt.NDArray[np.int64]

_DTYPES = {"int8": "<i1", "int16": "<i2", "int32": "<i4"}


def master_from_blob(layout: Sequence[TensorEntry], blob: bytes) -> FloatVector:
    """Master weights (steps, shape [coordinates]) from a weights blob, exactly."""
    parts = []
    for slot in layout:
        dtype = np.dtype(_DTYPES[slot.dtype])
        end = slot.offset + slot.bytes
        if end > len(blob):
            raise AggregationError(
                f"weights blob has {len(blob)} bytes but tensor {slot.name} ends at byte {end}: "
                "it belongs to another bundle"
            )
        places = np.frombuffer(blob, dtype, slot.places, slot.offset)
        parts.append(places[slot.place_of_values()].astype(np.float64))
    return np.concatenate(parts) if parts else np.zeros(0)


def blob_from_master(layout: Sequence[TensorEntry], master: FloatVector, size: int) -> bytes:
    """Weights blob of `size` bytes: rounded to the nearest even step, clamped to ±limit.

    Padding between tensors is zero. Raises `AggregationError` on a wrong length or on NaN.
    """
    total = sum(slot.size for slot in layout)
    if master.shape != (total,):
        raise AggregationError(
            f"master vector has shape {master.shape}, the layout has {total} values"
        )
    if not np.all(np.isfinite(master)):
        raise AggregationError(
            "master weights are not finite: resume from an earlier version and lower the "
            "server learning rate"
        )
    blob = bytearray(size)
    start = 0
    for slot in layout:
        part = np.clip(np.rint(master[start : start + slot.size]), -slot.limit, slot.limit)
        places = np.zeros(slot.places, _DTYPES[slot.dtype])
        places[slot.place_of_values()] = part
        packed = places.tobytes()
        if slot.offset + len(packed) > size:
            raise AggregationError(f"tensor {slot.name} ends behind the blob's {size} bytes")
        blob[slot.offset : slot.offset + len(packed)] = packed
        start += slot.size
    return bytes(blob)


def changed_values(before: bytes, after: bytes, layout: Sequence[TensorEntry]) -> int:
    """How many integers differ between two blobs of the same layout."""
    difference = master_from_blob(layout, before) != master_from_blob(layout, after)
    return int(np.count_nonzero(difference))
