"""Keys of a fleet in virtual time: all of them follow from the seed, so that a run replays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fleet.clock import Clock
from fleet.coordinator.key_holders import KeyHolders
from fleet.protocol.keys import (
    DeviceKeys,
    Enrolment,
    Keyring,
    SignedKeyring,
    SigningKey,
    TaskKeys,
    exchange_public,
)
from fleet.unmasker import LocalUnmasker, UnmaskerStore
from simulator.virtual.population import Provisioned
from simulator.world.draws import generator

LEAST_DEVICES = 2
"""Of a set, for the unmasker; campaigns say what they want of their own."""


@dataclass(frozen=True)
class VirtualKeys:
    """An authority, a task key, one unmasker, and devices that have enrolled with it."""

    seed: int
    tasks: TaskKeys
    unmasker: bytes
    """Its private key."""
    provisioned: Provisioned
    enrolments: tuple[Enrolment, ...]

    @classmethod
    def draw(cls, seed: int, fleet: str, devices: Mapping[int, str]) -> VirtualKeys:
        """Those of a fleet; ``devices`` are their names by number."""

        def drawn(what: str, number: int = 0) -> bytes:
            return generator(seed, what, number).bytes(32)

        authority = SigningKey.of_seed(drawn("authority"))
        task, unmasker = SigningKey.of_seed(drawn("task key")), drawn("unmasker")
        keyring = Keyring(1, task.public, (exchange_public(unmasker),))
        signed = SignedKeyring.sign(authority, fleet, keyring)
        keys = {
            number: DeviceKeys(
                drawn("device exchange", number),
                SigningKey.of_seed(drawn("device signing", number)),
            )
            for number in devices
        }
        return cls(
            seed,
            TaskKeys(fleet, task, signed),
            unmasker,
            Provisioned(
                authority.public,
                signed.encode(),
                {number: of.encode() for number, of in keys.items()},
            ),
            tuple(of.enrol(fleet, devices[number]) for number, of in keys.items()),
        )

    def holders(self, clock: Clock) -> KeyHolders:
        """What the coordinator signs with, and the unmasker, in this process."""
        store = UnmaskerStore()
        store.enrol(self.enrolments, self.tasks.fleet, clock.wall())
        unmasker = LocalUnmasker(self.unmasker, self.tasks.fleet, store, LEAST_DEVICES, clock)
        noise = generator(self.seed, "coordinator's noise")
        return KeyHolders(self.tasks, {exchange_public(self.unmasker): unmasker}, noise.bytes)
