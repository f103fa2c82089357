"""Manifests of a made-up model with three plans, on two boards."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

TENSORS: list[dict[str, Any]] = [
    {"name": "c1.w", "layer": "c1", "kind": "weight", "dtype": "int8", "shape": [4, 3, 3, 2]},
    {"name": "c1.b", "layer": "c1", "kind": "bias", "dtype": "int32", "shape": [4]},
    {"name": "c2.w", "layer": "c2", "kind": "weight", "dtype": "int8", "shape": [6, 1, 1, 4]},
    {"name": "c2.b", "layer": "c2", "kind": "bias", "dtype": "int32", "shape": [6]},
    {"name": "head.w", "layer": "head", "kind": "weight", "dtype": "int16", "shape": [3, 6]},
    {"name": "head.b", "layer": "head", "kind": "bias", "dtype": "int32", "shape": [3]},
]
_BYTES = {"int8": 1, "int16": 2, "int32": 4}
_LIMITS = {"int8": 127, "int16": 32767, "int32": 2**30}

SEGMENTS = {
    "small": [("c2.b", 0, 6, 0), ("head.w", 0, 6, 0), ("head.b", 0, 3, 2)],
    "middle": [
        ("c2.w", 1, 2, 3),
        ("c1.b", 0, 4, 0),
        ("c2.b", 0, 6, 1),
        ("head.w", 0, 6, 0),
        ("head.b", 0, 3, 2),
    ],
    "large": [
        ("c1.w", 0, 2, 2),
        ("c2.w", 0, 4, 2),
        ("c1.b", 0, 4, 0),
        ("c2.b", 0, 6, 0),
        ("head.w", 0, 6, 0),
        ("head.b", 0, 3, 2),
    ],
}
POOLS = {"small": 1000, "middle": 4000, "large": 9000}


def _size(shape: list[int]) -> int:
    return int(np.prod(shape))


def blob() -> bytes:
    """Weights of version 0."""
    random = np.random.default_rng(5)
    data = bytearray()
    for tensor in TENSORS:
        values = random.integers(-100, 101, _size(tensor["shape"]))
        dtype = {"int8": "<i1", "int16": "<i2", "int32": "<i4"}[tensor["dtype"]]
        data += values.astype(dtype).tobytes()
        data += bytes(-len(data) % 4)
    return bytes(data)


def manifest(board: str) -> dict[str, Any]:
    """A manifest.json for a board; plan ids are the same on all boards."""
    tensors, offset = [], 0
    for tensor in TENSORS:
        tensors.append(
            {**tensor, "offset": offset, "limit": _LIMITS[tensor["dtype"]], "step": [0.01]}
        )
        offset += _size(tensor["shape"]) * _BYTES[tensor["dtype"]]
        offset += -offset % 4
    shapes = {tensor["name"]: tensor["shape"] for tensor in TENSORS}
    plans = []
    for name, segments in SEGMENTS.items():
        entries = [
            {
                "tensor": tensor,
                "channels": [[start, count]],
                "values": _size(shapes[tensor][:-1]) * count,
                "shift": shift,
            }
            for tensor, start, count, shift in segments
        ]
        plans.append(
            {
                "id": hashlib.sha256(name.encode()).hexdigest(),
                "name": name,
                "plan": {},
                "delta_values": sum(entry["values"] for entry in entries),
                "pool_bytes": POOLS[name],
                "segments": entries,
            }
        )
    return {
        "format": "tinyfleet-manifest/2",
        "bundle_id": hashlib.sha256(board.encode()).hexdigest(),
        "model": {
            "name": "small",
            "digest": "d" * 64,
            "onnx_sha256": "0" * 64,
            "input": {"shape": [8, 8, 1], "scale": 0.1, "zero_point": 0},
            "classes": 3,
            "parameters": 1000,
        },
        "board": {"name": board},
        "weights": {
            "bytes": len(blob()),
            "sha256": hashlib.sha256(blob()).hexdigest(),
            "file": "weights.bin",
        },
        "tensors": tensors,
        "coordinates": sum(_size(tensor["shape"]) for tensor in TENSORS),
        "plans": plans,
    }


def manifest_texts(*boards: str) -> dict[str, str]:
    """Board → manifest.json text."""
    return {board: json.dumps(manifest(board)) for board in boards}


def device_entry(device: str, board: str, **fields: Any) -> dict[str, Any]:
    """A device as `hello` describes it."""
    return {
        "device": device,
        "board": board,
        "bundle": manifest(board)["bundle_id"],
        "current": hashlib.sha256(blob()).hexdigest(),
        "free_sram_bytes": 20000,
        "battery_percent": 90,
        "link_bits_per_second": 100_000,
        "train_samples": 20,
        "held_out_samples": 10,
        "online": True,
        "state": "idle",
        **fields,
    }
