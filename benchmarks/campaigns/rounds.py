"""What the store, the devices and the gateways' logs say of a deployment's rounds."""

from __future__ import annotations

import itertools
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np

from benchmarks.campaigns.device import Entry
from benchmarks.gateway.deltas import Deltas
from fleet.aggregation import MasterState, blob_from_master, plan_sum_from_manifest
from fleet.campaign.config import CampaignConfig
from fleet.protocol import ReceiptResult
from fleet.protocol.manifest import Manifest, PlanEntry
from fleet.protocol.numbers import Action
from fleet.store import SqlStore

PARTS = ("to the gateways", "to the devices", "at the gateways", "to the store", "planning")
"""Where the time of a round that isn't a device's goes: from the round's row in the store to the
last gateway that begins it; to the slowest device's task; from its delta to the last gateway's end;
to the result in the store; and to the row of the next round."""


@dataclass
class Round:
    """A round as everybody saw it; Unix times."""

    campaign: str
    number: int
    kind: str
    began: float
    ended: float
    next_began: float
    started: dict[str, float] = field(default_factory=dict)
    """By gateway."""
    closed: dict[str, float] = field(default_factory=dict)
    slowest: Entry | None = None
    """The last delta of it."""

    @property
    def device_seconds(self) -> float:
        """The slowest device's time from its task to its delta."""
        if self.slowest is None or self.slowest.delta_at is None:
            return 0.0
        return self.slowest.delta_at - self.slowest.task_at

    @property
    def overhead(self) -> float:
        """What the round took beside that, until the next began."""
        return self.next_began - self.began - self.device_seconds

    @property
    def parts(self) -> dict[str, float]:
        """The same by `PARTS`."""
        if self.slowest is None or self.slowest.delta_at is None or not self.closed:
            return {}
        at = [
            self.began,
            max(self.started.values()),
            self.slowest.task_at,
            self.slowest.task_at,
            max(self.closed.values()) - self.device_seconds,
            self.ended - self.device_seconds,
            self.next_began - self.device_seconds,
        ]
        steps = [after - before for before, after in itertools.pairwise(at)]
        return dict(zip(PARTS, [steps[0], steps[1], steps[3], steps[4], steps[5]], strict=True))


def read_rounds(
    store: SqlStore,
    campaigns: Iterable[str],
    diaries: Mapping[str, Sequence[Entry]],
    logs: Mapping[str, Path],
) -> list[Round]:
    """All rounds; ``logs`` are the gateways' by name."""
    found: dict[tuple[str, int], Round] = {}
    for campaign in campaigns:
        numbers = [one.number for one in store.round_summaries(campaign)]
        kinds = {one.number: one.kind for one in store.round_summaries(campaign)}
        times = {number: store.round_times(campaign, number) for number in numbers}
        for number in numbers:
            began, ended = times[number]
            end = began if ended is None else ended
            after = times.get(number + 1, (end, None))[0]
            found[campaign, number] = Round(campaign, number, kinds[number], began, end, after)
    for gateway, log in logs.items():
        for line in log.read_text(encoding="utf-8").splitlines():
            said = json.loads(line)
            one = found.get((said.get("campaign", ""), int(said.get("round", -1))))
            if one is None:
                continue
            at = datetime.fromisoformat(said["at"]).timestamp()
            if " started: " in said["message"]:
                one.started[gateway] = at
            elif " closed: " in said["message"]:
                one.closed[gateway] = at
    for diary in diaries.values():
        for entry in diary:
            one = found.get((entry.campaign, entry.round))
            if one is None or entry.delta_at is None:
                continue
            if one.slowest is None or entry.delta_at > (one.slowest.delta_at or 0.0):
                one.slowest = entry
    return list(found.values())


def problems(
    store: SqlStore,
    campaigns: Sequence[str],
    diaries: Mapping[str, Sequence[Entry]],
    manifest: Manifest,
    plan: PlanEntry,
) -> list[str]:
    """What isn't as it must be; nothing is wanted."""
    found = [
        f"campaign {one.id} is {one.state}: {one.reason}"
        for one in store.campaigns()
        if one.id in campaigns and one.state != "finished"
    ]
    found += _in_two_rounds(store, campaigns)
    for campaign in campaigns:
        found += _miscounted(store, campaign, diaries)
        found += _wrong_weights(store, campaign, diaries, manifest, plan)
    return found


def _in_two_rounds(store: SqlStore, campaigns: Sequence[str]) -> list[str]:
    """Devices that had a part in rounds of two campaigns at once, as the store has it."""
    parts: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    for campaign in campaigns:
        for one in store.rounds(campaign):
            began, ended = store.round_times(campaign, one.number)
            for device in one.plan["assignments"]:
                parts[device["device"]].append((began, ended or float("inf"), campaign))
    found = []
    for device, of in parts.items():
        of.sort()
        for before, after in itertools.pairwise(of):
            if after[0] < before[1] and after[2] != before[2]:
                found.append(f"{device} was in rounds of {before[2]} and {after[2]} at once")
    return found


def _miscounted(
    store: SqlStore, campaign: str, diaries: Mapping[str, Sequence[Entry]]
) -> list[str]:
    """Whether reports, counters and receipts all say the same."""
    found = []
    for one in store.rounds(campaign):
        reported = Counter(str(report["device"]) for report in store.reports(campaign, one.number))
        told = {
            name
            for name, diary in diaries.items()
            for entry in diary
            if (entry.campaign, entry.round) == (campaign, one.number)
            and ReceiptResult.COUNTED in entry.results
        }
        asked = {device["device"] for device in one.plan["assignments"]}
        accepted = one.result.get("accepted")
        if reported.total() != len(reported) or accepted != len(reported):
            found.append(
                f"{campaign}, round {one.number}: {accepted} accepted, "
                f"{reported.total()} reports of {len(reported)} devices"
            )
        if set(reported) != told or asked != told:
            found.append(
                f"{campaign}, round {one.number}: {len(asked)} asked, {len(reported)} reported, "
                f"{len(told)} were told that they are counted"
            )
    return found


def _wrong_weights(
    store: SqlStore,
    campaign: str,
    diaries: Mapping[str, Sequence[Entry]],
    manifest: Manifest,
    plan: PlanEntry,
) -> list[str]:
    """Whether every version is what the devices' deltas make of the one before, bit for bit."""
    config = CampaignConfig.parse(store.campaign(campaign).config)
    deltas = Deltas(plan.delta_values)
    first = store.weights(campaign, 0)
    state = MasterState(
        tuple(manifest.tensors), np.frombuffer(first.master, "<f8").copy(), 0, first.rule_state
    )
    made: dict[int, list[int]] = defaultdict(list)
    for diary in diaries.values():
        for entry in diary:
            if entry.campaign == campaign and entry.action == Action.TRAIN:
                made[entry.round].append(entry.number)
    for version, number in enumerate(sorted(made), 1):
        values, weight = deltas.sum(made[number], number)
        part = [plan_sum_from_manifest(manifest, plan, values, weight)]
        state = config.aggregation.apply(state, [part])
        blob = blob_from_master(state.layout, state.master, len(first.blob))
        if blob != store.weights(campaign, version).blob:
            return [f"{campaign}, version {version}: it isn't what the devices' deltas make of it"]
    return []


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, ninth tenth and largest of some seconds."""
    ordered = sorted(values)
    if not ordered:
        return {"median": 0.0, "p90": 0.0, "max": 0.0}
    return {
        "median": round(statistics.median(ordered), 2),
        "p90": round(ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))], 2),
        "max": round(ordered[-1], 2),
    }
