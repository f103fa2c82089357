"""Which requests an unmasker answers: enough devices, known ones, whole seals, once. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fleet.errors import MaskError, MaskRefusedError
from fleet.protocol import masking
from fleet.protocol.keys import exchange_public
from fleet.protocol.mask_requests import (
    BROKEN_SEAL,
    OVERLAP,
    TOO_FEW,
    UNKNOWN_DEVICE,
    MaskRequest,
)
from fleet.unmasker.store import AnsweredSet

NAMED = 8
"""So many devices a refusal's text names; its list has them all."""


def require_enough(request: MaskRequest, least: int) -> None:
    """Raises where a set is smaller than the unmasker's least, or than what noise was sized for."""
    wanted, found = max(least, request.parameters.least_devices), len(request.members)
    if found < wanted:
        raise MaskRefusedError(TOO_FEW, f"{found} devices; a set has {wanted} at least")


def is_repeated(request: MaskRequest, recorded: Mapping[str, bytes]) -> bool:
    """Whether the same request was answered before.

    ``recorded`` has, of those of its devices that were in a set of its campaign and round, that
    set's digest (`MaskRequest.digest`). Raises where it is another set.
    """
    digest = request.digest()
    others = [one.device for one in request.members if recorded.get(one.device, digest) != digest]
    if others:
        raise MaskRefusedError(
            OVERLAP,
            f"in another set of round {request.round} of this campaign: {_some(others)}",
            others,
        )
    return bool(recorded)


def require_known(request: MaskRequest, keys: Mapping[str, bytes]) -> None:
    """Raises where a device isn't among those whose ``keys`` are good."""
    strangers = [one.device for one in request.members if one.device not in keys]
    if strangers:
        raise MaskRefusedError(
            UNKNOWN_DEVICE, f"not enrolled here, or revoked: {_some(strangers)}", strangers
        )


def open_seals(
    private: bytes, fleet: str, request: MaskRequest, keys: Mapping[str, bytes]
) -> list[bytes]:
    """The seeds of the set's masks, in the request's order; raises where a seal is broken.

    Args:
        private: the unmasker's X25519 key.
        fleet: that the seals have to be of.
        request: the set and its seals.
        keys: device → its public exchange key, as it was enrolled.
    """
    own = exchange_public(private)
    seeds, broken = [], []
    for one in request.members:
        key = keys[one.device]
        try:
            shared = masking.seal_key(private, key, key, own)
        except MaskError:  # a key of low order, with which everybody knows the secret
            broken.append(one.device)
            continue
        seed = masking.unseal(shared, one.nonce, one.seal, request.binding(fleet, one.device))
        if seed is None:
            broken.append(one.device)
        else:
            seeds.append(seed)
    if broken:
        raise MaskRefusedError(
            BROKEN_SEAL, f"of another key, or for something else: {_some(broken)}", broken
        )
    return seeds


@dataclass(frozen=True)
class NearSet:
    """Two sets of a campaign that differ by few devices, in rounds that follow each other.

    Where weights move little from one to the other, what their sums differ by is near to what
    those few devices taught.
    """

    earlier: AnsweredSet
    later: AnsweredSet
    devices: tuple[str, ...]
    """That are in one of them only."""


def near_sets(sets: Sequence[AnsweredSet], fewer_than: int) -> list[NearSet]:
    """Sets of one campaign and plan whose members differ, but by fewer devices than that.

    Each is compared with those of the last round before it that has any.
    """
    found: list[NearSet] = []
    before: dict[tuple[bytes, bytes], list[AnsweredSet]] = {}
    ordered = sorted(sets, key=lambda one: one.round)
    for later in ordered:
        key = (later.campaign, later.plan)
        past = [one for one in before.get(key, []) if one.round < later.round]
        last = max((one.round for one in past), default=0)
        for earlier in (one for one in past if one.round == last):
            devices = sorted(set(earlier.devices) ^ set(later.devices))
            if 0 < len(devices) < fewer_than:
                found.append(NearSet(earlier, later, tuple(devices)))
        before.setdefault(key, []).append(later)
    return found


def _some(devices: Sequence[str]) -> str:
    shown = ", ".join(devices[:NAMED])
    return shown if len(devices) <= NAMED else f"{shown} and {len(devices) - NAMED} more"
