"""What is run against what, and the tables that come of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.privacy import crafted, inversion, membership, poisoning
from benchmarks.privacy.canaries import Audit, audit_campaign, audit_sums
from benchmarks.privacy.poisoning import Attack, Threat
from benchmarks.privacy.protection import Fault, Protection, private
from benchmarks.privacy.victims import ATTACKED_PLANS, Victim, convolutional, dense
from fleet.aggregation import (
    AggregationRule,
    BucketMedian,
    FedAvg,
    ServerMomentum,
    SetMedian,
)

ROUNDS = 6
EPSILON = 8.0
CLIPS = {"bias": 50, "small": 200, "middle": 200, "full": 1450, "dense-full": 150}
"""About the median of what devices' deltas measure after a round."""
NONE, MASKS = Protection("none", masked=False), Protection("masks", masked=True)

Row = list[object]


@dataclass(frozen=True)
class Table:
    """What a study has found; ``records`` have all of it."""

    title: str
    columns: tuple[str, ...]
    rows: list[Row]
    records: list[dict[str, Any]]


Tick = Callable[[], None]
Study = Callable[[int, Tick], Iterator[Table]]
"""By number of seeds; ticks after each of `steps`."""


def protections(plan: str) -> tuple[Protection, ...]:
    """What is attacked; noise as for a campaign of `ROUNDS` rounds at `EPSILON`."""
    return NONE, MASKS, private(EPSILON, ROUNDS, CLIPS[plan])


# ---- gradient inversion ----------------------------------------------------------------------

PICTURES_PER_SEED = 2


def invert(seeds: int, tick: Tick) -> Iterator[Table]:
    """Pictures from deltas, per plan and protection."""
    records: list[dict[str, Any]] = []
    with convolutional() as victim:
        for plan in ATTACKED_PLANS:
            records += _inverted(victim, plan, seeds, tick)
    with dense() as victim:
        records += _inverted(victim, "dense-full", seeds, tick)
    columns = ("plan", "protection", "attack", "explained %", "correlation", "PSNR dB")
    rows = [
        [
            one["plan"], one["protection"], one["attack"], f"{100 * one['explained']:.1f}",
            f"{one['correlation']:.3f}", f"{one['psnr']:.1f}",
        ]
        for one in records
    ]  # fmt: skip
    yield Table("Pictures from what devices send", columns, rows, records)


def _inverted(victim: Victim, plan: str, seeds: int, tick: Tick) -> Iterator[dict[str, Any]]:
    of = inversion.targets(victim, range(1, seeds + 1), PICTURES_PER_SEED)
    true, labels = inversion.pixels(of.share), of.share.labels
    attacker = inversion.Attacker(victim, plan)
    for protection in protections(plan):
        learned = attacker.learn(protection)
        means = learned.means[labels]
        seen = np.stack(list(inversion.observations(victim, plan, of, protection)))
        found = {"learned": learned.pictures(seen, labels)}
        if plan == "dense-full":
            pairs = zip(seen, labels.tolist(), strict=True)
            found["analytic"] = np.stack(
                [inversion.analytic(victim, plan, one, label, learned) for one, label in pairs]
            )
        elif not protection.masked:
            pairs = zip(seen, labels.tolist(), strict=True)
            found["matched"] = np.stack(
                [attacker.matched(one, label, learned) for one, label in pairs]
            )
            found = {"class mean": means, **found}
        for attack, pictures in found.items():
            scored = inversion.score(pictures, true, means)
            yield {
                "plan": plan, "protection": protection.name, "attack": attack,
                "pictures": scored.pictures, "explained": scored.explained,
                "correlation": scored.correlation, "psnr": scored.psnr,
            }  # fmt: skip
        tick()


# ---- crafted weights -------------------------------------------------------------------------


def craft(seeds: int, tick: Tick) -> Iterator[Table]:
    """Pictures out of sums, by weights made for it."""
    records: list[dict[str, Any]] = []
    with dense() as victim:
        for protection in protections(crafted.PLAN):
            found = []
            for seed in range(1, seeds + 1):
                found.append(crafted.attack(victim, protection, inversion.SET, seed))
                tick()
            totals = ("pictures", "recovered", "decoys", "declining", "devices")
            records.append(
                {
                    "protection": protection.name,
                    **{name: sum(getattr(one, name) for one in found) for name in totals},
                }
            )
    columns = ("protection", "pictures", "recovered", "strangers taken for them", "declining")
    rows: list[Row] = [
        [
            one["protection"], one["pictures"], one["recovered"], one["decoys"],
            f"{one['declining']} of {one['devices']}",
        ]
        for one in records
    ]  # fmt: skip
    yield Table(f"Crafted weights, sets of {inversion.SET}", columns, rows, records)


# ---- membership ------------------------------------------------------------------------------

PEOPLE_PER_SEED = 2


def member(seeds: int, tick: Tick) -> Iterator[Table]:
    """Who took part, from messages, sums and versions."""
    records: list[dict[str, Any]] = []
    with convolutional() as victim:
        for plan in ATTACKED_PLANS:
            # The noise of so many values takes its time.
            numbers = range(1, 1 + (max(1, seeds // 4) if plan == "full" else seeds))
            for protection in protections(plan):
                found = membership.in_messages_and_sums(
                    victim, plan, protection, numbers, PEOPLE_PER_SEED
                )
                tick()
                found["version"] = membership.in_versions(victim, plan, protection, numbers, ROUNDS)
                tick()
                for what, one in found.items():
                    records.append(
                        {
                            "plan": plan, "protection": protection.name, "seen": what,
                            "members": one.members, "auc": one.auc, "found": one.found_at_few,
                        }
                    )  # fmt: skip
    few = f"found % where {100 * membership.FEW:.0f} % are accused wrongly"
    columns = ("plan", "protection", "what is seen", "members", "AUC", few)
    rows: list[Row] = [
        [
            one["plan"], one["protection"], one["seen"], one["members"], f"{one['auc']:.2f}",
            f"{100 * one['found']:.0f}",
        ]
        for one in records
    ]  # fmt: skip
    yield Table("Which people took part", columns, rows, records)


# ---- canaries --------------------------------------------------------------------------------

SETS, DEVICES_OF_A_SET = 2000, 8
CANARY_ROUNDS = 2
CANARY_CLIP = 200
CANARY_BOUND = 30_000
EPSILONS = (8.0, 4.0, 2.0)
CAMPAIGN_EPSILON, CAMPAIGN_ROUNDS = 4.0, 3


def canary(seeds: int, tick: Tick) -> Iterator[Table]:
    """Empirical ε of sums alone, with as many canaries as it takes to see much of it."""
    runs = [(wanted, Fault.NONE, seed) for wanted in EPSILONS for seed in range(1, seeds + 1)]
    yield _sums(runs, tick)


def faulty(seeds: int, tick: Tick) -> Iterator[Table]:
    """The same with devices that have a fault, which has to show."""
    runs = [
        (wanted, fault, seed)
        for wanted in EPSILONS
        for fault in Fault
        if fault is not Fault.NONE
        for seed in range(1, _faulty_seeds(seeds) + 1)
    ]
    yield _sums(runs, tick)


def _faulty_seeds(seeds: int) -> int:
    return min(seeds, 3)


def _sums(runs: Sequence[tuple[float, Fault, int]], tick: Tick) -> Table:
    found = []
    for wanted, fault, seed in runs:
        protection = private(wanted, CANARY_ROUNDS, CANARY_CLIP, CANARY_BOUND)
        found.append(audit_sums(protection, SETS, DEVICES_OF_A_SET, CANARY_ROUNDS, seed, fault))
        tick()
    title = f"Sums: {CANARY_ROUNDS} rounds of {SETS} sets of {DEVICES_OF_A_SET} canaries"
    return _audits(title, found)


def campaign(seeds: int, tick: Tick) -> Iterator[Table]:
    """Empirical ε of campaigns, as large as a set may be."""
    found: list[Audit] = []
    protection = private(CAMPAIGN_EPSILON, CAMPAIGN_ROUNDS, CLIPS["small"])
    with convolutional() as victim:
        for seed in range(1, seeds + 1):
            found.append(audit_campaign(victim, "small", protection, CAMPAIGN_ROUNDS, seed))
            tick()
    yield _audits(f"Campaigns: {CAMPAIGN_ROUNDS} rounds, plan small", found)


def _audits(title: str, found: Sequence[Audit]) -> Table:
    columns = (
        "protection", "fault", "runs", "canaries", "ledger's ε", "shown at 99.9 %, median",
        "largest", "estimate, median", "runs above the ledger",
    )  # fmt: skip
    rows: list[Row] = []
    for protection, fault in dict.fromkeys((one.protection, one.fault) for one in found):
        mine = [one for one in found if (one.protection, one.fault) == (protection, fault)]
        shown = [one.shown for one in mine]
        rows.append(
            [
                protection, str(fault), len(mine), mine[0].canaries, f"{mine[0].claimed:.2f}",
                f"{np.median(shown):.2f}", f"{max(shown):.2f}",
                f"{min(999, np.median([one.estimated for one in mine])):.2f}",
                sum(not one.holds for one in mine),
            ]
        )  # fmt: skip
    return Table(title, columns, rows, [asdict(one) for one in found])


# ---- poisoning -------------------------------------------------------------------------------

RULES: tuple[AggregationRule, ...] = (
    FedAvg(),
    ServerMomentum(learning_rate=0.3),
    BucketMedian(buckets=4),
    BucketMedian(buckets=12),
    SetMedian(),
)
"""The last is a median of eight sets, for so many devices."""
HOSTILE = (1, 4, 8)


def poison(seeds: int, tick: Tick) -> Iterator[Table]:
    """Accuracy with hostile devices, by rule, without and with masks."""
    found: list[poisoning.Poisoned] = []
    with convolutional() as victim:
        for seed in range(1, seeds + 1):
            people = poisoning.fleet_of(victim, poisoning.DEVICES, seed)
            for rule in RULES:
                for threat in _threats():
                    clip = CLIPS[poisoning.PLAN]
                    found.append(poisoning.run(victim, people, rule, threat, clip, seed))
                    tick()
    before = f"{100 * np.mean([one.before for one in found]):.1f} % before"
    records = [asdict(one) for one in found]
    for masked in (False, True):
        mine = [one for one in found if one.threat.masked is masked]
        masks = "masks" if masked else "no masks"
        yield Table(
            f"{poisoning.DEVICES} devices, {poisoning.ROUNDS} rounds, {masks}: accuracy on "
            f"held-out samples in the end, {before}",
            ("attack", "hostile", *(poisoning.rule_name(rule) for rule in RULES), "sets refused"),
            [_by_rule(mine, threat) for threat in _threats() if threat.masked is masked],
            records if masked else [],
        )
    worse = [one for one in found if one.end < one.before - poisoning.GATE.most_drop]
    failed = sum(one.gate == "fail" for one in worse)
    others = [one for one in found if one not in worse]
    wrongly = sum(one.gate == "fail" for one in others)
    yield Table(
        f"What a gate of {100 * poisoning.GATE.most_drop:.0f} points says of the last version",
        ("version", "runs", "gate fails"),
        [["worse than that", len(worse), failed], ["not", len(others), wrongly]],
        [],
    )


def _by_rule(found: Sequence[poisoning.Poisoned], threat: Threat) -> Row:
    mine = [one for one in found if one.threat == threat]
    ends = [
        f"{100 * np.mean([one.end for one in mine if one.rule == poisoning.rule_name(rule)]):.1f}"
        for rule in RULES
    ]
    return [
        str(threat.attack),
        threat.hostile,
        *ends,
        f"{np.mean([one.refused_sets for one in mine]):.1f}",
    ]


def _threats() -> list[Threat]:
    return [
        Threat(attack, hostile, masked)
        for masked in (False, True)
        for attack in Attack
        for hostile in ((0,) if attack is Attack.NOTHING else HOSTILE)
    ]


STUDIES: dict[str, tuple[Study, Callable[[int], int]]] = {
    "inversion": (invert, lambda seeds: 3 * (len(ATTACKED_PLANS) + 1)),
    "crafted": (craft, lambda seeds: 3 * seeds),
    "membership": (member, lambda seeds: 6 * len(ATTACKED_PLANS)),
    "canaries": (canary, lambda seeds: len(EPSILONS) * seeds),
    "faults": (faulty, lambda seeds: len(EPSILONS) * (len(Fault) - 1) * _faulty_seeds(seeds)),
    "campaigns": (campaign, lambda seeds: seeds),
    "poisoning": (poison, lambda seeds: seeds * len(RULES) * len(_threats())),
}
"""Study → function, and how often it ticks by number of seeds."""
