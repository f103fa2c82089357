"""Which requests an unmasker answers: enough devices, known ones, whole seals, once. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def _some(devices: Sequence[str]) -> str:
    shown = ", ".join(devices[:NAMED])
    return shown if len(devices) <= NAMED else f"{shown} and {len(devices) - NAMED} more"
