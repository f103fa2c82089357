"""A fleet in the middle of its life: campaigns in every state, versions, people who did things.

Made by the operations, the store and the gates of the service, as whoever drives campaigns uses
them; only what devices would measure is made up, from a seed. Tests of pages, screenshots and
browsers look at it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fleet.campaign import CampaignConfig, RoundKind, Step, schedule
from fleet.campaign.planning import Assignment, RoundPlan
from fleet.clock import Clock
from fleet.coordinator.gate_keeper import GateKeeper
from fleet.protocol.manifest import Manifest
from fleet.registry import Observed
from fleet.service.operations import Actor, Operations
from fleet.service.schema import (
    BundleToImport,
    CampaignToStart,
    DevicesToAdd,
    DeviceToAdd,
    GatewayToAdd,
    TokenToIssue,
    VersionToAdd,
    WebhookToAdd,
)
from fleet.store import Events, Gateways, Member, Stages, WeightsVersion
from fleet.store.models import RELEASED
from tests.fleet.coordinator import small_model

ADA = Actor("ada", "admin", "the fleet is set up")
OLE = Actor("ole", "operator", "new pens in the dairy")
EVE = Actor("eve", "approver", "looked at the figures")
HOSTILE = '<script>alert(1)</script> \N{LEFT-TO-RIGHT OVERRIDE}& "it\'s" {{ 7 * 7 }}'
MODEL = "digits"
BOARDS = ("stm32f746", "stm32f407")
SITES = ("dairy", "north-barn", "south-barn")
HELD_OUT = 20
ROUND_SECONDS = 1500.0
GATES: list[dict[str, Any]] = [
    {"gate": "score", "measure": "mean", "most_drop": 0.05},
    {"gate": "failures", "most": 0.3},
]
STAGES: list[dict[str, Any]] = [
    {"name": "canary", "devices": 12, "gates": GATES, "on_too_little_evidence": "pause"},
    {"name": "half", "share": 0.5, "gates": GATES, "approval": True},
    {"name": "all", "share": 1.0},
]


class _Past:
    """A store's clock that is behind by `back` seconds."""

    def __init__(self, of: Clock) -> None:
        self.of, self.back = of, 0.0

    def monotonic(self) -> float:
        return self.of.monotonic()

    def wall(self) -> float:
        return self.of.wall() - self.back

    def sleep(self, seconds: float) -> None:
        self.of.sleep(seconds)


@dataclass
class Story:
    """What there is, by what it is about; campaigns by their names."""

    operations: Operations
    devices: int = 60
    odd: str = HOSTILE
    """What people and gateways say here and there."""
    campaigns: dict[str, str] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [f"cow-{number:05}" for number in range(self.devices)]

    def gateway(self, device: str) -> str:
        return f"{SITES[int(device[4:]) % len(SITES)]}-gw"

    # The fleet

    def set_up(self) -> None:
        """Sites, gateways, devices, a model with two boards."""
        ops = self.operations
        for site in SITES:
            ops.add_gateway(ADA, GatewayToAdd(gateway=f"{site}-gw", site=site))
            Gateways(ops.store).seen(f"{site}-gw")
        for board in BOARDS:
            manifest = small_model.manifest(board)
            manifest["board"]["active_milliwatts"] = 180
            text = json.dumps(manifest)
            weights = base64.b64encode(small_model.blob()).decode()
            wanted = BundleToImport(model=MODEL, manifest=text, weights=weights)
            ops.import_bundle(OLE, wanted)
            self.manifests[manifest["bundle_id"]] = Manifest.parse(text)
        for first in range(0, self.devices, 10_000):
            some = self.names[first : first + 10_000]
            to_add = [
                DeviceToAdd(
                    device=name,
                    site=SITES[int(name[4:]) % len(SITES)],
                    labels={"herd": "ab"[int(name[4:]) % 2]},
                )
                for name in some
            ]
            ops.add_devices(ADA, DevicesToAdd(devices=to_add))
        ops.registry.observe({name: self.seen(number) for number, name in enumerate(self.names)})

    def seen(self, number: int) -> Observed:
        board = BOARDS[number % 2]
        entry = small_model.device_entry("d", board, battery_percent=20 + number % 80)
        entry = {name: value for name, value in entry.items() if name in Observed.model_fields}
        entry["online"] = number % 11 != 3
        now = self.operations.registry.now()
        heard = {"gateway": self.gateway(self.names[number]), "last_seen": now - number % 50}
        return Observed.model_validate({**entry, **heard})

    def weights(self, number: int) -> bytes:
        blob = bytearray(small_model.blob())
        blob[number % len(blob)] ^= 1
        return bytes(blob)

    # Campaigns

    def begin(self, name: str, **fields: Any) -> str:
        """A campaign that somebody drives."""
        config = CampaignConfig.model_validate(
            {"name": name, "model": MODEL, "rounds": 2, "stages": STAGES, **fields}
        )
        made = self.operations.start_campaign(OLE, CampaignToStart(campaign=config)).campaign
        self.operations.store.claim(made, "driver")
        self.campaigns[name] = made
        before = self.operations.models.version(MODEL, 1).sha256
        stage_of: dict[str, int] = {}
        for number in reversed(range(len(config.stages))):
            stage_of |= dict.fromkeys(self._of_stage(config, number), number)
        members = [Member(device, stage, before) for device, stage in stage_of.items()]
        Stages(self.operations.store).save_members(made, members)
        return made

    def _of_stage(self, config: CampaignConfig, number: int) -> list[str]:
        stage = config.stages[number]
        return self.names[: stage.devices or round((stage.share or 1.0) * self.devices)]

    def steps(self, name: str) -> tuple[Step, ...]:
        return schedule(self.config(name))

    def config(self, name: str) -> CampaignConfig:
        record = self.operations.store.campaign(self.campaigns[name])
        return CampaignConfig.parse(record.config)

    def begin_round(self, name: str, step: Step) -> RoundPlan:
        """Its devices are asked."""
        store, made = self.operations.store, self.campaigns[name]
        some = self._of_stage(self.config(name), step.stage)
        bundles = list(self.manifests)
        assignments = tuple(
            Assignment(
                one,
                self.gateway(one),
                bundles[number % 2],
                self.manifests[bundles[number % 2]].plans[-1].id,
                "no larger plan",
                20,
                1,
                delay_seconds=float(number % 5),
            )
            for number, one in enumerate(some)
        )
        skipped = {
            f"calf-{n}": f"last heard of {4000 + n} s ago, more than 3,600 s" for n in range(7)
        }
        is_first = step.kind is RoundKind.SCORE_FIRST
        weights = store.weights(made, 0) if is_first else store.latest_weights(made)
        targets = {one: sum(self.gateway(of) == one for of in some) for one in self._gateways(some)}
        plan = RoundPlan(
            step.number,
            step.kind,
            step.number,
            weights.sha256,
            len(some),
            assignments,
            skipped,
            targets,
            step.stage,
            step.training_round,
        )
        store.begin_round(made, "driver", step.number, step.kind.value, plan.to_json())
        return plan

    def _gateways(self, devices: Sequence[str]) -> list[str]:
        return sorted({self.gateway(one) for one in devices})

    def progress(self, name: str, plan: RoundPlan, accepted: int) -> None:
        """So many have delivered, the others are waited for."""
        still = plan.assignments[accepted:]
        told = {
            "declined": {"battery": 1},
            "open": [
                {"device": one.device, "gateway": one.gateway, "task_after": one.delay_seconds}
                for one in still[:20]
            ],
            "accepted_by": {
                name: sum(one.gateway == name for one in plan.assignments[:accepted])
                for name in plan.targets
            },
            "bytes_up": 431 * accepted,
        }
        store = self.operations.store
        store.note_progress(self.campaigns[name], "driver", plan.number, accepted, told)

    def end_round(
        self,
        name: str,
        plan: RoundPlan,
        accuracy: float,
        failed: Mapping[str, str] | None = None,
        gain: float = 0.03,
    ) -> None:
        """Devices report how well they do with the round's weights, and its gates judge."""
        store, made = self.operations.store, self.campaigns[name]
        failed = failed or {}
        dice = np.random.default_rng(plan.number + 7)
        reports = []
        for one in plan.assignments:
            share = np.clip(accuracy + dice.normal(0, 0.08), 0, 1)
            if one.device not in failed:
                right = round(share * HELD_OUT)
                better = min(HELD_OUT, right + round(gain * HELD_OUT))
                reports.append(
                    {
                        "device": one.device,
                        "gateway": one.gateway,
                        "plan": one.plan,
                        "plan_reason": one.plan_reason,
                        "status": "accepted",
                        "train_samples": 20,
                        "train_steps": 20 if plan.kind is RoundKind.TRAIN else 0,
                        "held_out": HELD_OUT,
                        "correct_before": right,
                        "correct_after": better if plan.kind is RoundKind.TRAIN else right,
                        "coded_bytes": 400,
                        "payload_bytes": 431,
                        "seconds": 12.0 + dice.uniform(0, 20),
                    }
                )
        result = {
            "accepted": len(reports),
            "wanted": plan.wanted,
            "late": 1,
            "duplicate": 0,
            "refused": {},
            "declined": {},
            "skipped": plan.skipped,
            "not_started": {},
            "lost": {},
            "missing": sorted(failed),
            "failed": dict(failed),
            "explanations": [],
            "coded_bytes": 400 * len(reports),
            "payload_bytes": 431 * len(reports),
        }
        weights = None
        if plan.kind is RoundKind.TRAIN:
            before = store.latest_weights(made)
            number = before.version + 1
            blob = self.weights(100 * int(made[:4], 16) + number)
            weights = WeightsVersion(number, hashlib.sha256(blob).hexdigest(), blob, b"")
        store.finish_round(made, "driver", plan.number, "done", result, reports, weights)
        members = Stages(store).members(made)
        Stages(store).save_members(
            made,
            [
                Member(device, members[device].stage, members[device].before, 1, why)
                for device, why in failed.items()
                if device in members
            ],
        )
        step = next((one for one in self.steps(name) if one.number == plan.number), None)
        if step is not None:
            keeper = GateKeeper(store, made, self.config(name), self.manifests, None)
            keeper.judge(step)

    def run(self, name: str, until: int, accuracies: Sequence[float]) -> None:
        """All rounds up to and with the number `until`."""
        for step, accuracy in zip(self.steps(name), accuracies, strict=False):
            if step.number > until:
                return
            plan = self.begin_round(name, step)
            clock = self.operations.store.clock
            if isinstance(clock, _Past):
                clock.back -= ROUND_SECONDS
            self.end_round(name, plan, accuracy)

    def say(self, name: str, state: str, reason: str = "", waiting: str = "") -> None:
        """Where it stands, as its driver says it."""
        store, made = self.operations.store, self.campaigns[name]
        if state in ("finished", "failed", "cancelled", "undecided", "rolled-back"):
            store.end_campaign(made, "driver", state, reason)
        else:
            store.set_state(made, "driver", state, reason, waiting)
        told = {"state": state, "reason": reason, "waiting": waiting}
        Events(store).add("state", made, told)

    def trip(self, name: str) -> None:
        """The round that runs in a campaign's stage ends badly: its gate fails, it rolls back."""
        store, made = self.operations.store, self.campaigns[name]
        running = next(one for one in store.round_summaries(made) if one.state == "running")
        plan = RoundPlan.from_json(store.round(made, running.number).plan)
        self.end_round(name, plan, 0.35)
        judged = Stages(store).judged(made)[plan.stage]
        why = "; ".join(str(one["reason"]) for one in judged.verdicts if one["outcome"] == "fail")
        stage = self.config(name).stages[plan.stage].name
        self.say(name, "rolling-back", f"stage {stage}: a gate failed: {why}")


def fill(operations: Operations, devices: int = 60, odd: str = HOSTILE) -> Story:
    """Everything that there is in the story; its clock is set back as it is told."""
    story = Story(operations, devices, odd)
    store = operations.store
    clock = _Past(store.clock)
    store.clock = clock
    try:
        _tell(story, clock)
    finally:
        store.clock = clock.of
    return story


def _tell(story: Story, clock: _Past) -> None:
    ops = story.operations
    clock.back = 9 * 86_400
    story.set_up()
    clock.back = 6 * 86_400
    story.begin("pens", description="New pens in the dairy.")
    story.run(
        "pens", 99, [0.62, 0.62, 0.74, 0.79, 0.79, 0.62, 0.8, 0.82, 0.83, 0.83, 0.62] + [0.84] * 9
    )
    for what in ("begin:1",):
        story.say("pens", "waiting", "approval of stage half", what)
        ops.act(EVE, story.campaigns["pens"], "approve")
    parent = ops.models.version(MODEL, 1)
    trained = ops.store.latest_weights(story.campaigns["pens"]).blob
    source = f"campaign {story.campaigns['pens']}"
    made = ops.models.add_version(MODEL, trained, parent.version, source, RELEASED)
    ops.store.note_made(story.campaigns["pens"], "driver", made.name)
    story.say("pens", "finished")
    clock.back = 5 * 86_400
    story.begin("look-back", kind="evaluate", version=1, stages=[{**STAGES[2], "gates": GATES}])
    story.run("look-back", 0, [0.83])
    story.end_round("look-back", story.begin_round("look-back", story.steps("look-back")[1]), 0.6)
    reason = "stage all: a gate failed: mean change of accuracy: -22.7 points"
    story.say("look-back", "failed", reason)
    clock.back = 3 * 86_400
    weights = base64.b64encode(story.weights(3)).decode()
    ops.add_version(OLE, MODEL, VersionToAdd(weights=weights, parent=2))
    ops.release(EVE, MODEL, 3)
    clock.back = 2 * 86_400
    story.begin("bad-labels", description=story.odd)
    story.run("bad-labels", 2, [0.8, 0.8, 0.6])
    step = story.steps("bad-labels")[3]
    story.end_round("bad-labels", story.begin_round("bad-labels", step), 0.4)
    reason = "stage canary: a gate failed: mean change of accuracy: -38.3 points"
    story.say("bad-labels", "rolling-back", reason)
    story.say("bad-labels", "rolled-back", reason + "; 1 devices couldn't be reached: cow-00003")
    weights = base64.b64encode(story.weights(4)).decode()
    ops.add_version(OLE, MODEL, VersionToAdd(weights=weights, parent=3))
    ops.release(EVE, MODEL, 4)
    ops.withdraw_newest(Actor("eve", "approver", story.odd), MODEL)
    clock.back = 86_400
    story.begin("few-cows", stages=[{**STAGES[0], "devices": 3}, STAGES[2]])
    story.run("few-cows", 3, [0.8, 0.8, 0.82, 0.8])
    reason = (
        "stage canary: too little evidence: mean change of accuracy: +0.0 points over 3 devices"
    )
    story.say("few-cows", "waiting", reason, "gate:0")
    clock.back = 7200
    story.begin("by-night", windows=[{"start": "22:00", "end": "05:00"}])
    story.say("by-night", "running", "waits for its window")
    story.begin("spring", approval=True)
    story.say("spring", "waiting", "approval of the campaign", "begin:0")
    story.begin("feeders")
    story.run("feeders", 1, [0.7, 0.7])
    ops.act(OLE, story.campaigns["feeders"], "pause")
    story.say("feeders", "paused", "paused by the operator")
    clock.back = 3600
    story.begin("canary-2", deadline_seconds=7200)
    story.say("canary-2", "running")
    failed = {"cow-00003": "no-report", "cow-00007": "battery"}
    for step, accuracy in zip(story.steps("canary-2")[:3], (0.8, 0.8, 0.82), strict=True):
        story.end_round("canary-2", story.begin_round("canary-2", step), accuracy, failed)
        clock.back -= 600
    clock.back = 240
    plan = story.begin_round("canary-2", story.steps("canary-2")[3])
    story.progress("canary-2", plan, 5)
    ops.store.quarantine(
        story.campaigns["canary-2"], "driver", "south-barn-gw", f"range: {story.odd}"
    )
    clock.back = 0
    current = [ops.models.version(MODEL, version).sha256 for version in (1, 2, 2, 3)]
    ops.registry.observe(
        {
            name: story.seen(number).model_copy(update={"current": current[number % 4]})
            for number, name in enumerate(story.names)
        }
    )
    for site in SITES:
        Gateways(ops.store).seen(f"{site}-gw")
    ops.issue_token(ADA, TokenToIssue(who="bob", role="viewer", days=30))
    revoked = ops.issue_token(ADA, TokenToIssue(who="old", role="operator", days=30))
    ops.revoke_token(ADA, revoked.token)
    ops.add_webhook(ADA, WebhookToAdd(url="https://hooks.example.com/x", events=["gate", "state"]))
