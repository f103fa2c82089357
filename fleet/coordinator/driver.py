"""Runs a stored campaign over whatever carries messages to the gateways.

The driver is disposable: all it knows is in the store, so that a new one goes on where a
killed one was. It owns no socket and no Flower; `Transport` and `Clock` are its only seams.
"""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence

from fleet.campaign import (
    CampaignConfig,
    Members,
    RoundKind,
    RoundOutcome,
    RoundPlan,
    Step,
    is_open,
    schedule,
)
from fleet.campaign.config import Stage
from fleet.campaign.decisions import Decision
from fleet.campaign.gates import Outcome, Verdict
from fleet.campaign.sets import Unmasked
from fleet.campaign.stages import together
from fleet.clock import Clock, SystemClock
from fleet.coordinator.blobs import Blobs
from fleet.coordinator.closing import check_for_empty_rounds, close_round
from fleet.coordinator.gate_keeper import GateKeeper, decision_about
from fleet.coordinator.key_holders import KeyHolders
from fleet.coordinator.listener import Listener
from fleet.coordinator.membership import Membership
from fleet.coordinator.open_training import OpenTraining
from fleet.coordinator.pace import Pace
from fleet.coordinator.private_rounds import PrivateRounds
from fleet.coordinator.rolling_back import RollingBack, RoundSteps
from fleet.coordinator.round_planner import RoundPlanner
from fleet.coordinator.round_runner import Context, RoundRunner
from fleet.coordinator.traces import CampaignTraces
from fleet.coordinator.transport import Transport
from fleet.coordinator.unmasking import Unmasking
from fleet.errors import (
    AggregationError,
    BudgetSpentError,
    CampaignError,
    LeasedError,
    ModelStoreError,
)
from fleet.protocol.manifest import Manifest
from fleet.store import (
    ENDED_STATES,
    Events,
    Models,
    Registry,
    RoundSummary,
    SqlStore,
    Stages,
    SupersededError,
    WeightsVersion,
)
from fleet.store.models import CANDIDATE, RELEASED
from fleet.tracing import Traces

logger = logging.getLogger(__name__)


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
        traces: Traces | None = None,
        protection: KeyHolders | None = None,
    ) -> None:
        """Nothing is claimed or sent before `run`; `driver` is the name to claim under.

        With a `registry` its devices are those that can be meant; without, whoever is at a gateway.
        `protection` has what tasks are signed with, and who can unmask.
        """
        self._store = store
        self._stages = Stages(store)
        self._models = Models(store)
        self._blobs = Blobs(store, campaign)
        self._campaign = campaign
        self._transport = transport
        self._pace = pace or Pace()
        self._driver = driver or uuid.uuid4().hex
        self._clock = clock or SystemClock()
        self._traces = CampaignTraces(traces, campaign, store, self._clock)
        self._holders = protection or KeyHolders()
        keys = self._holders.keys
        self._listener = Listener(store, campaign, self._driver, transport, self._clock, keys)
        self._stop_checked = float("-inf")
        self._rolls_back = False
        self._rounds: dict[int, RoundSummary] = {}
        self._revision = 0
        self._record = store.campaign(campaign)
        self._config = CampaignConfig.parse(self._record.config)
        self._manifests = {
            bundle: self._config.manifest(Manifest.parse(text, f"manifest of bundle {bundle[:16]}"))
            for bundle, text in store.manifests(campaign).items()
        }
        self._gates = GateKeeper(store, campaign, self._config, self._manifests, registry)
        private = self._private = PrivateRounds(store, campaign, self._config, self._manifests)
        self._membership = Membership(store, campaign, self._config, registry, self._clock, private)
        context = Context(
            store,
            campaign,
            self._driver,
            self._config,
            self._manifests,
            transport,
            self._listener,
            self._clock,
            self._pace,
            self._traces,
            keys,
        )
        self._runner = RoundRunner(context)
        self.planner = RoundPlanner(
            context, self._membership, private, self._blobs, self._holders, self._stopped
        )
        self._rolling_back = RollingBack(
            context,
            self._runner,
            self._membership,
            self._blobs,
            RoundSteps(
                self._begun, self.planner.plan, self._begin, self._close, self._store_cancelled
            ),
            self._stopped,
            self._idle,
        )
        self._unmasking = Unmasking(
            context, self._holders.unmaskers, self._stopped, self._idle, self._set_state
        )
        self._open_training = OpenTraining(
            context,
            self._runner,
            self._membership,
            self._blobs,
            self._begin_beside,
            self._stopped,
        )

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
            about = {"campaign": self._campaign}
            logger.error("campaign %s failed: %s", self._campaign, error, extra=about)
            self._cancel_rounds()
            self._end("failed", str(error))
        return self._store.campaign(self._campaign).state

    def _end(self, state: str, reason: str) -> None:
        self._store.end_campaign(self._campaign, self._driver, state, reason)
        self._tell("state", state=state, reason=reason, waiting="")

    def _run_steps(self) -> None:
        config = self._config
        if config.approval:
            self._wait_for_decision(Decision("begin", 0), "approval of the campaign")
        begun: set[int] = set()
        for step in schedule(config):
            stage = config.stages[step.stage]
            if step.stage not in begun:
                begun.add(step.stage)
                if stage.approval and not (config.approval and step.stage == 0):
                    self._wait_for_decision(
                        Decision("begin", step.stage), f"approval of stage {stage.name}"
                    )
            if step.kind is RoundKind.RELEASE and not self._gates.may_release(step, self._begun()):
                continue
            there = self._begun()
            if self._private.is_over(step, there) or not self._gates.may_personalize(step, there):
                continue
            if step.kind is RoundKind.SCORE_AGAIN:
                if step.number - 1 not in self._begun():
                    continue  # nothing was released
                self._soak(step)
            try:
                has_run = self._run_round(step)
            except BudgetSpentError as error:
                self._private.end_training(step, error)
                continue
            if not has_run:
                self._obey()
                raise _EndedError("cancelled", "stopped by the operator")
            if not is_open(config, step.kind):
                self._judge(step)
        self._obey()
        self._end_well()

    def _end_well(self) -> None:
        """All is done: what was trained and released is a version of the model from now on."""
        record, config = self._record, self._config
        if config.trains and record.base:
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
        self._end("finished", self._private.cut_short(self._begun()))

    # Gates

    def _begun(self) -> dict[int, RoundSummary]:
        """The rounds that there are; of the store's only what has changed is read."""
        for one in self._store.round_summaries(self._campaign, self._revision):
            self._rounds[one.number] = one
            self._revision = max(self._revision, one.revision)
        return self._rounds

    def _judge(self, step: Step) -> None:
        """What a round means for its stage; raises where the campaign doesn't go on."""
        stage = self._config.stages[step.stage]
        if not stage.gates or step.number < max(self._begun()):
            return  # the campaign has gone on since
        verdicts = self._gates.judge(step)
        outcome = together(verdicts)
        if outcome is Outcome.FAIL:
            self._on_failure(step, stage, verdicts)
        elif outcome is Outcome.TOO_LITTLE_EVIDENCE:
            why = "; ".join(one.reason for one in verdicts if one.outcome is outcome)
            reason = f"stage {stage.name}: too little evidence: {why}"
            is_last = step.stage == len(self._config.stages) - 1
            if stage.on_too_little_evidence == "pause":
                self._wait_for_decision(decision_about(step), reason)
            elif stage.on_too_little_evidence == "stop" or is_last:
                raise _EndedError("undecided", reason)

    def _on_failure(self, step: Step, stage: Stage, verdicts: Sequence[Verdict]) -> None:
        why = "; ".join(one.reason for one in verdicts if one.outcome is Outcome.FAIL)
        reason = f"stage {stage.name}: a gate failed: {why}"
        if self._config.kind == "evaluate":
            raise _EndedError("failed", reason)
        if stage.on_failure == "roll-back":
            raise _RollBackError(reason)
        self._wait_for_decision(decision_about(step), reason)

    def _tell(self, kind: str, **data: object) -> None:
        """Something that operators and their programs want to hear of."""
        Events(self._store).add(kind, self._campaign, data)

    # Waiting for people and hours

    def _obey(self, *, pauses: bool = True) -> None:
        """Do what an operator has asked for; a pause lasts until it is taken back.

        Where it waits anyway (not `pauses`) a pause changes nothing.
        """
        told = False
        while True:
            self._stop_checked = self._clock.monotonic()
            record = self._store.driver_lives(self._campaign, self._driver, self._clock.wall())
            if record.wish == "stop":
                raise _EndedError("cancelled", "stopped by the operator")
            if record.wish == "roll-back":
                raise _RollBackError("asked for by the operator")
            if record.wish != "pause" or not pauses:
                if pauses and (told or record.state == "paused"):
                    self._set_state("running")
                return
            if not told:
                self._set_state("paused", "paused by the operator")
                told = True
            self._idle()

    def _wait_for_decision(self, what: Decision, reason: str) -> None:
        told = False
        while what.name not in self._stages.decisions(self._campaign):
            if not told:
                self._set_state("waiting", reason, waiting=what.name)
                told = True
            self._obey(pauses=False)
            self._idle()
        if told or self._store.campaign(self._campaign).state == "waiting":
            self._set_state("running")

    def _set_state(self, state: str, reason: str = "", waiting: str = "") -> None:
        self._store.set_state(self._campaign, self._driver, state, reason, waiting)
        self._tell("state", state=state, reason=reason, waiting=waiting)

    def _idle(self) -> None:
        """Let time pass; what gateways say meanwhile is noted."""
        end = self._clock.monotonic() + self._pace.stop_check
        while self._clock.monotonic() < end:
            self._listener.receive()

    def _soak(self, step: Step) -> None:
        """Until the stage's release has been out for as long as it should."""
        soak = self._config.stages[step.stage].soak_seconds
        now = self._clock.wall()
        ended = self._store.round_times(self._campaign, step.number - 1)[1] or now
        # The clock on the wall may step: it tells only how much of it an earlier driver has waited.
        until = self._clock.monotonic() + min(soak, max(0.0, ended + soak - now))
        while self._clock.monotonic() < until:
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

    def _roll_back(self, reason: str) -> None:
        """Bring all devices back to the weights that they had before the campaign."""
        self._rolls_back = True
        self._set_state("rolling-back", reason)
        left = self._rolling_back.run()
        self._end("rolled-back", reason + left)

    def _stored_plan(self, number: int) -> RoundPlan:
        return RoundPlan.from_json(self._store.round(self._campaign, number).plan)

    def _cancel_rounds(self, but: RoundKind | None = None) -> None:
        """Let no round go on that nobody will collect, also one of a driver that was killed."""
        for one in list(self._begun().values()):
            if one.state == "running" and one.kind != but:
                plan = self._stored_plan(one.number)
                self._runner.run(plan, {}, self._stopped, cancel=True)
                self._store_cancelled(plan)

    def _store_cancelled(self, plan: RoundPlan) -> None:
        self._store.finish_round(
            self._campaign, self._driver, plan.number, "cancelled", {}, [], None
        )
        self._traces.ended(plan, {}, "cancelled")

    # Rounds

    def _run_round(self, step: Step) -> bool:
        """Run a round that hasn't ended; False where the operator stopped the campaign."""
        if is_open(self._config, step.kind):
            return self._open_training.run(step)
        number = step.number
        known = self._begun().get(number)
        state = known.state if known else None
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
            plan = self._stored_plan(number)
            about = {"campaign": self._campaign, "round": number}
            logger.info("resuming round %d", number, extra=about)
        else:
            self._wait_for_window()
            check_for_empty_rounds(
                self._store, self._campaign, self._config, self._begun().values()
            )
            if step.kind is RoundKind.TRAIN:
                keys = self._holders.sealed_for(self._config)
                if not self._unmasking.wait_until_ready(keys):
                    return False
            members = self.planner.wait_for_devices(step)
            if members is None:
                return False
            plan = self._begin(self._plan_when_free(step, base.sha256, members))
        if plan.weights != base.sha256:
            raise CampaignError(
                f"round {number} was begun with weights {plan.weights[:16]}… but the newest "
                f"version is {base.sha256[:16]}…: the store was changed by hand"
            )
        outcome = self._runner.run(plan, self._blobs.of(plan), self._stopped)
        if outcome.cancelled:
            self._store_cancelled(plan)
            return False
        unmasked = None
        if plan.masks is not None:
            unmasked = self._unmasking.run(plan, outcome)
            if unmasked is None:
                self._store_cancelled(plan)
                return False
            outcome = unmasked.outcome
        self._close(plan, outcome, base, unmasked)
        return True

    def _begin(self, plan: RoundPlan) -> RoundPlan:
        record = self._store.begin_round(
            self._campaign, self._driver, plan.number, plan.kind.value, plan.to_json()
        )
        return RoundPlan.from_json(record.plan)

    def _close(
        self,
        plan: RoundPlan,
        outcome: RoundOutcome,
        version: WeightsVersion,
        unmasked: Unmasked | None = None,
    ) -> None:
        about: dict[str, int] = {}
        with self._traces.applying({plan.number}, about):
            result = close_round(
                self._store,
                self._campaign,
                self._driver,
                self._config,
                self._manifests,
                plan,
                outcome,
                version,
                unmasked,
                self._holders.entropy,
            )
            about["changed_values"] = result.get("changed_values", 0)
        if unmasked is not None:
            counts = Counter(one.why for one in unmasked.sets if one.why)
            self._tell(
                "sets",
                round=plan.number,
                sets=len(unmasked.sets),
                counted=len(unmasked.sets) - counts.total(),
                rule=result.get("rule", ""),
                not_counted=dict(counts),
            )
        self._traces.ended(plan, result)
        self._membership.note_failures(plan, result)

    def _plan_when_free(self, step: Step, weights: str, members: Members) -> RoundPlan:
        """A round's plan; while other campaigns have all its devices, they are waited for."""
        deadline = self._clock.monotonic() + self._config.wait_for_devices_seconds
        while True:
            try:
                return self.planner.plan(step, weights, members)
            except LeasedError:
                if self._clock.monotonic() > deadline:
                    raise
            self._obey()
            self._idle()

    def _begin_beside(self, step: Step, busy: Mapping[str, str], waits: bool) -> RoundPlan | None:
        """Begin a training round with devices that open rounds leave free; None where there are
        none (which is waited for where it `waits`), or the user stops.

        `busy` are those at work, with what for.
        """
        self._obey()
        self._wait_for_window()
        check_for_empty_rounds(self._store, self._campaign, self._config, self._begun().values())
        weights = self._store.latest_weights(self._campaign).sha256
        if waits:
            members = self.planner.wait_for_devices(step)
            if members is None:
                return None
            return self._begin(self._plan_when_free(step, weights, members))
        devices = self._listener.devices()
        targets = self._membership.targets(devices)
        members = self._membership.of(step, targets, devices, self._blobs.has)
        try:
            return self._begin(self.planner.plan(step, weights, members, busy))
        except CampaignError:
            return None

    def _stopped(self) -> bool:
        now = self._clock.monotonic()
        if now - self._stop_checked < self._pace.stop_check:
            return False
        self._stop_checked = now
        record = self._store.driver_lives(self._campaign, self._driver, self._clock.wall())
        return record.wish == "stop" or (record.wish == "roll-back" and not self._rolls_back)
