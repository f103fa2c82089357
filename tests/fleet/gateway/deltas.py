"""What devices send in the tests of gateways; only the training is made up."""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.protocol import Action, Announce, Delta, Task, delta_coding

FLEET = "barn"
GATEWAY = "north"
CAMPAIGN = "00112233445566aa"
NO_CAMPAIGN = bytes(8)
PLAN = hashlib.sha256(b"plan").hexdigest()
OTHER_PLAN = hashlib.sha256(b"other plan").hexdigest()
BLOB = bytes(range(256)) * 21 + b"the end"
BLOB_CHUNKS = 11
WEIGHTS = hashlib.sha256(BLOB).hexdigest()


def announcement(**changes: Any) -> Announce:
    """What a device says about itself."""
    digest = bytes.fromhex(WEIGHTS)
    said: dict[str, Any] = {
        "board": "stm32f746",
        "bundle": b"b" * 32,
        "current": digest,
        "candidate": bytes(32),
        "lease": 0,
        "free_sram_bytes": 100_000,
        "battery": 90,
        "link_bits_per_second": 9600,
        "train_samples": 400,
        "held_out_samples": 30,
        "reset_cause": 0,
        "fault_code": 0,
        "fault_pc": 0,
    }
    return Announce(**{**said, **changes})


def tasks(
    leases: dict[str, int],
    samples: int = 65_535,
    plan: str = PLAN,
    weights: str = WEIGHTS,
    delays: dict[str, float] | None = None,
) -> dict[str, Any]:
    """An entry of a start request's ``tasks`` for devices with these leases."""
    devices: dict[str, list[float]] = {name: [lease, samples] for name, lease in leases.items()}
    for name, delay in (delays or {}).items():
        devices[name].append(delay)
    return {"plan": plan, "weights": weights, "devices": devices}


def start_fields(names: list[str], **changes: Any) -> dict[str, Any]:
    """A start request; ``lease`` and ``values`` are those of every device and of the plan."""
    lease, values = changes.pop("lease", 1), changes.pop("values", 700)
    return {
        "campaign": CAMPAIGN,
        "round": 1,
        "action": "train",
        "blobs": [{"sha256": WEIGHTS, "data": BLOB}],
        "tasks": [tasks(dict.fromkeys(names, lease))],
        "plans": {PLAN: {"values": values}},
        "epochs": 2,
        "learning_rate": 0.01,
        "seed": 7,
        "deadline_seconds": 100,
        "max_score_drop": 0.1,
        "check_in_seconds": 5,
        "target": len(names),
        **changes,
    }


def delta_chunks(
    task: Task, values: NDArray[np.int32], samples: int, **changes: Any
) -> list[Delta]:
    """The messages of a delta for ``task``; ``changes`` replace header fields."""
    coded = changes.pop("coded_all", None)
    if coded is None:
        coded = delta_coding.encode(values)
    size = task.uplink_chunk_bytes
    header = {
        "lease": task.lease,
        "campaign": task.campaign,
        "round": task.round,
        "plan": task.plan[:8],
        "weights": task.weights[:8],
        "coding": task.coding,
        "weighting": task.weighting,
        "chunks": max(1, -(-len(coded) // size)),
        "coded_bytes": len(coded),
        "coded_crc32": zlib.crc32(coded),
        "train_samples": samples,
        "train_steps": samples * task.epochs,
        "held_out_samples": 10,
        "correct_before": 4,
        "correct_after": 7,
        "loss_before_thousandths": 1500,
        "loss_after_thousandths": 800,
        "correct_local": 0,
        "kept": 0,
        **changes,
    }
    return [
        Delta(chunk=chunk, coded=coded[chunk * size : (chunk + 1) * size], **header)
        for chunk in range(header["chunks"])
    ]


UPLINK = 1024
"""Of `a_task`: a delta of `delta_of` has several chunks."""


def delta_of(device: str, values: int = 700) -> tuple[NDArray[np.int32], int]:
    random = np.random.default_rng(sum(device.encode()))
    return random.integers(-(2**31), 2**31, values).astype(np.int32), ord(device[0]) * 3


def a_task(plan: str = PLAN, **changes: Any) -> Task:
    fields: dict[str, Any] = {
        "lease": 1,
        "campaign": bytes.fromhex(CAMPAIGN),
        "round": 1,
        "action": Action.TRAIN,
        "plan": bytes.fromhex(plan),
        "weights": bytes.fromhex(WEIGHTS),
        "weights_bytes": len(BLOB),
        "chunk_bytes": 512,
        "epochs": 2,
        "learning_rate_q20": 1,
        "seed": 1,
        "coding": 0,
        "weighting": 0,
        "uplink_chunk_bytes": UPLINK,
        "deadline_seconds": 1,
        "max_score_drop_permille": 1,
        "check_in_seconds": 1,
    }
    return Task(**{**fields, **changes})
