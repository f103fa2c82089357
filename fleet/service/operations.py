"""What can be done with a fleet: every operation with its check of the role and its audit entry.

Nothing here knows of HTTP; the API only translates.
"""

from __future__ import annotations

import base64
import binascii
import functools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from pydantic import BaseModel

from fleet.aggregation import changed_values
from fleet.campaign.config import CampaignConfig
from fleet.coordinator.driver import new_campaign
from fleet.errors import AccessError, ConflictError, ModelStoreError, TakenNameError
from fleet.gateway.broker import new_passwords, password_hash
from fleet.protocol.manifest import Manifest
from fleet.registry import Device, Filter, NewDevice
from fleet.service import schema
from fleet.service.planning import plan_campaign
from fleet.service.roles import Permission, may
from fleet.store import (
    ENDED_STATES,
    Audit,
    CampaignRecord,
    Events,
    Gateways,
    Logins,
    Models,
    Registry,
    SqlStore,
    Stages,
    Tokens,
    Version,
    Webhooks,
)
from fleet.store.gateways import DEVICE, GATEWAY
from fleet.store.models import RELEASED, WITHDRAWN

PAGE = 100
MOST_ON_A_PAGE = 1000


@dataclass(frozen=True)
class Actor:
    """Who asks, in which role, and the reason that they give.

    `keep` is told the answer within the transaction of what was done, and may write to the store.
    """

    who: str
    role: str
    why: str = ""
    keep: Callable[[BaseModel | None], None] = lambda answer: None


_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer", bound=BaseModel | None)
_Method: TypeAlias = "Callable[Concatenate[Operations, Actor, _Arguments], _Answer]"


def _changing(
    permission: Permission,
) -> Callable[[_Method[_Arguments, _Answer]], _Method[_Arguments, _Answer]]:
    """Of an operation that changes something: who may, and all of it or nothing, its audit entry
    included."""

    def decorated(method: _Method[_Arguments, _Answer]) -> _Method[_Arguments, _Answer]:
        @functools.wraps(method)
        def whole(
            self: Operations, actor: Actor, /, *args: _Arguments.args, **options: _Arguments.kwargs
        ) -> _Answer:
            self._allow(actor, permission)
            with self.store.writing():
                answer = method(self, actor, *args, **options)
                actor.keep(answer)
            return answer

        return whole

    return decorated


class Operations:
    """The operations of a fleet over its store."""

    def __init__(self, store: SqlStore, fleet: str) -> None:
        """`fleet` is its name in topics."""
        self.store = store
        self.fleet = fleet
        self.registry = Registry(store)
        self.gateways = Gateways(store)
        self.logins = Logins(store)
        self.models = Models(store)
        self.stages = Stages(store)
        self.events = Events(store)
        self.tokens = Tokens(store)
        self.audit = Audit(store)
        self.webhooks = Webhooks(store)

    def _allow(self, actor: Actor, permission: Permission) -> None:
        if not may(actor.role, permission):
            raise AccessError(f"{actor.who} is {actor.role}, who may not {permission.value}")

    def _note(
        self, actor: Actor, action: str, object: str, before: Any = None, after: Any = None
    ) -> None:
        self.audit.add(actor.who, actor.role, action, object, before, after, actor.why)

    # Devices

    @_changing(Permission.OPERATE)
    def add_devices(self, actor: Actor, wanted: schema.DevicesToAdd) -> schema.Passwords:
        """Register devices, and let them in at their sites' brokers."""
        known = {one.gateway for one in self.gateways.list()}
        for one in wanted.devices:
            if one.device in known:
                raise TakenNameError(f"{one.device} is a gateway's name; choose another")
        passwords = new_passwords(one.device for one in wanted.devices)
        passwords |= {one.device: one.password for one in wanted.devices if one.password}
        self.registry.add(
            NewDevice(device=one.device, site=one.site, labels=one.labels) for one in wanted.devices
        )
        sites: dict[str, dict[str, str]] = {}
        for one in wanted.devices:
            sites.setdefault(one.site, {})[one.device] = password_hash(passwords[one.device])
        for site, hashes in sites.items():
            self.logins.grant_all(hashes, site, DEVICE)
        for one in wanted.devices:
            after = {"site": one.site, "labels": dict(one.labels)}
            self._note(actor, "devices.add", f"device:{one.device}", None, after)
        return schema.Passwords(
            devices=[
                schema.Password(device=name, password=passwords[name])
                for name in (one.device for one in wanted.devices)
            ]
        )

    def list_devices(
        self, actor: Actor, of: str = "", after: str = "", limit: int = PAGE
    ) -> schema.DevicePage:
        """A page of devices that match a filter."""
        self._allow(actor, Permission.READ)
        limit = min(limit, MOST_ON_A_PAGE)
        page = self.registry.page(Filter.parse(of), after, limit)
        last = page[-1].device if len(page) == limit else None
        return schema.DevicePage(devices=self._views(page), next=last)

    def preview_devices(self, actor: Actor, of: str) -> schema.DevicePreview:
        """Which devices a filter means."""
        self._allow(actor, Permission.READ)
        preview = self.registry.preview(Filter.parse(of))
        return schema.DevicePreview(
            count=preview.count, sample=self._views(preview.sample), reasons=preview.reasons
        )

    def device(self, actor: Actor, name: str) -> schema.DeviceView:
        """One device."""
        self._allow(actor, Permission.READ)
        return self._views([self.registry.get(name)])[0]

    def device_history(self, actor: Actor, name: str) -> schema.History:
        """What a device has reported."""
        self._allow(actor, Permission.READ)
        self.registry.get(name)
        return schema.History(
            history=[schema.HistoryEntry.model_validate(one) for one in self.registry.history(name)]
        )

    @_changing(Permission.OPERATE)
    def label_device(
        self, actor: Actor, name: str, change: schema.LabelChange
    ) -> schema.DeviceView:
        """Set and take away labels. Nothing begins by that alone: campaigns look when a round
        does."""
        before = self.registry.get(name)
        after = self.registry.label(name, change.labels)
        self._note(
            actor, "devices.label", f"device:{name}", dict(before.labels), dict(after.labels)
        )
        return self._views([after])[0]

    @_changing(Permission.OPERATE)
    def retire_device(self, actor: Actor, name: str) -> schema.DeviceView:
        """Take a device out of everything, and its broker's login away."""
        before = self.registry.get(name)
        self.logins.revoke(name)
        self.registry.retire(name)
        self._note(
            actor,
            "devices.retire",
            f"device:{name}",
            {"retired": before.retired},
            {"retired": True},
        )
        return self._views([self.registry.get(name)])[0]

    @_changing(Permission.OPERATE)
    def rotate_device(self, actor: Actor, name: str) -> schema.Password:
        """A new password; the old one is no good from now on."""
        device = self.registry.get(name)
        if device.retired:
            raise ConflictError(f"device {name} is retired: it has no password")
        password = new_passwords([name])[name]
        self.logins.grant(name, device.site, DEVICE, password_hash(password))
        self._note(actor, "devices.rotate", f"device:{name}")
        return schema.Password(device=name, password=password)

    @_changing(Permission.ADMINISTER)
    def erase_device(self, actor: Actor, name: str) -> None:
        """Forget a device and what it reported."""
        device = self.registry.get(name)
        if not device.retired:
            raise ConflictError(f"device {name} is in use; retire it first, then erase it")
        self.registry.erase(name)
        self._note(actor, "devices.erase", f"device:{name}", {"site": device.site}, None)

    def _views(self, devices: Any) -> list[schema.DeviceView]:
        now = self.store.clock.wall()
        names: dict[str, str | None] = {}
        views = []
        for one in devices:
            views.append(self._view(one, now, names))
        return views

    def _view(self, one: Device, now: float, names: dict[str, str | None]) -> schema.DeviceView:
        values: dict[str, Any] = {
            "device": one.device,
            "site": one.site,
            "labels": dict(one.labels),
            "added": one.added,
            "retired": one.retired,
        }
        if one.observed is not None:
            values |= one.observed.model_dump()
            values["seen_age_seconds"] = max(0.0, now - one.observed.last_seen)
            digest = one.observed.current
            if digest not in names:
                found = self.models.named(digest)
                names[digest] = found.name if found else None
            values["version"] = names[digest]
        return schema.DeviceView.model_validate(values)

    # Gateways

    @_changing(Permission.ADMINISTER)
    def add_gateway(self, actor: Actor, wanted: schema.GatewayToAdd) -> schema.Password:
        """Register a gateway, and let it in at its site's broker."""
        if self.registry.labels([wanted.gateway]):
            raise TakenNameError(f"{wanted.gateway} is a device's name; choose another")
        password = new_passwords([wanted.gateway])[wanted.gateway]
        self.gateways.add(wanted.gateway, wanted.site)
        self.logins.grant(wanted.gateway, wanted.site, GATEWAY, password_hash(password))
        self._note(actor, "gateways.add", f"gateway:{wanted.gateway}", None, {"site": wanted.site})
        return schema.Password(device=wanted.gateway, password=password)

    def list_gateways(self, actor: Actor) -> schema.GatewayList:
        """All gateways."""
        self._allow(actor, Permission.READ)
        return schema.GatewayList(
            gateways=[
                schema.GatewayView(
                    gateway=one.gateway,
                    site=one.site,
                    added=one.added,
                    retired=one.retired,
                    last_seen=one.last_seen,
                    problem=one.problem,
                )
                for one in self.gateways.list()
            ]
        )

    # Models

    @_changing(Permission.OPERATE)
    def import_bundle(self, actor: Actor, wanted: schema.BundleToImport) -> schema.VersionView:
        """Add a bundle, with its weights as a version where they are new."""
        version = self.models.import_bundle(
            wanted.model, wanted.manifest, _decoded(wanted.weights), actor.who
        )
        self._note(
            actor, "models.import", f"model:{wanted.model}", None, {"version": version.version}
        )
        return _version_view(version)

    def list_models(self, actor: Actor) -> schema.ModelList:
        """All models with their versions."""
        self._allow(actor, Permission.READ)
        return schema.ModelList(models=[self._model(one.model) for one in self.models.list()])

    def model(self, actor: Actor, name: str) -> schema.ModelView:
        """One model."""
        self._allow(actor, Permission.READ)
        return self._model(name)

    def _model(self, name: str) -> schema.ModelView:
        record = self.models.get(name)
        return schema.ModelView(
            model=record.model,
            digest=record.digest,
            created=record.created,
            bundles=[
                schema.BundleView(bundle=one.bundle, board=one.board, created=one.created)
                for one in self.models.bundles(name)
            ],
            versions=[_version_view(one) for one in self.models.versions(name)],
        )

    @_changing(Permission.OPERATE)
    def add_version(
        self, actor: Actor, model: str, wanted: schema.VersionToAdd
    ) -> schema.VersionView:
        """Weights that were made elsewhere, as a candidate."""
        if wanted.parent is not None:
            self.models.version(model, wanted.parent)
        version = self.models.add_version(model, _decoded(wanted.weights), wanted.parent, actor.who)
        self._note(
            actor, "models.add-version", f"model:{model}", None, {"version": version.version}
        )
        return _version_view(version)

    def version_blob(self, actor: Actor, model: str, number: int) -> bytes:
        """A version's weights, as devices get them."""
        self._allow(actor, Permission.READ)
        return self.models.blob(model, number)

    @_changing(Permission.APPROVE)
    def release(self, actor: Actor, model: str, number: int) -> schema.VersionView:
        """Let campaigns begin with a version, and bring it to devices."""
        before = self.models.version(model, number)
        after = self.models.set_state(model, number, RELEASED)
        self._note(actor, "models.release", f"version:{after.name}", before.state, after.state)
        return _version_view(after)

    @_changing(Permission.APPROVE)
    def withdraw_newest(self, actor: Actor, model: str) -> schema.VersionView:
        """Take the newest released version back; returns the one that is newest then."""
        released = [one for one in self.models.versions(model) if one.state == RELEASED]
        if len(released) < 2:
            raise ConflictError(
                f"model {model} has {len(released)} released versions: there is none to go back to"
            )
        newest = released[-1]
        self.models.set_state(model, newest.version, WITHDRAWN)
        self._note(actor, "models.rollback", f"version:{newest.name}", newest.state, WITHDRAWN)
        return _version_view(self.models.version(model))

    def compare(self, actor: Actor, model: str, first: int, second: int) -> schema.Comparison:
        """Two versions: how they differ, and what the same devices scored with them."""
        self._allow(actor, Permission.READ)
        blobs = [self.models.blob(model, number) for number in (first, second)]
        layout = Manifest.parse(self.models.bundles(model)[0].manifest).tensors
        scores = [
            self.registry.scores_with(self.models.version(model, number).sha256)
            for number in (first, second)
        ]
        both = sorted(scores[0].keys() & scores[1].keys())
        means = [statistics.fmean(of[name] for name in both) if both else None for of in scores]
        return schema.Comparison(
            model=model,
            first=first,
            second=second,
            changed_values=changed_values(blobs[0], blobs[1], layout),
            values=sum(one.size for one in layout),
            devices=len(both),
            mean_accuracy_first=means[0],
            mean_accuracy_second=means[1],
        )

    # Campaigns

    def plan_campaign(self, actor: Actor, wanted: schema.CampaignToStart) -> schema.CampaignPlan:
        """What a campaign would do, as things stand."""
        self._allow(actor, Permission.READ)
        version = self._base(wanted.campaign)
        preview = self.preview_devices(actor, _target(wanted.campaign))
        return plan_campaign(wanted.campaign, version, self.models, self.registry, preview)

    @_changing(Permission.OPERATE)
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
        return _campaign_view(self.store.campaign(campaign))

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
        self, actor: Actor, after: str = "", limit: int = PAGE
    ) -> schema.CampaignList:
        """A page of campaigns, newest first."""
        self._allow(actor, Permission.READ)
        limit = min(limit, MOST_ON_A_PAGE)
        page = self.store.campaign_page(after, limit)
        return schema.CampaignList(
            campaigns=[_campaign_view(one) for one in page],
            next=page[-1].id if len(page) == limit else None,
        )

    def campaign(self, actor: Actor, campaign: str) -> schema.CampaignDetail:
        """A campaign, whole."""
        self._allow(actor, Permission.READ)
        record = self.store.campaign(campaign)
        config = CampaignConfig.parse(record.config)
        members = self.stages.members(campaign)
        judged = self.stages.judged(campaign)
        return schema.CampaignDetail(
            **_campaign_view(record).model_dump(),
            config=config,
            stages=[
                schema.StageView(
                    stage=stage.name,
                    number=number,
                    devices=sum(one.stage <= number for one in members.values()),
                    outcome=judged[number].outcome if number in judged else None,
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

    @_changing(Permission.READ)
    def act(self, actor: Actor, campaign: str, action: str) -> schema.CampaignView:
        """Pause, resume, stop, roll back, approve; the same again changes nothing."""
        self._allow(actor, Permission.APPROVE if action == "approve" else Permission.OPERATE)
        before = self.store.campaign(campaign)
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
        return _campaign_view(after)

    def _roll_back(self, record: CampaignRecord) -> None:
        if record.state in ("rolled-back", "rolling-back"):
            return
        if record.state in ENDED_STATES:
            self.store.reopen(record.id)
            if record.made:
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

    # Accounts

    @_changing(Permission.ADMINISTER)
    def issue_token(self, actor: Actor, wanted: schema.TokenToIssue) -> schema.NewToken:
        """A token for somebody."""
        token, secret = self.tokens.issue(wanted.who, wanted.role, wanted.days * 86_400)
        self._note(
            actor,
            "tokens.issue",
            f"token:{token.token}",
            None,
            {"who": wanted.who, "role": wanted.role},
        )
        return schema.NewToken(**_token(token), secret=secret)

    def list_tokens(self, actor: Actor) -> schema.TokenList:
        """All tokens, without their secrets."""
        self._allow(actor, Permission.ADMINISTER)
        return schema.TokenList(
            tokens=[schema.TokenView(**_token(one)) for one in self.tokens.list()]
        )

    @_changing(Permission.ADMINISTER)
    def revoke_token(self, actor: Actor, token: str) -> None:
        """It is no good from now on."""
        self.tokens.revoke(token)
        self._note(actor, "tokens.revoke", f"token:{token}", {"revoked": False}, {"revoked": True})

    def audit_page(
        self, actor: Actor, after: int = 0, limit: int = PAGE, object: str = ""
    ) -> schema.AuditPage:
        """Who did what, oldest first."""
        self._allow(actor, Permission.READ)
        limit = min(limit, MOST_ON_A_PAGE)
        page = self.audit.page(after, limit, object)
        return schema.AuditPage(
            audit=[
                schema.AuditView(
                    number=one.number,
                    at=one.at,
                    who=one.who,
                    role=one.role,
                    action=one.action,
                    object=one.object,
                    before=one.before,
                    after=one.after,
                    why=one.why,
                )
                for one in page
            ],
            next=page[-1].number if len(page) == limit else None,
        )

    @_changing(Permission.ADMINISTER)
    def add_webhook(self, actor: Actor, wanted: schema.WebhookToAdd) -> schema.NewWebhook:
        """Send events of these kinds to an address."""
        webhook, secret = self.webhooks.add(wanted.url, wanted.events)
        self._note(
            actor,
            "webhooks.add",
            f"webhook:{webhook.webhook}",
            None,
            {"url": wanted.url, "events": wanted.events},
        )
        return schema.NewWebhook(**_webhook(webhook), secret=secret)

    def list_webhooks(self, actor: Actor) -> schema.WebhookList:
        """All webhooks, without their secrets."""
        self._allow(actor, Permission.ADMINISTER)
        return schema.WebhookList(
            webhooks=[schema.WebhookView(**_webhook(one)) for one in self.webhooks.list()]
        )

    @_changing(Permission.ADMINISTER)
    def remove_webhook(self, actor: Actor, webhook: str) -> None:
        """Send nothing there any more."""
        self.webhooks.remove(webhook)
        self._note(actor, "webhooks.remove", f"webhook:{webhook}")


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ModelStoreError("weights: not base64") from None


def _target(config: CampaignConfig) -> str:
    return config.target


def _version_view(one: Version) -> schema.VersionView:
    return schema.VersionView(
        model=one.model,
        version=one.version,
        sha256=one.sha256,
        parent=one.parent,
        source=one.source,
        state=one.state,
        created=one.created,
    )


def _campaign_view(one: CampaignRecord) -> schema.CampaignView:
    config = CampaignConfig.parse(one.config)
    return schema.CampaignView(
        campaign=one.id,
        name=config.name,
        kind=config.kind,
        state=one.state,
        reason=one.reason,
        waiting=one.waiting,
        wish=one.wish,
        author=one.author,
        created=one.created,
        base=one.base,
        made=one.made,
    )


def _token(one: Any) -> Mapping[str, Any]:
    names = ("token", "who", "role", "created", "expires", "revoked")
    return {name: getattr(one, name) for name in names}


def _webhook(one: Any) -> Mapping[str, Any]:
    values = {name: getattr(one, name) for name in ("webhook", "url", "failures", "problem")}
    return {**values, "events": list(one.events)}
