"""Runs a stored campaign over whatever carries messages to the gateways.

The driver is disposable: all it knows is in the store, so that a new one goes on where a
killed one was. It owns no socket and no Flower; `Transport` and `Clock` are its only seams.
"""

from __future__ import annotations

import hashlib
import logging
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fleet.aggregation import master_from_blob
from fleet.campaign import (
    CampaignConfig,
    DeviceInfo,
    Members,
    Operation,
    RoundKind,
    RoundMachine,
    RoundOutcome,
    RoundPlan,
    Step,
    by_name,
    deal_stages,
    eligible,
    filter_values,
    plan_round,
    schedule,
    start_request,
)
from fleet.campaign.answers import RoundCounters
from fleet.campaign.config import Stage
from fleet.campaign.gates import Finding, Outcome, Verdict
from fleet.campaign.stages import failed_early, judge_stage, paired_scores, together
from fleet.clock import Clock, SystemClock
from fleet.coordinator.closing import close_round, parts_of_gateway
from fleet.coordinator.scores import add_counts
from fleet.coordinator.transport import Reply, Transport
from fleet.errors import AggregationError, AnswerError, CampaignError, ModelStoreError
from fleet.protocol.manifest import Manifest
from fleet.registry import Filter
from fleet.store import (
    ENDED_STATES,
    Events,
    Member,
    Models,
    Registry,
    SqlStore,
    Stages,
    Store,
    SupersededError,
    WeightsVersion,
)
from fleet.store.models import CANDIDATE, RELEASED
from fleet.store.stages import after_round

logger = logging.getLogger(__name__)

ROLL_BACK_ROUNDS = 3
"""So often devices are asked to go back; each time waits for a round's deadline."""
_MOST_DOUBLED = 60
_NAMED = 3
"""Tensors that a message names."""


@dataclass(frozen=True)
class Pace:
    """Waiting times of the driver, in seconds."""

    stop_check: float = 2.0
    retry: float = 2.0
    hello: float = 3.0
    news: float = 3.0


class _EndedError(Exception):
    """The campaign ends here, in this state."""

    def __init__(self, state: str, reason: str) -> None:
        self.state = state
        self.reason = reason
        super().__init__(reason)


class _RollBackError(Exception):
    """Its devices go back to what they had."""


class CampaignDriver:
    """Drives one campaign to its end, or until somebody else takes it over."""

    def __init__(
        self,
        store: SqlStore,
        campaign: str,
        transport: Transport,
        pace: Pace | None = None,
        driver: str | None = None,
        clock: Clock | None = None,
        registry: Registry | None = None,
    ) -> None:
        """Nothing is claimed or sent before `run`; `driver` is the name to claim under.

        With a `registry` its devices are those that can be meant; without, whoever is at a gateway.
        """
        self._store = store
        self._stages = Stages(store)
        self._models = Models(store)
        self._campaign = campaign
        self._transport = transport
        self._pace = pace or Pace()
        self._driver = driver or uuid.uuid4().hex
        self._clock = clock or SystemClock()
        self._registry = registry
        self._devices: dict[str, dict[str, DeviceInfo]] = {}
        self._heard: dict[str, float] = {}
        self._quarantined: dict[str, str] = dict(store.quarantined(campaign))
        self._counters: dict[int, dict[str, RoundCounters]] = {}
        self._stop_checked = float("-inf")
        self._rolls_back = False
        self._record = store.campaign(campaign)
        self._config = CampaignConfig.parse(self._record.config)
        self._manifests = {
            bundle: Manifest.parse(text, f"manifest of bundle {bundle[:16]}")
            for bundle, text in store.manifests(campaign).items()
        }

    def run(self) -> str:
        """Run all rounds that the store doesn't have yet; returns the campaign's state.

        A campaign that can't go on ends as `failed` with its reason in the store.
        """
        self._record = self._store.claim(self._campaign, self._driver)
        if self._record.state in ENDED_STATES:
            return self._record.state
        try:
            if self._record.state == "rolling-back":
                self._cancel_rounds(but=RoundKind.ROLL_BACK)
                self._roll_back(self._record.reason)
            else:
                try:
                    self._run_steps()
                except _RollBackError as error:
                    self._cancel_rounds()
                    self._roll_back(str(error))
        except SupersededError as error:
            logger.warning("this driver ends: %s", error)
        except _EndedError as end:
            if end.state == "cancelled":
                self._cancel_rounds()
            self._end(end.state, end.reason)
        except (CampaignError, AggregationError, ModelStoreError) as error:
            logger.error("campaign %s failed: %s", self._campaign, error)
            self._cancel_rounds()
            self._end("failed", str(error))
        return self._store.campaign(self._campaign).state

    def _end(self, state: str, reason: str) -> None:
        self._store.end_campaign(self._campaign, self._driver, state, reason)
        self._tell("state", state=state, reason=reason, waiting="")

    def _run_steps(self) -> None:
        config = self._config
        if config.approval:
            self._wait_for_decision("begin:0", "approval of the campaign")
        begun: set[int] = set()
        for step in schedule(config):
            stage = config.stages[step.stage]
            if step.stage not in begun:
                begun.add(step.stage)
                if stage.approval and not (config.approval and step.stage == 0):
                    self._wait_for_decision(
                        f"begin:{step.stage}", f"approval of stage {stage.name}"
                    )
            if step.kind is RoundKind.RELEASE and not self._may_release(step):
                continue
            if step.kind is RoundKind.SCORE_AGAIN:
                if step.number - 1 not in self._begun():
                    continue  # nothing was released
                self._soak(step)
            if not self._run_round(step):
                self._obey()
                raise _EndedError("cancelled", "stopped by the operator")
            self._judge(step)
        self._obey()
        self._end_well()

    def _end_well(self) -> None:
        """All is done: what was trained and released is a version of the model from now on."""
        record, config = self._record, self._config
        if config.kind == "adapt" and record.base:
            model, _, number = record.base.rpartition(":")
            released = config.last_round == "release"
            made = self._models.add_version(
                model,
                self._store.latest_weights(self._campaign).blob,
                int(number),
                f"campaign {self._campaign}",
                RELEASED if released else CANDIDATE,
            )
            self._store.note_made(self._campaign, self._driver, made.name)
        self._end("finished", "")

    # Gates

    def _may_release(self, step: Step) -> bool:
        """Not where a stage's gates couldn't tell and a wider one is to decide."""
        if step.number in self._begun():
            return True
        judged = self._stages.judged(self._campaign).get(step.stage)
        if judged is None or judged.outcome != Outcome.TOO_LITTLE_EVIDENCE.value:
            return True
        return _decision(step) in self._stages.decisions(self._campaign)

    def _begun(self) -> dict[int, str]:
        """The rounds that there are, with their states."""
        return {one.number: one.state for one in self._store.round_summaries(self._campaign)}

    def _judge(self, step: Step) -> None:
        """What a round means for its stage; raises where the campaign doesn't go on."""
        stage = self._config.stages[step.stage]
        if not stage.gates or step.number < max(self._begun()):
            return  # the campaign has gone on since
        if step.kind is RoundKind.TRAIN:
            verdict = failed_early(stage, self._store.round(self._campaign, step.number).result)
            if verdict is not None:
                self._note_verdicts(step, [verdict])
                self._on_failure(step, stage, [verdict])
            return
        if step.kind not in (RoundKind.SCORE_LAST, RoundKind.SCORE_AGAIN):
            return
        base = next(
            one.number
            for one in schedule(self._config)
            if one.stage == step.stage and one.kind is RoundKind.SCORE_FIRST
        )
        after = self._store.reports(self._campaign, step.number)
        scores = paired_scores(
            self._store.reports(self._campaign, base),
            after,
            self._groups(step.number),
        )
        result = self._store.round(self._campaign, step.number).result
        verdicts = judge_stage(stage, scores, result, self._config.seed)
        self._note_verdicts(step, verdicts)
        outcome = together(verdicts)
        if outcome is Outcome.FAIL:
            self._on_failure(step, stage, verdicts)
        elif outcome is Outcome.TOO_LITTLE_EVIDENCE:
            why = "; ".join(one.reason for one in verdicts if one.outcome is outcome)
            reason = f"stage {stage.name}: too little evidence: {why}"
            is_last = step.stage == len(self._config.stages) - 1
            if stage.on_too_little_evidence == "pause":
                self._wait_for_decision(_decision(step), reason)
            elif stage.on_too_little_evidence == "stop" or is_last:
                raise _EndedError("undecided", reason)

    def _note_verdicts(self, step: Step, verdicts: Sequence[Verdict]) -> None:
        plain = [
            {
                "outcome": one.outcome.value,
                "reason": one.reason,
                "findings": [_plain_finding(finding) for finding in one.findings],
            }
            for one in verdicts
        ]
        outcome = together(verdicts)
        known = self._stages.judged(self._campaign).get(step.stage)
        if known is not None and list(known.verdicts) == plain:
            return  # judged before this driver began
        self._stages.save_judged(self._campaign, step.stage, outcome.value, plain)
        self._tell(
            "gate",
            stage=self._config.stages[step.stage].name,
            outcome=outcome.value,
            reasons=[one.reason for one in verdicts],
        )

    def _on_failure(self, step: Step, stage: Stage, verdicts: Sequence[Verdict]) -> None:
        why = "; ".join(one.reason for one in verdicts if one.outcome is Outcome.FAIL)
        reason = f"stage {stage.name}: a gate failed: {why}"
        if self._config.kind == "evaluate":
            raise _EndedError("failed", reason)
        if stage.on_failure == "roll-back":
            raise _RollBackError(reason)
        self._wait_for_decision(_decision(step), reason)

    def _groups(self, number: int) -> dict[str, dict[str, str]]:
        """What gates may look at apart: board, gateway, labels.

        By the round's plan: a driver that has just begun has heard of nobody yet.
        """
        plan = RoundPlan.from_json(self._store.round(self._campaign, number).plan)
        known = {
            one.device: {"board": self._manifests[one.bundle].board.name, "gateway": one.gateway}
            for one in plan.assignments
        }
        labels = self._registry.labels(known) if self._registry else {}
        return {name: {**labels.get(name, {}), **known.get(name, {})} for name in known | labels}

    def _tell(self, kind: str, **data: object) -> None:
        """Something that operators and their programs want to hear of."""
        Events(self._store).add(kind, self._campaign, data)

    # Waiting for people and hours

    def _obey(self) -> None:
        """Do what an operator has asked for; a pause lasts until it is taken back."""
        told = False
        while True:
            self._stop_checked = self._clock.monotonic()
            record = self._store.driver_lives(self._campaign, self._driver, self._clock.wall())
            if record.wish == "stop":
                raise _EndedError("cancelled", "stopped by the operator")
            if record.wish == "roll-back":
                raise _RollBackError("asked for by the operator")
            if record.wish != "pause":
                if told or record.state == "paused":
                    self._set_state("running")
                return
            if not told:
                self._set_state("paused", "paused by the operator")
                told = True
            self._idle()

    def _wait_for_decision(self, what: str, reason: str) -> None:
        told = False
        while what not in self._stages.decisions(self._campaign):
            if not told:
                self._set_state("waiting", reason, waiting=what)
                told = True
            self._obey_while_waiting()
            self._idle()
        if told or self._store.campaign(self._campaign).state == "waiting":
            self._set_state("running")

    def _obey_while_waiting(self) -> None:
        """A pause changes nothing there."""
        record = self._store.driver_lives(self._campaign, self._driver, self._clock.wall())
        if record.wish == "stop":
            raise _EndedError("cancelled", "stopped by the operator")
        if record.wish == "roll-back":
            raise _RollBackError("asked for by the operator")

    def _set_state(self, state: str, reason: str = "", waiting: str = "") -> None:
        self._store.set_state(self._campaign, self._driver, state, reason, waiting)
        self._tell("state", state=state, reason=reason, waiting=waiting)

    def _idle(self) -> None:
        """Let time pass; what gateways say meanwhile is noted."""
        end = self._clock.monotonic() + self._pace.stop_check
        while self._clock.monotonic() < end:
            self._receive()

    def _soak(self, step: Step) -> None:
        """Until the stage's release has been out for as long as it should."""
        number = step.number - 1
        ended = self._store.round_times(self._campaign, number)[1] or self._clock.wall()
        until = ended + self._config.stages[step.stage].soak_seconds
        while self._clock.wall() < until:
            self._obey()
            self._idle()

    def _wait_for_window(self) -> None:
        told = False
        while not self._config.is_open(self._clock.wall()):
            if not told:
                self._set_state("running", "waits for its window")
                told = True
            self._obey()
            self._idle()
        if told:
            self._set_state("running")

    # Rolling back

    def _roll_back(self, reason: str) -> None:
        """Bring all devices back to the weights that they had before the campaign."""
        self._rolls_back = True
        self._set_state("rolling-back", reason)
        self._wait_for_released()
        for _ in range(ROLL_BACK_ROUNDS):
            if not self._roll_back_round():
                break
        missing = sorted(self._to_roll_back())
        if missing:
            named = ", ".join(missing[:5])
            reason += f"; {len(missing)} devices couldn't be reached to go back: {named}"
        self._end("rolled-back", reason)

    def _to_roll_back(self) -> dict[str, str]:
        """Devices whose current weights are of this campaign, and what each had before.

        One that nobody has heard of has what was released to it.
        """
        digests = self._store.weight_digests(self._campaign)
        heard, released = by_name(self._known_devices()), self._released()
        back = {}
        for name, member in self._stages.members(self._campaign).items():
            current = heard[name].current if name in heard else ""
            if current != member.before and (current in digests if current else name in released):
                back[name] = member.before
        return back

    def _released(self) -> frozenset[str]:
        """Devices that were told to make the candidate their current weights."""
        return frozenset(
            assignment.device
            for one in self._store.round_summaries(self._campaign)
            if one.kind == RoundKind.RELEASE.value
            for assignment in RoundPlan.from_json(
                self._store.round(self._campaign, one.number).plan
            ).assignments
        )

    def _wait_for_released(self) -> None:
        """A driver that has just begun doesn't know yet what devices have."""
        end = self._clock.monotonic() + self._config.wait_for_devices_seconds
        released, asked = self._released(), set(self._quarantined)
        while released - by_name(self._known_devices()).keys() and not self._stopped():
            if self._clock.monotonic() >= end:
                return
            for gateway in self._transport.gateways() - asked:
                asked.add(gateway)
                self._transport.send(gateway, Operation.HELLO, {})
            self._receive()

    def _roll_back_round(self) -> bool:
        """One round of it; False where nobody is left, or nobody can be reached."""
        running = [
            one
            for one in self._store.round_summaries(self._campaign)
            if one.state == "running" and one.kind == RoundKind.ROLL_BACK.value
        ]
        version = self._store.weights(self._campaign, 0)
        if running:
            plan = RoundPlan.from_json(self._store.round(self._campaign, running[0].number).plan)
        else:
            self._hear_all()
            back = self._to_roll_back()
            known = {one: self._blob(one) for one in set(back.values())}
            back = {name: before for name, before in back.items() if known[before] is not None}
            if not back:
                return False
            number = 1 + max(
                (one.number for one in self._store.round_summaries(self._campaign)), default=0
            )
            step = Step(number, RoundKind.ROLL_BACK, len(self._config.stages) - 1)
            try:
                plan = self._plan(step, version.sha256, Members(frozenset(back), back))
            except CampaignError as error:
                logger.warning("campaign %s: %s", self._campaign, error)
                return False
            plan = self._begin(plan)
        outcome = self._drive(plan, self._blobs(plan))
        if outcome.cancelled:
            self._store_cancelled(plan.number)
            return False
        self._close(plan, outcome, version)
        self._hear_all()
        return True

    def _hear_all(self) -> None:
        """Ask the gateways for what has changed, and give them a moment to answer."""
        for gateway in self._transport.gateways() - self._quarantined.keys():
            self._transport.send(gateway, Operation.HELLO, {})
        end = self._clock.monotonic() + self._pace.news
        while self._clock.monotonic() < end:
            self._receive()

    def _blob(self, digest: str) -> bytes | None:
        own = self._store.weights_with(self._campaign, digest)
        return own.blob if own is not None else self._models.blob_of(digest)

    def _blobs(self, plan: RoundPlan) -> dict[str, bytes]:
        """The versions that a round's devices begin with, by digest."""
        found = {}
        for digest in {one.weights or plan.weights for one in plan.assignments}:
            blob = self._blob(digest)
            if blob is None:
                raise CampaignError(f"round {plan.number}: weights {digest[:16]}… aren't known")
            found[digest] = blob
        return found

    def _cancel_rounds(self, but: RoundKind | None = None) -> None:
        """Let no round go on that nobody will collect, also one of a driver that was killed."""
        for one in self._store.round_summaries(self._campaign):
            if one.state == "running" and one.kind != but:
                plan = RoundPlan.from_json(self._store.round(self._campaign, one.number).plan)
                self._drive(plan, {}, cancel=True)
                self._store_cancelled(one.number)

    def _store_cancelled(self, number: int) -> None:
        self._store.finish_round(self._campaign, self._driver, number, "cancelled", {}, [], None)

    # Rounds

    def _run_round(self, step: Step) -> bool:
        """Run a round that hasn't ended; False where the operator stopped the campaign."""
        number = step.number
        state = self._begun().get(number)
        if state == "cancelled":
            return False  # by a driver that was killed before it could say so
        if state not in (None, "running"):
            return True
        self._obey()
        version = self._store.latest_weights(self._campaign)
        base = version
        if step.kind is RoundKind.SCORE_FIRST:
            base = self._store.weights(self._campaign, 0)
        if state == "running":
            plan = RoundPlan.from_json(self._store.round(self._campaign, number).plan)
            logger.info("resuming round %d", number)
        else:
            self._wait_for_window()
            self._check_for_empty_rounds()
            if not self.wait_for_devices(step):
                return False
            plan = self._begin(self._plan(step, base.sha256, self._members(step)))
        if plan.weights != base.sha256:
            raise CampaignError(
                f"round {number} was begun with weights {plan.weights[:16]}… but the newest "
                f"version is {base.sha256[:16]}…: the store was changed by hand"
            )
        outcome = self._drive(plan, self._blobs(plan))
        if outcome.cancelled:
            self._store_cancelled(number)
            return False
        self._close(plan, outcome, base)
        return True

    def _begin(self, plan: RoundPlan) -> RoundPlan:
        record = self._store.begin_round(
            self._campaign, self._driver, plan.number, plan.kind.value, plan.to_json()
        )
        return RoundPlan.from_json(record.plan)

    def _close(self, plan: RoundPlan, outcome: RoundOutcome, version: WeightsVersion) -> None:
        result = close_round(
            self._store,
            self._campaign,
            self._driver,
            self._config,
            self._manifests,
            plan,
            outcome,
            version,
        )
        self._note_failures(plan, result)

    def _note_failures(self, plan: RoundPlan, result: Mapping[str, Any]) -> None:
        """Remember who didn't deliver, so that nobody is asked for ever."""
        reasons = {str(one): str(why) for one, why in result["failed"].items()}
        if result["accepted"] >= plan.wanted:
            reasons = {}  # the others were only asked in case that these don't answer
        known = self._stages.members(self._campaign)
        failed = {}
        for device, reason in reasons.items():
            retry = self._config.retry_of(reason)
            times = known[device].failures if device in known else 0
            backoff = retry.backoff_seconds * 2 ** min(times, _MOST_DOUBLED)
            failed[device] = (reason, self._clock.wall() + backoff)
        asked = [one.device for one in plan.assignments]
        reported = set(asked) - set(result["missing"])
        changed = after_round(known, asked, reported, failed)
        if changed:
            self._stages.save_members(self._campaign, changed)

    def plan_round(self, step: Step, weights: str) -> RoundPlan:
        """The next round over the devices that this campaign may lease."""
        return self._plan(step, weights, self._members(step))

    def _plan(self, step: Step, weights: str, members: Members) -> RoundPlan:
        devices = self._known_devices()
        ready, _ = eligible(self._config, devices, self._manifests, members)
        seen = {one.device: one.lease for one in devices if one.device in ready}
        leases = self._store.take_leases(self._campaign, self._driver, seen)
        mine = {
            device: lease.number
            for device, lease in leases.items()
            if lease.campaign == self._campaign
        }
        return plan_round(
            self._config,
            step.number,
            step.kind,
            devices,
            self._manifests,
            weights,
            mine,
            members,
            step.stage,
            step.training_round,
        )

    def _known_devices(self) -> list[DeviceInfo]:
        return [one for known in self._devices.values() for one in known.values()]

    def _targets(self) -> dict[str, DeviceInfo]:
        """Known devices that the campaign is for, by name."""
        devices = by_name(self._known_devices())
        target = Filter.parse(self._config.target)
        if self._registry is not None:
            meant = self._registry.names(target)
            return {name: one for name, one in devices.items() if name in meant}
        return {name: one for name, one in devices.items() if target.matches(filter_values(one))}

    def _members(self, step: Step) -> Members:
        """Who may take part in a stage's rounds; devices that have come since join."""
        targets = self._targets()
        known = self._stages.members(self._campaign)
        strata = {name: f"{one.gateway}/{one.board}" for name, one in targets.items()}
        # A driver that has just begun may not have heard of all: they keep their places.
        heard = by_name(self._known_devices())
        dealt = deal_stages(
            self._config,
            {**strata, **dict.fromkeys(known.keys() - heard.keys(), "")},
            {name: one.stage for name, one in known.items()},
        )
        joined = {
            name: Member(name, stage, targets[name].current)
            for name, stage in dealt.items()
            if name not in known
        }
        if joined:
            self._stages.save_members(self._campaign, joined.values())
        known |= joined
        names = frozenset(
            name for name, one in known.items() if name in targets and one.stage <= step.stage
        )
        waiting = {name: why for name in names if (why := self._holds_back(known[name]))}
        own: dict[str, str] = {}
        if self._config.kind != "adapt" and step.kind is RoundKind.SCORE_FIRST:
            own = {name: targets[name].current for name in names}
            strange = {one for one in set(own.values()) if self._blob(one) is None}
            waiting |= {
                name: f"its weights {digest[:16]}… aren't known"
                for name, digest in own.items()
                if digest in strange
            }
        return Members(names, own, waiting)

    def _holds_back(self, member: Member) -> str:
        """Why a device that failed isn't asked; empty where it is."""
        if not member.failures:
            return ""
        if member.failures >= self._config.retry_of(member.reason).attempts:
            return f"failed {member.failures} times in a row: {member.reason}"
        if self._clock.wall() < member.not_before:
            return f"failed ({member.reason}); it is asked again later"
        return ""

    def _check_for_empty_rounds(self) -> None:
        trained = [
            one
            for one in self._store.round_summaries(self._campaign)
            if one.kind == RoundKind.TRAIN.value and one.state == "done"
        ]
        last = trained[-self._config.max_empty_rounds :]
        if len(last) == self._config.max_empty_rounds and not any(one.accepted for one in last):
            result = self._store.round(self._campaign, last[-1].number).result
            why = {key: result.get(key) for key in ("refused", "declined", "lost", "not_started")}
            raise CampaignError(
                f"no delta was accepted in {len(last)} rounds; the last one says {why}"
            )

    # Devices

    def wait_for_devices(self, step: Step | None = None) -> list[DeviceInfo]:
        """What is known of devices, when enough can take part; empty where the user stops.

        With a `step` one of its stage's can, too; where all of them wait to be asked again, that is
        waited for. Raises `CampaignError` where they aren't there in time.
        """
        deadline = self._clock.monotonic() + self._config.wait_for_devices_seconds
        while True:
            targets = self._targets()
            members = Members(frozenset(targets))
            ready, skipped = eligible(self._config, targets.values(), self._manifests, members)
            enough = len(ready) >= self._config.min_devices
            if enough and (step is None or self._can_begin(step)):
                return self._known_devices()
            if self._stopped():
                return []
            now = self._clock.monotonic()
            if now > deadline and not enough:
                raise self._too_few(len(ready), skipped)
            if now > deadline and not self._backs_off():
                return self._known_devices()
            for gateway in self._transport.gateways() - self._quarantined.keys():
                if now - self._heard.get(gateway, now) >= self._pace.hello:
                    self._heard[gateway] = now
                    self._transport.send(gateway, Operation.HELLO, {})
            self._receive()

    def _can_begin(self, step: Step) -> bool:
        devices = self._known_devices()
        return bool(eligible(self._config, devices, self._manifests, self._members(step))[0])

    def _backs_off(self) -> bool:
        """Whether a device waits to be asked again."""
        return any(
            one.failures < self._config.retry_of(one.reason).attempts
            and self._clock.wall() < one.not_before
            for one in self._stages.members(self._campaign).values()
        )

    def _too_few(self, ready: int, skipped: Mapping[str, str]) -> CampaignError:
        whys = [f"{name}: {why}" for name, why in list(skipped.items())[:5]]
        whys += [f"gateway {name}: {why}" for name, why in self._quarantined.items()]
        return CampaignError(
            f"{ready} of at least {self._config.min_devices} devices are ready "
            f"after {self._config.wait_for_devices_seconds:.0f} s, at gateways "
            f"{sorted(self._transport.gateways()) or 'none'} "
            f"({'; '.join(whys) or 'none announced'})"
        )

    def _receive(self) -> list[Reply]:
        """Replies of gateways that aren't in quarantine; what devices there are is noted."""
        usable = []
        for reply in self._transport.receive():
            if reply.is_odd:
                self._quarantine(reply.gateway, reply.error)
            if reply.gateway in self._quarantined:
                continue
            usable.append(reply)
            if reply.hello is not None:
                self._heard[reply.gateway] = self._clock.monotonic()
                known = self._devices.setdefault(reply.gateway, {})
                changed = {
                    one.device: DeviceInfo(gateway=reply.gateway, **dict(one))
                    for one in reply.hello.devices
                }
                known.update(changed)
                self._note_counters(reply.gateway, reply.hello.rounds)
        return usable

    def _quarantine(self, gateway: str, reason: str) -> None:
        """Go on without a gateway whose answers can't be used, in this campaign."""
        if gateway not in self._quarantined:
            logger.error("gateway %s is in quarantine from now on: %s", gateway, reason)
            self._store.quarantine(self._campaign, self._driver, gateway, reason)
            self._quarantined[gateway] = reason
            self._devices.pop(gateway, None)

    def _note_counters(self, gateway: str, rounds: Sequence[RoundCounters]) -> None:
        """Bring the results of rounds that are over up to date with what came late."""
        for one in rounds:
            if one.campaign != self._campaign:
                continue
            known = self._counters.setdefault(one.round, {})
            if known.get(gateway) == one:
                continue
            known[gateway] = one
            total = add_counts(dict(counters) for counters in known.values())
            if not self._store.raise_counters(
                self._campaign,
                self._driver,
                one.round,
                {name: total[name] for name in ("late", "duplicate", "refused")},
            ):
                del known[gateway]

    def _stopped(self) -> bool:
        now = self._clock.monotonic()
        if now - self._stop_checked < self._pace.stop_check:
            return False
        self._stop_checked = now
        record = self._store.driver_lives(self._campaign, self._driver, self._clock.wall())
        return record.wish == "stop" or (record.wish == "roll-back" and not self._rolls_back)

    # One round

    def _drive(
        self, plan: RoundPlan, blobs: Mapping[str, bytes], cancel: bool = False
    ) -> RoundOutcome:
        """Run a stored round to its end, or cancel it at all its gateways."""
        clock = self._clock
        machine = RoundMachine(
            plan.gateways(),
            clock.monotonic(),
            self._config.deadline_seconds,
            self._config.gateway_grace_seconds,
            self._pace.retry,
        )
        if cancel:
            machine.stop(clock.monotonic())
        shown = 0
        while True:
            for gateway in plan.gateways():
                if gateway in self._quarantined:
                    machine.give_up(gateway, self._quarantined[gateway])
            for gateway, operation in machine.requests(clock.monotonic()):
                self._transport.send(
                    gateway, operation, self._fields(plan, gateway, operation, machine, blobs)
                )
            if machine.finished:
                return machine.outcome()
            for reply in self._receive():
                if reply.round == (self._campaign, plan.number):
                    self._hand_over(machine, plan, reply)
            accepted = sum(machine.accepted.values())
            if accepted != shown:
                shown = accepted
                self._store.note_progress(self._campaign, self._driver, plan.number, accepted)
            if self._stopped():
                machine.stop(clock.monotonic())

    def _fields(
        self,
        plan: RoundPlan,
        gateway: str,
        operation: Operation,
        machine: RoundMachine,
        blobs: Mapping[str, bytes],
    ) -> dict[str, Any]:
        if operation is Operation.START:
            return start_request(
                self._config, self._campaign, plan, gateway, self._manifests, blobs
            )
        key = {"campaign": self._campaign, "round": plan.number}
        if operation is Operation.COLLECT:
            return {**key, "cursor": machine.cursor(gateway)}
        return key

    def _hand_over(self, machine: RoundMachine, plan: RoundPlan, reply: Reply) -> None:
        """Hand a gateway's reply to the round; what can't be its round's puts it in quarantine."""
        now = self._clock.monotonic()
        if reply.error:
            logger.warning("gateway %s: %s", reply.gateway, reply.error)
            machine.failed(reply.gateway, reply.error, now)
        if reply.started is not None:
            machine.started(reply.gateway, reply.started, now)
        if reply.cancelled is not None:
            machine.cancelled(reply.gateway, reply.cancelled, now)
        if reply.collected is not None:
            machine.collected(reply.gateway, reply.collected, now)
            answer = machine.answer(reply.gateway)
            if answer is not None:
                try:
                    parts_of_gateway(self._config, self._manifests, plan, reply.gateway, answer)
                except AnswerError as error:
                    machine.reject(reply.gateway, str(error))
                    self._quarantine(reply.gateway, str(error))


def _decision(step: Step) -> str:
    """What is decided where a stage's gates don't pass: each time another thing."""
    when = {RoundKind.TRAIN: ":training", RoundKind.SCORE_AGAIN: ":soak"}.get(step.kind, "")
    return f"gate:{step.stage}{when}"


def _plain_finding(finding: Finding) -> dict[str, Any]:
    """A finding as JSON can hold it: what isn't finite is null."""

    def plain(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "group": finding.group,
        "devices": finding.devices,
        "outcome": finding.outcome.value,
        "measured": plain(finding.measured),
        "low": plain(finding.interval.low),
        "high": plain(finding.interval.high),
    }


def new_campaign(
    store: Store,
    config: CampaignConfig,
    manifests: Mapping[str, str],
    blob: bytes,
    author: str = "",
    base: str = "",
) -> str:
    """Store a new campaign over bundles of one model; returns its id (16 hex digits).

    `manifests` are the bundles' manifest.json texts in any keys, `blob` their weights, or those of
    the version `base` (MODEL:NUMBER) of their model.
    Raises `CampaignError` where the bundles don't hold the same model and weights, or a
    plan that the configuration names is in none of them.
    """
    parsed = [Manifest.parse(text, f"manifest of {name}") for name, text in manifests.items()]
    if not parsed:
        raise CampaignError("a campaign needs at least one bundle")
    digest = hashlib.sha256(blob).hexdigest()
    for one in parsed:
        _check_published(one, parsed[0])
        if one.model.digest != parsed[0].model.digest:
            raise CampaignError(
                f"bundles {one.bundle_id[:16]} and {parsed[0].bundle_id[:16]} are of different "
                f"models ({one.model.digest[:16]}… and {parsed[0].model.digest[:16]}…): weights of "
                "one mean something else to the other, be it for the values of tensors that are "
                "frozen; compile them from one model with the same calibration"
            )
        if one.tensors != parsed[0].tensors:
            raise CampaignError(
                f"bundles {one.bundle_id[:16]} and {parsed[0].bundle_id[:16]} hold different "
                "tensors: compile them with one version of tinyfleet"
            )
        if not base and one.weights.sha256 != digest:
            raise CampaignError(
                f"bundle {one.bundle_id[:16]} was built with weights {one.weights.sha256[:16]}…, "
                f"not {digest[:16]}…: compile all bundles from one model"
            )
    known = {name for one in parsed for plan in one.plans for name in (plan.id, plan.name)}
    for name in config.plans:
        if name not in known:
            raise CampaignError(f"no bundle has a plan {name}; they have {sorted(known)}")
    campaign = uuid.uuid4().hex[:16]
    master = master_from_blob(parsed[0].tensors, blob)
    store.create_campaign(
        campaign,
        config.model_dump_json(),
        {one.bundle_id: text for one, text in zip(parsed, manifests.values(), strict=True)},
        WeightsVersion(0, digest, blob, master.astype("<f8").tobytes()),
        author,
        base,
    )
    return campaign


def _check_published(one: Manifest, other: Manifest) -> None:
    """Raises `CampaignError` where a version of one bundle's weights isn't all of the other's."""
    tensors = {tensor.name for tensor in one.tensors}
    others = {tensor.name for tensor in other.tensors}
    for has, lacks, extra in ((one, other, tensors - others), (other, one, others - tensors)):
        if not extra:
            continue
        named = ", ".join(sorted(extra)[:_NAMED])
        if len(extra) > _NAMED:
            named += f" and {len(extra) - _NAMED} more"
        raise CampaignError(
            f"bundle {has.bundle_id[:16]} publishes {named}, which bundle {lacks.bundle_id[:16]} "
            "has frozen: compile both with the same plans, or name plans that only other boards "
            "have with --publish"
        )
