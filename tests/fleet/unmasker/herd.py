"""Devices that send masked deltas, and what a coordinator asks of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.protocol import masking
from fleet.protocol.keys import DeviceKeys, Enrolment, SigningKey, exchange_public
from fleet.protocol.mask_requests import MaskMember, MaskRequest
from fleet.protocol.masking import Binding, MaskedDelta, MaskParameters, Words

FLEET = "barn"
CAMPAIGN, PLAN, WEIGHTS = bytes(range(8)), bytes(32), bytes(range(32))
PARAMETERS = MaskParameters(16, 127, least_devices=2)
VALUES = 20


def digest(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


@dataclass(frozen=True)
class Cow:
    """A device; all that it draws follows from its name."""

    name: str

    @property
    def keys(self) -> DeviceKeys:
        signing = SigningKey.generate()
        return DeviceKeys(digest("exchange", self.name), signing)

    def enrolment(self, fleet: str = FLEET) -> Enrolment:
        return self.keys.enrol(fleet, self.name)

    def values(self, of: MaskRequest) -> NDArray[np.int32]:
        seed = int.from_bytes(digest(self.name, of.campaign, of.round)[:4], "little")
        bound = of.parameters.value_bound
        return np.random.default_rng(seed).integers(-bound, bound + 1, of.values).astype(np.int32)

    def delta(
        self, of: MaskRequest, unmaskers: Sequence[bytes], time: int = 0, fleet: str = FLEET
    ) -> MaskedDelta:
        """What it sends for a task like the request; ``time``: the nonce's counter."""
        nonce = digest("nonce", self.name, of.campaign, of.round, time)[:12]
        binding = Binding(
            *(fleet, self.name, of.campaign, of.round, of.plan, of.weights, of.values),
            of.parameters,
        )
        exchange = digest("exchange", self.name)
        return masking.mask_delta(exchange, unmaskers, nonce, self.values(of), binding)


def blank(**changes: Any) -> MaskRequest:
    """A request of one device, to be filled by `asked`."""
    request = MaskRequest(
        *(CAMPAIGN, 1, PLAN, WEIGHTS, VALUES, PARAMETERS),
        (MaskMember("nobody", bytes(12), bytes(48)),),
    )
    return replace(request, **changes)


def asked(
    cows: Sequence[Cow], of: MaskRequest, unmasker: bytes, time: int = 0
) -> tuple[MaskRequest, Words]:
    """The request for these devices, and the sum of what they sent."""
    deltas = {cow.name: cow.delta(of, [unmasker], time) for cow in cows}
    members = tuple(
        MaskMember(name, deltas[name].nonce, deltas[name].seals[0]) for name in sorted(deltas)
    )
    total = np.zeros(of.values, np.uint32)
    for delta in deltas.values():
        total = masking.add(total, delta.values, of.parameters.bits)
    return replace(of, members=members), total


def unmasked(total: Words, masks: Words, bits: int) -> NDArray[np.int64]:
    """What the coordinator reads of a sum once it has its masks."""
    negative = (-masks.astype(np.int64)).astype(np.uint32)
    return masking.centred(masking.add(total, negative, bits), bits)


PRIVATE = digest("unmasker")
PUBLIC = exchange_public(PRIVATE)
