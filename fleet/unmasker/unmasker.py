"""An unmasker: checks a request, records its set, then answers with the sum of its masks."""

from __future__ import annotations

from typing import Protocol

from fleet.clock import Clock, SystemClock
from fleet.errors import MaskRefusedError
from fleet.protocol.keys import exchange_public
from fleet.protocol.mask_requests import MaskRequest, UnmaskerFacts
from fleet.protocol.masking import Words, sum_of_streams
from fleet.unmasker import logic
from fleet.unmasker.store import UnmaskerStore

LEAST_DEVICES = 5
"""Of a set, where its owner says nothing."""


class Unmasker(Protocol):
    """Whoever adds up masks, in this process or elsewhere."""

    def masks(self, request: MaskRequest) -> Words:
        """The sum of the masks [values] of the request's devices, modulo 2^bits.

        Raises `MaskRefusedError` where it refuses, which it will do again, and `UnmaskerError`
        where it can't be reached: then the same request may be made again at any time.
        """

    def facts(self) -> UnmaskerFacts:
        """What it says of itself; UnmaskerError where it can't be reached."""


class LocalUnmasker:
    """An unmasker over a store; any thread."""

    def __init__(
        self,
        private: bytes,
        fleet: str,
        store: UnmaskerStore,
        least_devices: int = LEAST_DEVICES,
        clock: Clock | None = None,
    ) -> None:
        """``private`` is its X25519 key; it answers for sets of ``least_devices`` and more."""
        self._private = private
        self._fleet = fleet
        self._least = least_devices
        self._clock = clock or SystemClock()
        self.store = store

    def masks(self, request: MaskRequest) -> Words:
        """See `Unmasker`; StoreError where its store can't be written."""
        try:
            seeds = self._seeds(request)
        except MaskRefusedError as error:
            self.store.count_refusal(error.kind)
            raise
        return sum_of_streams(seeds, request.values, request.parameters.bits)

    def _seeds(self, request: MaskRequest) -> list[bytes]:
        """The seeds of a set that is on disk now."""
        logic.require_enough(request, self._least)
        devices = [one.device for one in request.members]
        with self.store.transaction():
            is_repeated = logic.is_repeated(request, self.store.recorded(request))
            # What was answered stays so, also where a device was revoked since.
            keys = self.store.keys(devices, revoked=is_repeated)
            logic.require_known(request, keys)
            seeds = logic.open_seals(self._private, self._fleet, request, keys)
            if not is_repeated:
                self.store.record(request, self._clock.wall())
        return seeds

    def facts(self) -> UnmaskerFacts:
        """See `Unmasker`."""
        devices = self.store.count_devices()
        return UnmaskerFacts(exchange_public(self._private), self._fleet, self._least, devices)
