"""Masked rounds: what a campaign says of them, and how devices are dealt to sets (masking.md).

A *set* is the devices of one update plan and one part of a round, over all gateways. Only its sum
is ever unmasked, so a set has to be large enough to hide in and small enough for the masks' bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field

from fleet.aggregation.rules import WantedSets
from fleet.campaign.draws import draw
from fleet.protocol import fields
from fleet.protocol.masking import MOST_DEVICES, MaskParameters, bits_for

TOO_FEW = "too-few-to-hide"
"""Why a device isn't asked: too few others train the same update plan."""

# Sums of devices that do as they should take up to this share of what 16 bits hold, so that a sum
# of something else, which is anywhere, nearly always shows.
_FILLED = 0.25
_USUAL_BITS = 16
USUAL_BOUND = 127
"""Of a value where nobody says it, at least."""


class Masking(BaseModel):
    """How devices hide in sets of each other; with `coding: masked`."""

    model_config = fields.FORM

    least_devices: Annotated[int, Field(ge=2, le=MOST_DEVICES)] = 20
    """Devices whose sum is unmasked together, at least. Devices and unmaskers hold to it."""
    spare: Annotated[float, Field(ge=0.0, le=4.0)] = 0.25
    """Sets have so many more devices where there are enough, as a share, since some deliver nothing
    and a set that is left with too few counts nothing."""
    value_bound: Annotated[int, Field(ge=1, le=fields.uint16.most)] | None = None
    """Larger values of a delta are cut off there. Where left out, a quarter of what 16 bits hold is
    shared by the devices of the largest set, and it is 127 at least."""
    patience_seconds: Annotated[float, Field(ge=0.0)] = 3600.0
    """How long an unmasker that can't be reached is waited for; then the sets count nothing. Before
    a round: one that couldn't unmask it; then the campaign fails."""

    @property
    def wanted_devices(self) -> int:
        """Of a set, if there are so many."""
        return math.ceil(self.least_devices * (1 + self.spare))


@dataclass(frozen=True)
class MaskedRound:
    """What a masked round's plan says of its masks, fixed before the first message.

    `unmaskers` are their public keys (hex) in the keyring's order. `gateways` are those whose
    answers count, fixed before an unmasker is asked: a set has one request, whoever asks again.
    """

    parameters: MaskParameters
    unmaskers: tuple[str, ...]
    parts: int
    gateways: tuple[str, ...] | None = None

    @property
    def keys(self) -> tuple[bytes, ...]:
        """The unmaskers' public keys."""
        return tuple(map(bytes.fromhex, self.unmaskers))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `dataclasses.asdict`."""
        gateways = data["gateways"]
        return cls(
            MaskParameters(**data["parameters"]),
            tuple(data["unmaskers"]),
            data["parts"],
            None if gateways is None else tuple(gateways),
        )


@dataclass(frozen=True)
class Protection:
    """What a round asks of devices beside the mask: the clip of their norms, and noise.

    As in a task (wire.md); zeros: nothing. `least_devices`: for how many the noise is sized.
    """

    clip: int = 0
    norm_share: int = 0
    noise_variance: int = 0
    least_devices: int = 0


def mask_parameters(masking: Masking, devices: int, protection: Protection) -> MaskParameters:
    """What the tasks of a round say of its masks, whose largest set has so many devices.

    Raises `MaskError` where no number of bits holds such a sum.
    """
    bound = masking.value_bound
    if bound is None:
        room = int(_FILLED * (1 << (_USUAL_BITS - 1))) // devices
        bound = min(max(USUAL_BOUND, room, protection.norm_share), fields.uint16.most)
    draft = MaskParameters(
        32,
        bound,
        protection.clip,
        protection.norm_share,
        protection.noise_variance,
        max(masking.least_devices, protection.least_devices),
    )
    return replace(draft, bits=bits_for(draft, devices))


def set_sizes(devices: int, least: int, wanted: int, rule: WantedSets) -> list[int]:
    """How so many devices of one update plan are dealt to sets: of `least` … 256 each.

    As many sets as have `wanted` devices each and are of use to the rule, and more than its most
    only where sets would be too large. Empty where there are too few devices for its least.
    Devices beyond the sum of sizes have no place.
    """
    if devices < rule.least * least:
        return []
    sets = min(rule.most, devices // wanted)
    sets = rule.least if sets < rule.useful else max(rule.least, sets)
    sets = max(sets, min(math.ceil(devices / MOST_DEVICES), devices // wanted))
    placed = min(devices, sets * MOST_DEVICES)
    return [placed // sets + (number < placed % sets) for number in range(sets)]


def deal(seed: int, devices: Iterable[str], sizes: Iterable[int]) -> dict[str, int]:
    """The set of each device, drawn by the round's seed; devices without a place are left out."""
    drawn = sorted((draw("tinyfleet-set", seed, name), name) for name in set(devices))
    places = [number for number, size in enumerate(sizes) for _ in range(size)]
    return {name: number for (_, name), number in zip(drawn, places, strict=False)}
