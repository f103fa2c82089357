"""Devices that send what makes the next version worse, with and without masks, by rule.

A fleet of people trains for some rounds; some of the devices are hostile, the same ones in every
round. Honest devices have honest firmware: under masks they bound and clip their values. A hostile
one that masks may put anything below 2^bits into its set's sum, and knows what range the sum is
checked for. The sums are dealt to sets, unmasked, and checked by the coordinator's own code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from benchmarks.privacy.protection import Values, clipped
from benchmarks.privacy.victims import Share, Victim
from fleet.aggregation import AggregationRule, PlanSum, init
from fleet.aggregation.master import blob_from_master
from fleet.aggregation.mean import plan_sum_from_manifest
from fleet.campaign.answers import Report
from fleet.campaign.gates import DeviceScore, Evidence, ScoreGate
from fleet.campaign.masking import (
    Masking,
    Protection,
    deal,
    mask_parameters,
    set_sizes,
)
from fleet.campaign.planning import round_seed
from fleet.campaign.sets import BEYOND_RANGE, MaskedSet, unmasked
from fleet.protocol.masking import MaskParameters, Words, add, mask, stream
from simulator.world import digits
from simulator.world.faults import Malicious

PLAN = "middle"
DEVICES = 48
ROUNDS = 6
LEAST_DEVICES = 4
"""Of a set: few, so that a fleet of this size has many."""
GATE = ScoreGate()
_NEARLY = 0.9
_FAR = 0.8  # of the largest number that masks hold


class Attack(StrEnum):
    """What hostile devices send."""

    NOTHING = "nobody hostile"
    SHUFFLED = "shuffled labels"
    SIGN_FLIP = "sign-flipped"
    SCALED_FLIP = "sign-flipped, x 10"
    WITHIN_RANGE = "all that the check lets through"
    OUT_OF_RANGE = "beyond the check"


@dataclass(frozen=True)
class Person:
    """A device's samples: to train with, and held out."""

    name: str
    train: Share
    held_out: Share


def fleet_of(victim: Victim, count: int, seed: int) -> list[Person]:
    """The digits dealt to so many people."""
    dealt = digits.deal([f"mcu-{number:02}" for number in range(1, count + 1)], seed)
    made = []
    for one in dealt:
        codes, held = victim.codes(one.x), one.held_out
        train, test = Share(codes[~held], one.y[~held]), Share(codes[held], one.y[held])
        made.append(Person(one.device, train, test))
    return made


def hostile_delta(
    attack: Attack, delta: Values, parameters: MaskParameters, devices: int, seed: int
) -> Values:
    """What a hostile device sends where it has learnt ``delta``, in a set of so many devices."""
    random = np.random.default_rng(seed)
    match attack:
        case Attack.SIGN_FLIP:
            return Malicious(attack="sign-flip").poisoned(delta, random)
        case Attack.SCALED_FLIP:
            return Malicious(attack="sign-flip", scale=10.0).poisoned(delta, random)
        case Attack.WITHIN_RANGE:
            # Room is left for what the honest ones add.
            reach = max(
                0, parameters.largest_sum(devices) - devices * int(np.abs(delta).max(initial=0))
            )
            length = _NEARLY * parameters.longest_sum(devices, delta.size)
            if np.isinf(length):
                return -np.where(delta < 0, -1, 1) * reach
            wanted = np.rint(-delta * length / max(1.0, np.linalg.norm(delta)))
            return np.clip(wanted, -reach, reach).astype(np.int64)
        case Attack.OUT_OF_RANGE:
            # Where several of a set do so, that doesn't come round to where it is let through.
            return np.where(delta < 0, 1, -1) * int(_FAR * (1 << parameters.bits >> 1))
    return delta


@dataclass(frozen=True)
class Threat:
    """So many hostile devices, the last of a fleet; what they do; whether anybody masks."""

    attack: Attack
    hostile: int
    masked: bool

    def sent(self, delta: Values, parameters: MaskParameters, devices: int, seed: int) -> Values:
        """What a hostile device sends, in a set of so many."""
        if self.attack is not Attack.SHUFFLED:
            return hostile_delta(self.attack, delta, parameters, devices, seed)
        # Its firmware is honest: it is the samples that aren't.
        return clipped(delta, parameters, seed) if self.masked else delta


@dataclass(frozen=True)
class Poisoned:
    """What came of a fleet with hostile devices; accuracies on everybody's held-out samples."""

    rule: str
    threat: Threat
    seed: int
    before: float
    next_version: float
    end: float
    refused_sets: int
    """That the range check has left out, of all rounds."""
    gate: str
    """What `GATE` says of the last version, where hostile devices say that all their answers are
    right."""


def run(
    victim: Victim,
    people: Sequence[Person],
    rule: AggregationRule,
    threat: Threat,
    clip: int,
    seed: int,
    rounds: int = ROUNDS,
) -> Poisoned:
    """Trains ``rounds`` rounds; devices that mask clip their deltas too."""
    manifest, entry = victim.task.manifest, victim.entry(PLAN)
    state, size = init(manifest.tensors, victim.task.weights), len(victim.task.weights)
    names = [one.name for one in people]
    bad = set(names[len(names) - threat.hostile :])
    masking = Masking(least_devices=LEAST_DEVICES)
    sizes = set_sizes(len(people), LEAST_DEVICES, masking.wanted_devices, rule.sets())
    parameters = mask_parameters(masking, max(sizes), Protection(clip=clip))
    answers, refused = [right_answers(victim, people, victim.task.weights)], 0
    for number in range(1, rounds + 1):
        parts_of = deal(round_seed(seed, number), names, sizes)
        weights = blob_from_master(manifest.tensors, state.master, size)
        members: list[list[Values]] = [[] for _ in sizes]
        for at, one in enumerate(people):
            chance, share, part = (
                (seed * rounds + number) * 1000 + at,
                one.train,
                parts_of[one.name],
            )
            if one.name in bad and threat.attack is Attack.SHUFFLED:
                shuffled = np.random.default_rng([seed, at]).permutation(share.labels)
                share = Share(share.codes, shuffled)
            delta = victim.delta(PLAN, share, chance, weights)
            if one.name in bad:
                delta = threat.sent(delta, parameters, sizes[part], chance)
            elif threat.masked:
                delta = clipped(delta, parameters, chance)
            members[part].append(delta)
        parts: list[list[PlanSum]] = []
        for deltas in members:
            total = _unmasked(deltas, parameters, chance) if threat.masked else np.sum(deltas, 0)
            values, weight = bytes(8 * entry.delta_values), 0
            if total is None:
                refused += 1
            else:
                values, weight = total.astype("<i8").tobytes(), len(deltas)
            parts.append([plan_sum_from_manifest(manifest, entry, values, weight)])
        if any(one.weight for part in parts for one in part):
            state = rule.apply(state, rule.of_sets(parts))
        made = blob_from_master(manifest.tensors, state.master, size)
        answers.append(right_answers(victim, people, made))
    samples = np.array([len(one.held_out) for one in people])
    before, then, end = (float(one.sum() / samples.sum()) for one in (*answers[:2], answers[-1]))
    scores = [
        DeviceScore(one.name, n, old, n if one.name in bad else new, {})
        for one, n, old, new in zip(
            people, samples.tolist(), answers[0].tolist(), answers[-1].tolist(), strict=True
        )
    ]
    gate = GATE.judge(Evidence(scores, len(people))).outcome
    return Poisoned(rule_name(rule), threat, seed, before, then, end, refused, gate)


def _unmasked(deltas: Sequence[Values], parameters: MaskParameters, chance: int) -> Values | None:
    """A set's sum as the coordinator gets it; None where it can't be one of such devices."""
    random = np.random.default_rng([chance, 0x9D])
    bits, size = parameters.bits, deltas[0].size
    total: Words = np.zeros(size, np.uint32)
    streams: Words = np.zeros(size, np.uint32)
    for values in deltas:
        seed = random.bytes(32)
        total = add(total, mask(values.astype(np.int32), [seed], bits), bits)
        streams = add(streams, stream(seed, size, bits), bits)
    reports = tuple(_report(f"device-{at}") for at in range(len(deltas)))
    outcome = unmasked(MaskedSet("", 0, reports, total), [streams], parameters)
    assert outcome.values is not None or outcome.why == BEYOND_RANGE
    return outcome.values


def _report(device: str) -> Report:
    return Report(
        device=device, plan="0" * 64, train_samples=1, held_out=0, correct_before=0,
        correct_after=0, coded_bytes=0, payload_bytes=0, seconds=0.0,
    )  # fmt: skip


def right_answers(victim: Victim, people: Sequence[Person], weights: bytes) -> Values:
    """How many of each person's held-out samples are answered right."""
    engine = victim.engine(PLAN)
    engine.load(weights)
    return np.array(
        [
            sum(
                engine.score(codes, int(label)) == label
                for codes, label in zip(one.held_out.codes, one.held_out.labels, strict=True)
            )
            for one in people
        ]
    )


def rule_name(rule: AggregationRule) -> str:
    """As a table says it."""
    given = rule.model_dump(exclude_defaults=True)
    name = str(rule.model_dump()["rule"])
    said = ", ".join(f"{key} {value}" for key, value in given.items() if key != "rule")
    return f"{name}, {said}" if said else name
