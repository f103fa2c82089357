"""What can be done with campaigns."""

from __future__ import annotations

from fleet.campaign.config import CampaignConfig
from fleet.campaign.files import CampaignTextError, file_schema, read_text
from fleet.coordinator.creation import new_campaign
from fleet.errors import ConflictError, ModelStoreError, UnknownCampaignError
from fleet.protocol.manifest import Manifest
from fleet.service import schema
from fleet.service.base import MOST_ON_A_PAGE, PAGE, Actor, changing
from fleet.service.campaign_schema import (
    CampaignList,
    CampaignPlan,
    CampaignReading,
    CampaignSchema,
    CampaignStanding,
    CampaignState,
    CampaignText,
    MistakeView,
    RoundFigures,
)
from fleet.service.devices import DeviceOperations
from fleet.service.planning import plan_campaign
from fleet.service.privacy import PrivacyOperations, plan_privacy
from fleet.service.privacy_schema import PrivacyPlan
from fleet.service.roles import Permission
from fleet.service.standing import campaign_row, campaign_standing, campaign_view, round_figures
from fleet.store import (
    ENDED_STATES,
    LIVE_STATES,
    CampaignRecord,
    Ledger,
    RoundGlances,
    Version,
)
from fleet.store.models import RELEASED, WITHDRAWN


class CampaignOperations(DeviceOperations, PrivacyOperations):
    """What can be done with campaigns."""

    def plan_campaign(self, actor: Actor, wanted: schema.CampaignToStart) -> CampaignPlan:
        """What a campaign would do, as things stand."""
        self._allow(actor, Permission.READ)
        version = self._base(wanted.campaign)
        preview = self.preview_devices(actor, wanted.campaign.target)
        return plan_campaign(
            wanted.campaign,
            version,
            self.models,
            self.registry,
            preview,
            self.timings.of_model(version.model),
            self.gateways.sites(),
            self.sights(wanted.campaign),
        )

    def plan_privacy(self, actor: Actor, wanted: schema.CampaignToStart) -> PrivacyPlan:
        """What a campaign would cost its devices of their privacy, as things stand."""
        self._allow(actor, Permission.READ)
        version = self._base(wanted.campaign)
        manifests = {
            bundle: wanted.campaign.manifest(Manifest.parse(text))
            for bundle, text in self.models.manifests(version.model).items()
        }
        return plan_privacy(wanted.campaign, version, manifests, self.registry, Ledger(self.store))

    @changing(Permission.OPERATE)
    def start_campaign(self, actor: Actor, wanted: schema.CampaignToStart) -> schema.CampaignView:
        """Begin a campaign; where it asks for approval, that is waited for first."""
        config = wanted.campaign
        version = self._base(config)
        campaign = new_campaign(
            self.store,
            config,
            self.models.manifests(version.model),
            self.models.blob(version.model, version.version),
            actor.who,
            version.name,
        )
        self._note(
            actor,
            "campaigns.start",
            f"campaign:{campaign}",
            None,
            config.as_file(),
        )
        return _view(self.store.campaign(campaign))

    def _base(self, config: CampaignConfig) -> Version:
        """The version that a campaign begins with."""
        if not config.model:
            names = ", ".join(one.model for one in self.models.list()) or "none yet"
            raise ModelStoreError(f"model: the campaign names none; there are: {names}")
        version = self.models.version(config.model, config.version)
        if config.kind == "rollout" and version.state != RELEASED:
            raise ConflictError(
                f"{version.name} is a {version.state} version: release it first, "
                "or evaluate it with a campaign of kind evaluate"
            )
        return version

    def list_campaigns(
        self,
        actor: Actor,
        after: str = "",
        limit: int = PAGE,
        state: CampaignState | None = None,
    ) -> CampaignList:
        """A page of campaigns, newest first."""
        self._allow(actor, Permission.READ)
        limit = min(limit, MOST_ON_A_PAGE)
        states = {"live": LIVE_STATES, "ended": ENDED_STATES}
        wanted = states.get(state, (state,)) if state else ()
        page = self.store.campaign_page(after, limit, wanted)
        newest = RoundGlances(self.store).newest_of([one.id for one in page])
        return CampaignList(
            campaigns=[campaign_row(one, newest.get(one.id)) for one in page],
            next=page[-1].id if len(page) == limit else None,
        )

    def read_campaign(self, actor: Actor, wanted: CampaignText) -> CampaignReading:
        """What a text says, and every mistake in it."""
        self._allow(actor, Permission.READ)
        try:
            return CampaignReading(campaign=read_text(wanted.text, "the text"), mistakes=[])
        except CampaignTextError as error:
            mistakes = [
                MistakeView(field=one.field, line=one.line, message=one.message)
                for one in error.mistakes
            ]
            return CampaignReading(campaign=None, mistakes=mistakes)

    def campaign_schema(self, actor: Actor) -> CampaignSchema:
        """The JSON Schema of a campaign's file."""
        self._allow(actor, Permission.READ)
        return CampaignSchema(json_schema=file_schema())

    def standing(self, actor: Actor, campaign: str) -> CampaignStanding:
        """A campaign as it stands, of bounded size."""
        self._allow(actor, Permission.READ)
        config = CampaignConfig.parse(self.store.campaign(campaign).config)
        return campaign_standing(self.store, campaign, self.sights(config))

    def figures(self, actor: Actor, campaign: str, number: int) -> RoundFigures:
        """A round in figures."""
        self._allow(actor, Permission.READ)
        config = CampaignConfig.parse(self.store.campaign(campaign).config)
        found = RoundGlances(self.store).one(campaign, number)
        if found is None:
            raise UnknownCampaignError(f"campaign {campaign} has no round {number}")
        blob_bytes = self.store.blob_bytes(campaign)
        return round_figures(found, config, blob_bytes)

    def campaign(self, actor: Actor, campaign: str) -> schema.CampaignDetail:
        """A campaign, whole."""
        self._allow(actor, Permission.READ)
        record = self.store.campaign(campaign)
        config = CampaignConfig.parse(record.config)
        members = self.stages.members(campaign)
        judged = self.stages.judged(campaign)
        return schema.CampaignDetail(
            **_view(record).model_dump(),
            config=config,
            who_sees=self.sights(config),
            stages=[
                schema.StageView(
                    stage=stage.name,
                    number=number,
                    devices=sum(one.stage <= number for one in members.values()),
                    outcome=judged[number].outcome if number in judged else None,
                    judged=judged[number].judged if number in judged else None,
                    verdicts=[
                        schema.VerdictView.model_validate(one)
                        for one in (judged[number].verdicts if number in judged else ())
                    ],
                )
                for number, stage in enumerate(config.stages)
            ],
            rounds=[
                schema.RoundView(
                    round=one.number,
                    kind=one.kind,
                    state=one.state,
                    asked=one.asked,
                    wanted=one.wanted,
                    accepted=one.accepted,
                )
                for one in self.store.round_summaries(campaign)
            ],
            quarantined=self.store.quarantined(campaign),
            decisions={what: one.who for what, one in self.stages.decisions(campaign).items()},
            failed_devices={
                name: one.reason for name, one in sorted(members.items()) if one.failures
            },
        )

    def reports(self, actor: Actor, campaign: str, number: int) -> schema.Reports:
        """What devices measured in a round."""
        self._allow(actor, Permission.READ)
        return schema.Reports(
            round=number,
            result=self.store.round(campaign, number).result,
            reports=list(self.store.reports(campaign, number)),
        )

    @changing(Permission.READ)
    def act(
        self, actor: Actor, campaign: str, action: str, seen: schema.Seen | None = None
    ) -> schema.CampaignView:
        """Pause, resume, stop, roll back, approve; the same again changes nothing.

        Raises `ConflictError` where the campaign isn't any more as it was `seen`.
        """
        self._allow(actor, Permission.APPROVE if action == "approve" else Permission.OPERATE)
        with self.store.writing() as connection:
            before = self.store.locked(connection, campaign)
        if seen is not None and seen != schema.Seen(
            state=before.state, waiting=before.waiting, wish=before.wish
        ):
            raise ConflictError(
                f"campaign {campaign} has gone on since you looked: it is {before.state} now"
                f"{f', waiting for {before.waiting}' if before.waiting else ''}; nothing was done, "
                "look again"
            )
        if action == "approve":
            if not before.waiting:
                raise ConflictError(f"campaign {campaign} waits for nobody's approval")
            self.stages.decide(campaign, before.waiting, actor.who)
        elif action == "roll-back":
            self._roll_back(before)
        else:
            self._wish(before, action)
        after = self.store.campaign(campaign)
        self._note(
            actor,
            f"campaigns.{action}",
            f"campaign:{campaign}",
            {"state": before.state, "wish": before.wish, "waiting": before.waiting},
            {"state": after.state, "wish": after.wish},
        )
        return _view(after)

    def _roll_back(self, record: CampaignRecord) -> None:
        if record.state == "rolling-back":
            return
        if record.state in ENDED_STATES:
            # Asked for once more for devices that were away, it takes no model back a second time.
            self.store.reopen(record.id)
            if record.made and record.state != "rolled-back":
                model, _, number = record.made.rpartition(":")
                self.models.set_state(model, int(number), WITHDRAWN)
        else:
            self.store.ask(record.id, "roll-back")

    def _wish(self, record: CampaignRecord, action: str) -> None:
        if record.state in ENDED_STATES:
            if action == "stop":
                return  # it has ended: what was wanted is so
            raise ConflictError(f"campaign {record.id} has ended ({record.state})")
        if action == "resume" and record.wish not in ("", "pause"):
            raise ConflictError(f"campaign {record.id} is being ended ({record.wish})")
        if action == "pause" and record.wish in ("stop", "roll-back"):
            raise ConflictError(f"campaign {record.id} is being ended ({record.wish})")
        self.store.ask(record.id, {"pause": "pause", "resume": "", "stop": "stop"}[action])


def _view(one: CampaignRecord) -> schema.CampaignView:
    return campaign_view(one, CampaignConfig.parse(one.config))
