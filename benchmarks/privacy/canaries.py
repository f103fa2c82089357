"""Canaries: devices whose vectors an attacker has chosen, and what a run shows of which took part.

A canary's vector is one value, far beyond the clip, at a coordinate of its own, with another sign
in every round: clipped, it is as long as a vector may be, and no other device is in its way. Half
of the canaries, by chance, send zeros instead, which is what (ε, δ) is about here. The attacker
knows everything but those coins. It looks for a canary in two places: in the sums, and in the
differences of what one device has sent in two rounds, from which masks vanish that are used twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.privacy.audit import (
    CONFIDENCE,
    estimated_mu,
    guesses,
    least_mu,
)
from benchmarks.privacy.protection import (
    Fault,
    Ledger,
    Protection,
    Values,
    View,
    clipped,
    devices_of,
    observe,
)
from benchmarks.privacy.victims import PEOPLE, Victim, people
from fleet.aggregation import FedAvg, init
from fleet.aggregation.master import blob_from_master
from fleet.aggregation.mean import plan_sum_from_manifest
from fleet.privacy import epsilon
from fleet.protocol.masking import MOST_DEVICES

BEYOND = 8
"""A canary's vector before clipping, in clips."""
_GUESSED_PARTS = (20, 2)
"""Of the canaries: few are best against noise, many where nothing hides them."""


@dataclass(frozen=True)
class Audit:
    """What a run has shown; ε at the ledger's δ."""

    protection: str
    fault: str
    canaries: int
    rounds: int
    claimed: float
    """By the ledger."""
    shown: float
    """At least so much with 99.9 % confidence."""
    estimated: float
    """As Andrew et al. do, without a guarantee."""

    @property
    def holds(self) -> bool:
        """Whether the run is in keeping with the ledger."""
        return self.shown <= self.claimed


class Game:
    """Coins and scores of the canaries of one run."""

    def __init__(self, sets: int, canaries: int, clip: int, seed: int) -> None:
        """``canaries`` in each of so many sets."""
        self.members: NDArray[np.bool_] = (
            np.random.default_rng([seed, 0xC0]).integers(0, 2, (sets, canaries)) == 1
        )
        self.clip = clip
        self.rounds = 0
        self._sums = np.zeros((sets, canaries))
        self._messages = np.zeros((sets, canaries), np.int64)

    def vectors(self, number: int, coordinates: NDArray[np.intp], values: int) -> list[Values]:
        """What the canaries of a set would like to send in the round to come."""
        made = np.zeros((len(coordinates), values), np.int64)
        height = BEYOND * self.clip * self._sign
        made[np.arange(len(coordinates)), coordinates] = height * self.members[number]
        return list(made)

    def look(
        self, number: int, view: View, coordinates: NDArray[np.intp], known: Values, bits: int
    ) -> None:
        """Takes in what is seen of a set, whose other devices have sent ``known`` in all.

        The canaries' messages are the first ones.
        """
        self._sums[number] += self._sign * (view.total - known)[coordinates]
        sent = view.messages[np.arange(len(coordinates)), coordinates]
        # Modulo 2^bits, as masks are.
        moved = self._messages[number] + self._sign * sent + (1 << bits >> 1)
        self._messages[number] = moved % (1 << bits) - (1 << bits >> 1)

    def end_round(self) -> None:
        """The next one's vectors have the other sign."""
        self.rounds += 1

    @property
    def _sign(self) -> int:
        return 1 - 2 * (self.rounds % 2)

    def audit(self, protection: Protection, ledger: Ledger, fault: Fault) -> Audit:
        """What the rounds so far show."""
        members = self.members.ravel()
        middle = self.rounds * self.clip / 2
        of_sums, of_messages = self._sums.ravel(), self._messages.ravel().astype(np.float64)
        attempts = [
            guesses(scores, middle, members, len(members) // part)
            for scores in (of_sums, of_messages)
            for part in _GUESSED_PARTS
        ]
        # They share the error that is allowed.
        error = (1.0 - CONFIDENCE) / len(attempts)
        shown = max(least_mu(one, error) for one in attempts)
        return Audit(
            protection.name,
            fault,
            len(members),
            self.rounds,
            ledger.epsilon,
            epsilon(shown**2 / 2, ledger.delta),
            epsilon(min(estimated_mu(of_sums, members), 1e3) ** 2 / 2, ledger.delta),
        )


def audit_campaign(
    victim: Victim, plan: str, protection: Protection, rounds: int, seed: int
) -> Audit:
    """A campaign of the digits' fleet: one set of people, and canaries where it has room.

    What the round's sum does to the weights is what FedAvg makes of it.
    """
    honest = people(victim, PEOPLE, seed)
    canaries = MOST_DEVICES - len(honest)
    entry, manifest = victim.entry(plan), victim.task.manifest
    parameters = protection.parameters(MOST_DEVICES)
    random = np.random.default_rng([seed, 0xCA])
    coordinates = random.choice(entry.delta_values, canaries, replace=False)
    game = Game(1, canaries, protection.clip, seed)
    senders = devices_of(seed, MOST_DEVICES)
    state = init(manifest.tensors, victim.task.weights)
    for number in range(rounds):
        blob = blob_from_master(manifest.tensors, state.master, len(victim.task.weights))
        learnt = [
            clipped(victim.delta(plan, share, seed + at, blob), parameters, seed + at)
            for at, share in enumerate(honest)
        ]
        sent = [*game.vectors(0, coordinates, entry.delta_values), *learnt]
        view = observe(sent, senders, protection, (seed, number))
        game.look(0, view, coordinates, np.sum(learnt, axis=0), parameters.bits)
        game.end_round()
        values = view.total.astype("<i8").tobytes()
        part = plan_sum_from_manifest(manifest, entry, values, MOST_DEVICES)
        state = FedAvg().apply(state, [[part]])
    ledger = Ledger.of(parameters, entry.delta_values, rounds)
    return game.audit(protection, ledger, Fault.NONE)


def audit_sums(
    protection: Protection, sets: int, devices: int, rounds: int, seed: int, fault: Fault
) -> Audit:
    """Sets of canaries alone, one value for each: the mechanism itself, with many canaries."""
    game = Game(sets, devices, protection.clip, seed)
    coordinates, nothing = np.arange(devices), np.zeros(devices, np.int64)
    bits = protection.parameters(devices).bits
    senders = [devices_of(seed * sets + number, devices, fault) for number in range(sets)]
    for round_number in range(rounds):
        for number in range(sets):
            sent = game.vectors(number, coordinates, devices)
            view = observe(sent, senders[number], protection, (seed, round_number, number))
            game.look(number, view, coordinates, nothing, bits)
        game.end_round()
    ledger = Ledger.of(protection.parameters(devices), devices, rounds)
    return game.audit(protection, ledger, fault)
