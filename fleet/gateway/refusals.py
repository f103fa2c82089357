"""Why a delta isn't counted in, and what its device is told about that."""

from __future__ import annotations

from typing import NamedTuple

from fleet.gateway.rounds import RoundSpec
from fleet.protocol import Delta, ReceiptResult
from fleet.protocol.fields import PREFIX_BYTES

LATE, DUPLICATE = "late", "duplicate"
REASONS = (
    "unknown-round",
    "not-in-cohort",
    "older-lease",
    "wrong-lease",
    "wrong-plan",
    "wrong-weights",
    "malformed",
    "inconsistent-chunks",
    "crc",
    "coding",
    "range",
)
"""Of docs/specification/gateway.md, `collect`."""
KINDS = (LATE, DUPLICATE, *REASONS)
"""All by which deltas that aren't accepted are counted."""


class Refusal(NamedTuple):
    """What is counted, why, and the receipt: None where the device is to send again."""

    kind: str
    detail: str
    result: ReceiptResult | None = ReceiptResult.REFUSED
    counted_crc32: int | None = None
    """Of the delta that was counted; None: the receipt names the delta that came."""


def problem_with(spec: RoundSpec, device: str, announced: int, delta: Delta) -> Refusal | None:
    """What is wrong with a chunk for a running round, as far as it alone can tell.

    ``announced`` are the training samples that the device says it has.
    """
    task = spec.tasks[device]
    if delta.lease != task.lease:
        kind = "older-lease" if delta.lease < task.lease else "wrong-lease"
        return Refusal(kind, f"lease {delta.lease}, the task says {task.lease}")
    if delta.plan != task.plan[:PREFIX_BYTES]:
        return Refusal(
            "wrong-plan", f"plan {delta.plan.hex()}…, the task says {task.plan.hex()[:16]}…"
        )
    if delta.weights != task.weights[:PREFIX_BYTES]:
        return Refusal(
            "wrong-weights",
            f"trained from {delta.weights.hex()}…, the task says {task.weights.hex()[:16]}…",
        )
    for what in ("coding", "weighting"):
        said, asked = getattr(delta, what), getattr(spec, what)
        if said != asked:
            return Refusal("coding", f"{what} {said}, the task says {asked}")
    right = max(delta.correct_before, delta.correct_after, delta.correct_local)
    if right > delta.held_out_samples:
        return Refusal("range", f"more right answers than its {delta.held_out_samples} samples")
    # A round's own limit keeps a device from announcing more and more while the round runs.
    most = min(announced, task.most_samples) if spec.trains else 0
    if delta.train_samples > most:
        return Refusal(
            "range", f"claims {delta.train_samples} training samples, it may have {most}"
        )
    # Limits what a device can make the store keep, before anything of it is kept.
    if delta.coded_bytes > spec.form.max_coded_bytes(spec.plans[task.plan].values):
        return Refusal("coding", f"{delta.coded_bytes} bytes are more than the plan's values take")
    return _problem_with_chunk(delta, spec.parameters.uplink_chunk_bytes)


def _problem_with_chunk(delta: Delta, chunk_bytes: int) -> Refusal | None:
    chunks = max(1, -(-delta.coded_bytes // chunk_bytes))
    if delta.chunks != chunks or delta.chunk >= chunks:
        return Refusal(
            "inconsistent-chunks",
            f"chunk {delta.chunk} of {delta.chunks}; {delta.coded_bytes} bytes are {chunks}",
            None,
        )
    size = min(chunk_bytes, delta.coded_bytes - delta.chunk * chunk_bytes)
    if len(delta.coded) != size:
        return Refusal(
            "inconsistent-chunks",
            f"chunk {delta.chunk} has {len(delta.coded)} bytes instead of {size}",
            None,
        )
    return None
