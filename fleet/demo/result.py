"""What a demo run found out, as plain data, and the figures derived from it.

Nothing here runs anything: the orchestrator fills a `DemoResult`, the report reads it, and tests
make one by hand.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fleet.coordinator.scores import worst_tenth

SRAM_PURPOSES = ("arena", "state", "samples", "link", "data_bss_other", "stack")


@dataclass(frozen=True)
class PlanFacts:
    """One update plan on one board: what the linked image and the emulated core say of it."""

    id: str
    name: str
    board: str
    devices: int
    sram_bytes: Mapping[str, int]
    sram_total_bytes: int
    sram_limit_bytes: int
    delta_values: int
    instructions_per_step: int
    instructions_forward: int
    stack_high_water_bytes: int


@dataclass(frozen=True)
class DeviceRound:
    """One device in one round, as its delta and the gateway that accepted it report.

    `correct_before` and `correct_after` count the device's own held-out samples that it got
    right with the round's global weights, before and after training on them. `payload_bytes`
    is what the delta's MQTT publications carried, CBOR included; `coded_bytes` the coded values
    alone. A round that only scores has `train_samples` 0. `plan_reason` is what kept the device
    from a larger plan.
    """

    round: int
    device: str
    gateway: str
    board: str
    plan: str
    plan_reason: str
    status: str
    train_samples: int
    held_out: int
    correct_before: int
    correct_after: int
    loss_before: float
    loss_after: float
    coded_bytes: int
    payload_bytes: int
    seconds: float

    @property
    def accuracy_before(self) -> float:
        """Share of the held-out samples that the round's global weights get right, 0 … 1."""
        return self.correct_before / self.held_out if self.held_out else math.nan


@dataclass(frozen=True)
class Deltas:
    """What became of the deltas that arrived at the gateways."""

    accepted: int = 0
    late: int = 0
    duplicate: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    declined: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundFacts:
    """One aggregation: how many devices were asked, and how many deltas were in it."""

    round: int
    asked: int
    accepted: int
    seconds: float

    @property
    def stragglers(self) -> int:
        """Devices that were asked and whose delta was not part of the aggregation."""
        return self.asked - self.accepted


@dataclass(frozen=True)
class Accuracy:
    """Accuracy over devices, each on its own held-out samples, 0 … 1."""

    median: float
    worst_tenth: float


@dataclass(frozen=True)
class DemoResult:
    """Everything that the table, the plots, the page and the files are made from.

    `device_rounds` holds the training rounds 1 … `rounds`; `first_scores` and `final_scores`
    score every device with the lab's weights and with the last global ones. `bytes_up` and
    `bytes_down` count every byte that crossed the emulated UARTs from power on to the campaign's
    end, by device: logins, announcements, statuses, acknowledgements, weights, deltas, and the
    two rounds that only score.
    """

    devices: int
    rounds: int
    seed: int
    seconds: float
    parameters: int
    compiler: str
    plans: Sequence[PlanFacts]
    first_scores: Sequence[DeviceRound]
    device_rounds: Sequence[DeviceRound]
    final_scores: Sequence[DeviceRound]
    round_facts: Sequence[RoundFacts]
    deltas: Deltas
    bytes_up: Mapping[str, int] = field(default_factory=dict)
    bytes_down: Mapping[str, int] = field(default_factory=dict)
    phases: Mapping[str, float] = field(default_factory=dict)
    fleet_memory_bytes: int = 0
    privacy: Sequence[str] = ()
    """Of a private run: what was masked, and who could see what."""

    @property
    def dense_fp32_bytes(self) -> int:
        """Bytes of the model's parameters as fp32: what a dense update would send."""
        return 4 * self.parameters


def accuracy_of(scores: Iterable[DeviceRound]) -> Accuracy:
    """Median and worst tenth over the devices that have held-out samples.

    The worst tenth is the mean over the tenth of the devices that fare worst, at least one.
    """
    values = [score.accuracy_before for score in scores if score.held_out]
    if not values:
        return Accuracy(math.nan, math.nan)
    return Accuracy(statistics.median(values), worst_tenth(values))


def accuracy_per_round(result: DemoResult) -> list[tuple[int, Accuracy]]:
    """Accuracy of the global weights after 0 … `rounds` rounds.

    The first and the last point are over all devices, those between over each round's cohort.
    """
    points = [(0, accuracy_of(result.first_scores))]
    for number in range(2, result.rounds + 1):
        scored = [row for row in result.device_rounds if row.round == number]
        if scored:
            points.append((number - 1, accuracy_of(scored)))
    points.append((result.rounds, accuracy_of(result.final_scores)))
    return points


def by_plan(rows: Iterable[DeviceRound]) -> dict[str, list[DeviceRound]]:
    """Rows grouped by plan id, in order of first appearance."""
    groups: dict[str, list[DeviceRound]] = {}
    for row in rows:
        groups.setdefault(row.plan, []).append(row)
    return groups


def plan_names(result: DemoResult) -> dict[str, str]:
    """Name of each plan by id, smallest delta first."""
    ordered = sorted(result.plans, key=lambda plan: plan.delta_values)
    return {plan.id: plan.name for plan in ordered}


def plan_of_device(result: DemoResult) -> dict[str, str]:
    """The plan that each device trained with (the last one where it changed)."""
    return {row.device: row.plan for row in result.device_rounds if row.train_samples}


def uplink_bytes(rows: Iterable[DeviceRound]) -> float:
    """Mean payload bytes that a device sent for one training round; 0 without any."""
    sizes = [row.payload_bytes for row in rows if row.train_samples]
    return statistics.fmean(sizes) if sizes else 0.0


@dataclass(frozen=True)
class Traffic:
    """Mean bytes per device and training round, over devices with one plan (or with any).

    `payload_up` is what the delta's publications carried. `link_up` and `link_down` are the whole
    link: every byte on the UART, with everything around the training rounds laid to them, so
    that nothing is left out. All are 0 where nothing was counted.
    """

    payload_up: float
    link_up: float
    link_down: float


def traffic_of(result: DemoResult, plan: str | None = None, board: str | None = None) -> Traffic:
    """Traffic of the devices that trained ``plan`` (an id; None: any) on ``board`` (None: any)."""
    plan_of = plan_of_device(result)
    rows = [
        row
        for row in result.device_rounds
        if row.train_samples and plan in (None, plan_of[row.device]) and board in (None, row.board)
    ]
    devices = {row.device for row in rows}

    def per_round(counted: Mapping[str, int]) -> float:
        total = sum(counted.get(device, 0) for device in devices)
        return total / len(rows) if rows else 0.0

    return Traffic(uplink_bytes(rows), per_round(result.bytes_up), per_round(result.bytes_down))


def summary(result: DemoResult) -> dict[str, object]:
    """The content of result.json."""
    before, after = accuracy_of(result.first_scores), accuracy_of(result.final_scores)
    traffic = traffic_of(result)
    dense = result.dense_fp32_bytes
    plan_of = plan_of_device(result)
    plans = []
    for plan in result.plans:
        plan_traffic = traffic_of(result, plan.id, plan.board)
        scored_before, scored_after = (
            [
                score
                for score in scores
                if plan_of.get(score.device) == plan.id and score.board == plan.board
            ]
            for scores in (result.first_scores, result.final_scores)
        )
        plans.append(
            {
                "id": plan.id,
                "name": plan.name,
                "board": plan.board,
                "devices": plan.devices,
                "sram_total_bytes": plan.sram_total_bytes,
                "sram_limit_bytes": plan.sram_limit_bytes,
                "sram_bytes": dict(plan.sram_bytes),
                "stack_high_water_bytes": plan.stack_high_water_bytes,
                "instructions_per_step": plan.instructions_per_step,
                "instructions_forward": plan.instructions_forward,
                "delta_values": plan.delta_values,
                "uplink": _uplink(plan_traffic.payload_up, dense),
                "link": _link(plan_traffic, dense),
                "accuracy": {
                    "median_before": _finite(accuracy_of(scored_before).median),
                    "median_after": _finite(accuracy_of(scored_after).median),
                },
            }
        )
    return {
        "devices": result.devices,
        "rounds": result.rounds,
        "seed": result.seed,
        "seconds": round(result.seconds, 1),
        "compiler": result.compiler,
        "accuracy": {
            "median_before": _finite(before.median),
            "median_after": _finite(after.median),
            "worst_tenth_before": _finite(before.worst_tenth),
            "worst_tenth_after": _finite(after.worst_tenth),
        },
        "uplink": _headline_uplink(result),
        "uplink_over_all_plans": _uplink(traffic.payload_up, dense),
        "link": _link(traffic, dense),
        "plans": plans,
        "deltas": {
            "accepted": result.deltas.accepted,
            "late": result.deltas.late,
            "duplicate": result.deltas.duplicate,
            "refused": sum(result.deltas.refused.values()),
            "refused_by_reason": dict(result.deltas.refused),
            "declined_by_reason": dict(result.deltas.declined),
        },
        "stragglers": sum(facts.stragglers for facts in result.round_facts),
        "phases_seconds": {name: round(value, 1) for name, value in result.phases.items()},
        "fleet_memory_bytes": result.fleet_memory_bytes,
        "privacy": list(result.privacy),
    }


def _headline_uplink(result: DemoResult) -> dict[str, object]:
    """Uplink of the plan named middle, every byte on the UART; of all plans where none is.

    The mean over all plans says more of which plans the devices happen to have than of what a
    plan costs: the one that trains every layer sends twenty times as much as the others.
    """
    named = {plan.name: plan.id for plan in result.plans}
    traffic = traffic_of(result, named.get("middle"))
    sent = traffic.link_up or traffic.payload_up
    name = "middle" if "middle" in named else "all"
    return {"plan": name, **_uplink(sent, result.dense_fp32_bytes)}


def _uplink(sent: float, dense: int) -> dict[str, object]:
    """Bytes sent up beside the dense figure; `ratio` is the share of it that was sent."""
    return {
        "bytes_per_device_round": round(sent, 1),
        "dense_fp32_bytes": dense,
        "ratio": _share(sent, dense),
    }


def _link(traffic: Traffic, dense: int) -> dict[str, object]:
    """Every byte on the UART, beside the same dense figure; None where nothing was counted."""
    return {
        "bytes_up_per_device_round": round(traffic.link_up, 1) or None,
        "bytes_down_per_device_round": round(traffic.link_down, 1) or None,
        "ratio_up": _share(traffic.link_up, dense),
        "ratio_down": _share(traffic.link_down, dense),
    }


def _share(sent: float, dense: int) -> float | None:
    """Bytes as a share of a dense fp32 update (0.02: 1/50)."""
    return round(sent / dense, 6) if sent and dense else None


def _finite(value: float) -> float | None:
    """JSON knows no NaN."""
    return round(value, 4) if math.isfinite(value) else None
