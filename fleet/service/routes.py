"""The paths of the API: each is one of `Operations`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from fleet.service import schema
from fleet.service.base import MOST_ON_A_PAGE
from fleet.service.campaign_schema import (
    CampaignList,
    CampaignPlan,
    CampaignReading,
    CampaignSchema,
    CampaignStanding,
    CampaignState,
    CampaignText,
    RoundFigures,
)
from fleet.service.privacy_schema import PrivacyPage, PrivacyPlan
from fleet.service.requests import (
    MOST_BODY_BYTES,
    Asking,
    CampaignId,
    DeviceName,
    FilterText,
    IdempotentRoute,
    Limit,
    Number,
    Ops,
    TokenError,
    still_asking,
)

EVENT_LOOK_SECONDS = 0.5

_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.Failure, "description": what}
    for status, what in {
        401: "No token, or none that is good",
        403: "The token's role may not do this",
        404: "Nothing of this name is known",
        409: "It can't be done as things stand",
        411: "A body without its length",
        413: f"A body of more than {MOST_BODY_BYTES} bytes",
        422: "The request makes no sense",
        429: "Too many requests; Retry-After has seconds",
        503: "The database is away for a moment",
    }.items()
}

router = APIRouter(prefix="/v1", responses=_FAILURES, route_class=IdempotentRoute)


@router.get("/whoami", tags=["accounts"])
def whoami(request: Request, actor: Asking, ops: Ops) -> schema.WhoAmI:
    """Whose token it is, and which fleet's service this is."""
    return schema.WhoAmI(
        who=actor.who, role=actor.role, fleet=ops.fleet, version=request.app.version
    )


# Devices


@router.post("/devices", status_code=201, tags=["devices"])
def add_devices(actor: Asking, ops: Ops, body: schema.DevicesToAdd) -> schema.Passwords:
    """Register devices, all or none; their passwords are told once."""
    return ops.add_devices(actor, body)


@router.get("/devices", tags=["devices"])
def list_devices(
    actor: Asking,
    ops: Ops,
    filter: FilterText = "",
    after: Annotated[str, Query(pattern="^[A-Za-z0-9_-]{0,32}$")] = "",
    limit: Limit = 100,
) -> schema.DevicePage:
    """A page of the devices that match a filter, in order of their names."""
    return ops.list_devices(actor, filter, after, limit)


@router.get("/devices-export", tags=["devices"], response_class=StreamingResponse)
def export_devices(actor: Asking, ops: Ops, filter: FilterText = "") -> StreamingResponse:
    """All devices that match, a JSON object a line; streamed."""

    def lines() -> Any:
        after: str | None = ""
        while after is not None:
            page = ops.list_devices(actor, filter, after, MOST_ON_A_PAGE)
            yield "".join(one.model_dump_json() + "\n" for one in page.devices)
            after = page.next

    first = ops.list_devices(actor, filter, "", 1)  # what is wrong is said before anything is sent
    del first
    return StreamingResponse(lines(), media_type="application/x-ndjson")


@router.get("/devices-preview", tags=["devices"])
def preview_devices(actor: Asking, ops: Ops, filter: FilterText = "") -> schema.DevicePreview:
    """How many devices a filter means, some of them, and why it doesn't mean the others."""
    return ops.preview_devices(actor, filter)


@router.get("/devices-summary", tags=["devices"])
def summarize_devices(actor: Asking, ops: Ops, filter: FilterText = "") -> schema.DeviceSummary:
    """The devices that a filter means, counted by state, site, board and version."""
    return ops.summarize_devices(actor, filter)


@router.get("/devices/{device}", tags=["devices"])
def get_device(actor: Asking, ops: Ops, device: DeviceName) -> schema.DeviceView:
    """One device."""
    return ops.device(actor, device)


@router.get("/devices/{device}/history", tags=["devices"])
def device_history(actor: Asking, ops: Ops, device: DeviceName) -> schema.History:
    """What a device has reported, newest first."""
    return ops.device_history(actor, device)


@router.get("/devices/{device}/record", tags=["devices"])
def device_record(actor: Asking, ops: Ops, device: DeviceName) -> schema.DeviceRecord:
    """What a device has done, what that took of it, and where it failed."""
    return ops.device_record(actor, device)


@router.patch("/devices/{device}/labels", tags=["devices"])
def label_device(
    actor: Asking, ops: Ops, device: DeviceName, body: schema.LabelChange
) -> schema.DeviceView:
    """Set labels, and take away those that are null."""
    return ops.label_device(actor, device, body)


@router.post("/devices/{device}/retire", tags=["devices"])
def retire_device(actor: Asking, ops: Ops, device: DeviceName) -> schema.DeviceView:
    """It takes part in nothing any more, and its broker lets it in no more."""
    return ops.retire_device(actor, device)


@router.post("/devices/{device}/rotate", tags=["devices"])
def rotate_device(actor: Asking, ops: Ops, device: DeviceName) -> schema.Password:
    """A new password, told once; the old one is no good from now on."""
    return ops.rotate_device(actor, device)


@router.delete("/devices/{device}", status_code=204, tags=["devices"])
def erase_device(actor: Asking, ops: Ops, device: DeviceName) -> Response:
    """Forget a retired device and all that it reported."""
    ops.erase_device(actor, device)
    return Response(status_code=204)


# Gateways


@router.get("/gateways", tags=["gateways"])
def list_gateways(actor: Asking, ops: Ops) -> schema.GatewayList:
    """All gateways."""
    return ops.list_gateways(actor)


@router.post("/gateways", status_code=201, tags=["gateways"])
def add_gateway(actor: Asking, ops: Ops, body: schema.GatewayToAdd) -> schema.Password:
    """Register a gateway, or bring back a retired one; its password at the site's broker is told
    once."""
    return ops.add_gateway(actor, body)


@router.post("/gateways/{gateway}/retire", tags=["gateways"])
def retire_gateway(actor: Asking, ops: Ops, gateway: DeviceName) -> schema.GatewayView:
    """It is gone: no campaign uses it or waits for it, and its broker lets it in no more."""
    return ops.retire_gateway(actor, gateway)


# Models


@router.get("/models", tags=["models"])
def list_models(actor: Asking, ops: Ops) -> schema.ModelList:
    """All models with their versions."""
    return ops.list_models(actor)


@router.post("/models", status_code=201, tags=["models"])
def import_bundle(actor: Asking, ops: Ops, body: schema.BundleToImport) -> schema.VersionView:
    """Add a bundle, with its weights as a version where they are new."""
    return ops.import_bundle(actor, body)


@router.get("/models/{model}", tags=["models"])
def get_model(actor: Asking, ops: Ops, model: DeviceName) -> schema.ModelView:
    """One model."""
    return ops.model(actor, model)


@router.post("/models/{model}/versions", status_code=201, tags=["models"])
def add_version(
    actor: Asking, ops: Ops, model: DeviceName, body: schema.VersionToAdd
) -> schema.VersionView:
    """Weights that were made elsewhere, as a candidate."""
    return ops.add_version(actor, model, body)


@router.get("/models/{model}/versions/{version}/weights", tags=["models"], response_class=Response)
def version_weights(actor: Asking, ops: Ops, model: DeviceName, version: Number) -> Response:
    """A version's weights, as devices get them."""
    blob = ops.version_blob(actor, model, version)
    return Response(blob, media_type="application/octet-stream")


@router.post("/models/{model}/versions/{version}/release", tags=["models"])
def release_version(
    actor: Asking, ops: Ops, model: DeviceName, version: Number
) -> schema.VersionView:
    """Campaigns begin with it from now on, and may bring it to devices."""
    return ops.release(actor, model, version)


@router.post("/models/{model}/rollback", tags=["models"])
def rollback_model(
    actor: Asking, ops: Ops, model: DeviceName, body: schema.RollbackOfModel | None = None
) -> schema.VersionView:
    """Withdraw the newest released version; the answer is the one that is newest then."""
    return ops.withdraw_newest(actor, model, body.newest if body else None)


@router.get("/models/{model}/compare", tags=["models"])
def compare_versions(
    actor: Asking,
    ops: Ops,
    model: DeviceName,
    first: Annotated[int, Query(ge=1, lt=1 << 31)],
    second: Annotated[int, Query(ge=1, lt=1 << 31)],
) -> schema.Comparison:
    """Two versions: how they differ, and what the same devices scored with them."""
    return ops.compare(actor, model, first, second)


# Campaigns


@router.get("/campaigns", tags=["campaigns"])
def list_campaigns(
    actor: Asking,
    ops: Ops,
    after: Annotated[str, Query(pattern="^([0-9a-f]{16})?$")] = "",
    limit: Limit = 100,
    state: CampaignState | None = None,
) -> CampaignList:
    """A page of campaigns, newest first; in one state, or `live` or `ended` ones, where given."""
    return ops.list_campaigns(actor, after, limit, state)


@router.post("/campaigns", status_code=201, tags=["campaigns"])
def start_campaign(actor: Asking, ops: Ops, body: schema.CampaignToStart) -> schema.CampaignView:
    """Begin a campaign."""
    return ops.start_campaign(actor, body)


@router.post("/campaigns-plan", tags=["campaigns"])
def plan_campaign(actor: Asking, ops: Ops, body: schema.CampaignToStart) -> CampaignPlan:
    """What a campaign would do, as things stand; nothing is done."""
    return ops.plan_campaign(actor, body)


@router.post("/campaigns-privacy", tags=["privacy"])
def plan_privacy(actor: Asking, ops: Ops, body: schema.CampaignToStart) -> PrivacyPlan:
    """What a campaign would cost its devices of their privacy, as things stand."""
    return ops.plan_privacy(actor, body)


@router.get("/privacy", tags=["privacy"])
def privacy_page(
    actor: Asking,
    ops: Ops,
    device: Annotated[str, Query(pattern="^[A-Za-z0-9_-]{0,32}$")] = "",
    campaign: Annotated[str, Query(pattern="^([0-9a-f]{16})?$")] = "",
    after: Annotated[str, Query(pattern="^[A-Za-z0-9_-]{0,32}$")] = "",
    limit: Limit = 100,
) -> PrivacyPage:
    """What rounds have spent of devices' privacy: of all, of one, or of those of a campaign."""
    return ops.privacy_page(actor, device, campaign, after, limit)


@router.get("/campaigns-schema", tags=["campaigns"])
def campaign_schema(actor: Asking, ops: Ops) -> CampaignSchema:
    """The JSON Schema of a campaign's file."""
    return ops.campaign_schema(actor)


@router.post("/campaigns-read", tags=["campaigns"])
def read_campaign(actor: Asking, ops: Ops, body: CampaignText) -> CampaignReading:
    """What a campaign's file says, with every mistake at its line; nothing is done."""
    return ops.read_campaign(actor, body)


@router.get("/campaigns/{campaign}", tags=["campaigns"])
def get_campaign(actor: Asking, ops: Ops, campaign: CampaignId) -> schema.CampaignDetail:
    """A campaign with its stages, gates and rounds."""
    return ops.campaign(actor, campaign)


@router.get("/campaigns/{campaign}/standing", tags=["campaigns"])
def get_standing(actor: Asking, ops: Ops, campaign: CampaignId) -> CampaignStanding:
    """How a campaign stands, of bounded size whatever the number of devices."""
    return ops.standing(actor, campaign)


@router.get("/campaigns/{campaign}/rounds/{round}/figures", tags=["campaigns"])
def get_figures(actor: Asking, ops: Ops, campaign: CampaignId, round: Number) -> RoundFigures:
    """A round in figures, of bounded size."""
    return ops.figures(actor, campaign, round)


@router.get("/campaigns/{campaign}/rounds/{round}", tags=["campaigns"])
def get_reports(actor: Asking, ops: Ops, campaign: CampaignId, round: Number) -> schema.Reports:
    """A round's result, and what devices measured in it."""
    return ops.reports(actor, campaign, round)


@router.post("/campaigns/{campaign}/actions", tags=["campaigns"])
def act_on_campaign(
    actor: Asking, ops: Ops, campaign: CampaignId, body: schema.Act
) -> schema.CampaignView:
    """Pause, resume, stop, roll back, or approve what it waits for; nothing, where it isn't as it
    was `seen` any more."""
    return ops.act(actor, campaign, body.action, body.seen)


# Accounts


@router.get("/tokens", tags=["accounts"])
def list_tokens(actor: Asking, ops: Ops) -> schema.TokenList:
    """All tokens, without their secrets."""
    return ops.list_tokens(actor)


@router.post("/tokens", status_code=201, tags=["accounts"])
def issue_token(actor: Asking, ops: Ops, body: schema.TokenToIssue) -> schema.NewToken:
    """A token for somebody; its secret is told once."""
    return ops.issue_token(actor, body)


@router.delete("/tokens/{token}", status_code=204, tags=["accounts"])
def revoke_token(
    actor: Asking, ops: Ops, token: Annotated[str, Path(pattern="^[0-9a-f]{1,32}$")]
) -> Response:
    """It is no good from now on."""
    ops.revoke_token(actor, token)
    return Response(status_code=204)


_Wanted = Annotated[str, Query(pattern="^[!-~]{0,200}$")]


@router.get("/audit", tags=["accounts"])
def audit(
    actor: Asking,
    ops: Ops,
    after: Annotated[int, Query(ge=0, lt=1 << 62)] = 0,
    limit: Limit = 100,
    object: _Wanted = "",
    who: _Wanted = "",
    action: _Wanted = "",
    newest: bool = False,
    before: Annotated[int | None, Query(ge=0, lt=1 << 62)] = None,
) -> schema.AuditPage:
    """Who did what, oldest first; of one object, such as campaign:ID, one person or one action,
    where given. With `newest` newest first, in front of the entry `before`."""
    if newest:
        return ops.newest_audit_page(actor, before, limit, object, who, action)
    return ops.audit_page(actor, after, limit, object, who, action)


@router.get("/settings", tags=["service"])
def get_settings(request: Request, actor: Asking, ops: Ops) -> schema.Settings:
    """What the service was told, as it runs."""
    return schema.Settings(
        fleet=ops.fleet, version=request.app.version, settings=dict(ops.told_settings(actor))
    )


@router.get("/webhooks", tags=["webhooks"])
def list_webhooks(actor: Asking, ops: Ops) -> schema.WebhookList:
    """All webhooks, without their secrets."""
    return ops.list_webhooks(actor)


@router.post("/webhooks", status_code=201, tags=["webhooks"])
def add_webhook(actor: Asking, ops: Ops, body: schema.WebhookToAdd) -> schema.NewWebhook:
    """Send events of these kinds to an address; the secret that signs them is told once."""
    return ops.add_webhook(actor, body)


@router.delete("/webhooks/{webhook}", status_code=204, tags=["webhooks"])
def remove_webhook(
    actor: Asking, ops: Ops, webhook: Annotated[str, Path(pattern="^[0-9a-f]{1,32}$")]
) -> Response:
    """Send nothing there any more."""
    ops.remove_webhook(actor, webhook)
    return Response(status_code=204)


@router.get("/events", tags=["campaigns"], response_class=StreamingResponse)
async def stream_events(
    request: Request,
    actor: Asking,
    ops: Ops,
    campaign: Annotated[str, Query(pattern="^([0-9a-f]{16})?$")] = "",
    after: Annotated[int | None, Query(ge=0, lt=1 << 62)] = None,
    follow: bool = True,
    last_event_id: Annotated[str, Header(alias="Last-Event-ID", pattern="^[0-9]{0,18}$")] = "",
) -> StreamingResponse:
    """What happens, as server-sent events: from now on, or from behind a number.

    With `follow` false it ends when all that is there has been told; else when the token is no good
    any more, or the service stops.
    """
    if last_event_id:
        after = int(last_event_id)
    start = await run_in_threadpool(ops.last_event, actor) if after is None else after
    stopping: threading.Event = request.app.state.stopping

    def behind(number: int) -> list[schema.EventView]:
        return ops.events_after(still_asking(request), number, campaign)

    async def events() -> AsyncIterator[str]:
        number, quiet = start, 0.0
        yield ": hello\n\n"
        while not await request.is_disconnected():
            try:
                found = await run_in_threadpool(behind, number)
            except TokenError as error:
                yield f": {error}\n\n"
                return
            for one in found:
                number, quiet = one.number, 0.0
                yield f"id: {one.number}\nevent: {one.kind}\ndata: {one.model_dump_json()}\n\n"
            if stopping.is_set() or not (found or follow):
                return
            if found:
                continue
            await asyncio.sleep(EVENT_LOOK_SECONDS)
            quiet += EVENT_LOOK_SECONDS
            if quiet >= 15.0:
                quiet = 0.0
                yield ": still there\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")
