"""A typed client of the API; the commands use nothing else."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel

from fleet.campaign.config import CampaignConfig
from fleet.errors import (
    AccessError,
    ConflictError,
    NotKnownError,
    ServiceError,
    UnknownTokenError,
)
from fleet.service import schema
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

Form = TypeVar("Form", bound=BaseModel)
TIMEOUT_SECONDS = 30.0
MOST_RETRIES = 5
LONGEST_WAIT_SECONDS = 10.0
DEVICES_AT_ONCE = 1000
"""To register; a service would take more, which would take long without a sign."""


class Client:
    """Speaks to a coordinator's service; errors of the API are exceptions of `fleet.errors`."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        ca_file: str | None = None,
        why: str = "",
        transport: httpx.BaseTransport | None = None,
        retries: int = MOST_RETRIES,
    ) -> None:
        """`why` goes with every write into the audit log; `transport` is that of tests and of the
        dashboard. What the service has no time for is sent again, `retries` times at most.
        """
        verify: Any = True
        if ca_file is not None:
            import ssl

            verify = ssl.create_default_context(cafile=ca_file)
        self.url = url
        self._reason = {b"X-Reason": " ".join(why.split()).encode()} if why else {}
        self._retries = retries
        self._http = httpx.Client(
            base_url=url,
            headers={b"Authorization": f"Bearer {token}".encode()},
            timeout=TIMEOUT_SECONDS,
            verify=verify,
            transport=transport,
            trust_env=False,  # a proxy must not see the token
        )

    def close(self) -> None:
        """Close connections."""
        self._http.close()

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close connections."""
        self.close()

    # Requests

    def _request(self, method: str, path: str, *, key: str = "", **options: Any) -> httpx.Response:
        if method != "GET":
            # Whatever happens on the way, it is done once.
            named = (key or uuid.uuid4().hex).encode()
            options["headers"] = {b"Idempotency-Key": named, **self._reason}
        try:
            response = self._http.request(method, path, **options)
            for _ in range(self._retries):
                wait = _wait_before_retry(response)
                if wait is None or path == "/readyz":
                    break
                time.sleep(wait)
                response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise ServiceError(
                f"the service at {self.url} doesn't answer ({error}); does it run? "
                "`tinyfleet up DIR`, or `tinyfleet serve`"
            ) from None
        if response.status_code >= 400 and path != "/readyz":
            raise _refusal(response)
        return response

    def _get(self, form: type[Form], path: str, **query: Any) -> Form:
        wanted = {name: value for name, value in query.items() if value not in (None, "")}
        return form.model_validate_json(self._request("GET", path, params=wanted).content)

    def _send(
        self,
        form: type[Form],
        method: str,
        path: str,
        body: BaseModel | Mapping[str, Any],
        key: str = "",
    ) -> Form:
        if isinstance(body, BaseModel):
            body = body.model_dump(mode="json", exclude_unset=True)
        response = self._request(method, path, key=key, json=body)
        return form.model_validate_json(response.content)

    # Service

    def whoami(self) -> schema.WhoAmI:
        """Whose token it is."""
        return self._get(schema.WhoAmI, "/v1/whoami")

    def ready(self) -> schema.Ready:
        """Whether the service can do its work."""
        return self._get(schema.Ready, "/readyz")

    # Devices and gateways

    def add_devices(self, devices: Sequence[schema.DeviceToAdd]) -> list[schema.Password]:
        """Register devices, at most a page of them; their passwords are told once."""
        body = schema.DevicesToAdd(devices=list(devices))
        return self._send(schema.Passwords, "POST", "/v1/devices", body).devices

    def add_all_devices(
        self, devices: Sequence[schema.DeviceToAdd]
    ) -> Iterator[list[schema.Password]]:
        """Register devices page by page: what was told is told, also where a page is refused."""
        for first in range(0, len(devices), DEVICES_AT_ONCE):
            yield self.add_devices(devices[first : first + DEVICES_AT_ONCE])

    def devices(self, filter: str = "", after: str = "", limit: int = 100) -> schema.DevicePage:
        """A page of devices."""
        return self._get(schema.DevicePage, "/v1/devices", filter=filter, after=after, limit=limit)

    def all_devices(self, filter: str = "") -> Iterator[schema.DeviceView]:
        """All devices, page by page."""
        after: str | None = ""
        while after is not None:
            page = self.devices(filter, after, 1000)
            yield from page.devices
            after = page.next

    def export_devices(self, filter: str = "") -> Iterator[str]:
        """The same as they come, a JSON object a line."""
        try:
            path = "/v1/devices-export"
            with self._http.stream("GET", path, params={"filter": filter}) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    raise _refusal(answer)
                yield from answer.iter_lines()
        except httpx.HTTPError as error:
            raise ServiceError(f"the service at {self.url} was lost ({error})") from None

    def preview_devices(self, filter: str = "") -> schema.DevicePreview:
        """Which devices a filter means."""
        return self._get(schema.DevicePreview, "/v1/devices-preview", filter=filter)

    def summarize_devices(self, filter: str = "") -> schema.DeviceSummary:
        """Devices counted by state, site, board and version."""
        return self._get(schema.DeviceSummary, "/v1/devices-summary", filter=filter)

    def device(self, name: str) -> schema.DeviceView:
        """One device."""
        return self._get(schema.DeviceView, f"/v1/devices/{name}")

    def device_history(self, name: str) -> list[schema.HistoryEntry]:
        """What it has reported."""
        return self._get(schema.History, f"/v1/devices/{name}/history").history

    def device_record(self, name: str) -> schema.DeviceRecord:
        """What it has done, and what that took of it."""
        return self._get(schema.DeviceRecord, f"/v1/devices/{name}/record")

    def label_device(self, name: str, labels: Mapping[str, str | None]) -> schema.DeviceView:
        """Set labels, and take away those that are None."""
        body = {"labels": dict(labels)}
        return self._send(schema.DeviceView, "PATCH", f"/v1/devices/{name}/labels", body)

    def retire_device(self, name: str) -> schema.DeviceView:
        """Take it out of everything."""
        return self._send(schema.DeviceView, "POST", f"/v1/devices/{name}/retire", {})

    def rotate_device(self, name: str) -> schema.Password:
        """A new password."""
        return self._send(schema.Password, "POST", f"/v1/devices/{name}/rotate", {})

    def erase_device(self, name: str) -> None:
        """Forget it."""
        self._request("DELETE", f"/v1/devices/{name}")

    def gateways(self) -> list[schema.GatewayView]:
        """All gateways."""
        return self._get(schema.GatewayList, "/v1/gateways").gateways

    def add_gateway(self, gateway: str, site: str) -> schema.Password:
        """Register a gateway."""
        body = schema.GatewayToAdd(gateway=gateway, site=site)
        return self._send(schema.Password, "POST", "/v1/gateways", body)

    def retire_gateway(self, name: str) -> schema.GatewayView:
        """It is gone."""
        return self._send(schema.GatewayView, "POST", f"/v1/gateways/{name}/retire", {})

    # Models

    def models(self) -> list[schema.ModelView]:
        """All models."""
        return self._get(schema.ModelList, "/v1/models").models

    def model(self, name: str) -> schema.ModelView:
        """One model."""
        return self._get(schema.ModelView, f"/v1/models/{name}")

    def import_bundle(self, model: str, manifest: str, weights: bytes) -> schema.VersionView:
        """Add a bundle."""
        body = schema.BundleToImport(
            model=model, manifest=manifest, weights=base64.b64encode(weights).decode()
        )
        return self._send(schema.VersionView, "POST", "/v1/models", body)

    def add_version(self, model: str, weights: bytes, parent: int | None) -> schema.VersionView:
        """Weights that were made elsewhere."""
        body = schema.VersionToAdd(weights=base64.b64encode(weights).decode(), parent=parent)
        return self._send(schema.VersionView, "POST", f"/v1/models/{model}/versions", body)

    def weights(self, model: str, version: int) -> bytes:
        """A version's weights."""
        return self._request("GET", f"/v1/models/{model}/versions/{version}/weights").content

    def release(self, model: str, version: int, key: str = "") -> schema.VersionView:
        """Release a version."""
        path = f"/v1/models/{model}/versions/{version}/release"
        return self._send(schema.VersionView, "POST", path, {}, key)

    def rollback_model(
        self, model: str, newest: int | None = None, key: str = ""
    ) -> schema.VersionView:
        """Withdraw the newest released version; no other than `newest`, where given."""
        body = schema.RollbackOfModel(newest=newest)
        return self._send(schema.VersionView, "POST", f"/v1/models/{model}/rollback", body, key)

    def compare(self, model: str, first: int, second: int) -> schema.Comparison:
        """Compare two versions."""
        path = f"/v1/models/{model}/compare"
        return self._get(schema.Comparison, path, first=first, second=second)

    # Campaigns

    def plan_campaign(self, config: CampaignConfig) -> CampaignPlan:
        """What it would do."""
        body = schema.CampaignToStart(campaign=config)
        return self._send(CampaignPlan, "POST", "/v1/campaigns-plan", body)

    def plan_privacy(self, config: CampaignConfig) -> PrivacyPlan:
        """What it would cost its devices of their privacy."""
        body = schema.CampaignToStart(campaign=config)
        return self._send(PrivacyPlan, "POST", "/v1/campaigns-privacy", body)

    def privacy(
        self, device: str = "", campaign: str = "", after: str = "", limit: int = 100
    ) -> PrivacyPage:
        """A page of what was spent of devices' privacy."""
        wanted = {"device": device, "campaign": campaign, "after": after, "limit": limit}
        return self._get(PrivacyPage, "/v1/privacy", **wanted)

    def start_campaign(self, config: CampaignConfig, key: str = "") -> schema.CampaignView:
        """Begin it; once, whoever asks again with the same `key`."""
        body = schema.CampaignToStart(campaign=config)
        return self._send(schema.CampaignView, "POST", "/v1/campaigns", body, key)

    def campaigns(
        self, after: str = "", limit: int = 100, state: CampaignState | None = None
    ) -> CampaignList:
        """A page of campaigns, newest first."""
        path = "/v1/campaigns"
        return self._get(CampaignList, path, after=after, limit=limit, state=state)

    def read_campaign(self, text: str) -> CampaignReading:
        """What a text says, and every mistake in it."""
        return self._send(CampaignReading, "POST", "/v1/campaigns-read", CampaignText(text=text))

    def campaign_schema(self) -> dict[str, Any]:
        """The JSON Schema of a campaign's file."""
        return self._get(CampaignSchema, "/v1/campaigns-schema").json_schema

    def standing(self, campaign: str) -> CampaignStanding:
        """How it stands, of bounded size."""
        return self._get(CampaignStanding, f"/v1/campaigns/{campaign}/standing")

    def figures(self, campaign: str, round: int) -> RoundFigures:
        """A round in figures, of bounded size."""
        return self._get(RoundFigures, f"/v1/campaigns/{campaign}/rounds/{round}/figures")

    def campaign(self, campaign: str) -> schema.CampaignDetail:
        """One campaign, whole."""
        return self._get(schema.CampaignDetail, f"/v1/campaigns/{campaign}")

    def reports(self, campaign: str, round: int) -> schema.Reports:
        """A round's reports."""
        return self._get(schema.Reports, f"/v1/campaigns/{campaign}/rounds/{round}")

    def act(
        self, campaign: str, action: str, seen: schema.Seen | None = None, key: str = ""
    ) -> schema.CampaignView:
        """Pause, resume, stop, roll-back, approve; nothing, where it isn't any more as `seen`."""
        path = f"/v1/campaigns/{campaign}/actions"
        body: dict[str, Any] = {"action": action}
        if seen is not None:
            body["seen"] = seen.model_dump()
        return self._send(schema.CampaignView, "POST", path, body, key)

    def events(
        self, campaign: str = "", after: int | None = None, follow: bool = True
    ) -> Iterator[schema.EventView]:
        """What happens, from now on or from behind a number."""
        query: dict[str, Any] = {"campaign": campaign, "follow": follow}
        if after is not None:
            query["after"] = after
        try:
            with self._http.stream("GET", "/v1/events", params=query, timeout=60.0) as response:
                if response.status_code >= 400:
                    response.read()
                    raise _refusal(response)
                for line in response.iter_lines():
                    if line.startswith("data: "):
                        yield schema.EventView.model_validate_json(line.removeprefix("data: "))
        except httpx.HTTPError as error:
            raise ServiceError(f"the service at {self.url} was lost ({error})") from None

    # Accounts

    def tokens(self) -> list[schema.TokenView]:
        """All tokens."""
        return self._get(schema.TokenList, "/v1/tokens").tokens

    def issue_token(
        self, who: str, role: schema.Role, days: float, key: str = ""
    ) -> schema.NewToken:
        """A new token."""
        body = schema.TokenToIssue(who=who, role=role, days=days)
        return self._send(schema.NewToken, "POST", "/v1/tokens", body, key)

    def revoke_token(self, token: str, key: str = "") -> None:
        """It is no good any more."""
        self._request("DELETE", f"/v1/tokens/{token}", key=key)

    def audit(
        self,
        after: int = 0,
        limit: int = 100,
        object: str = "",
        who: str = "",
        action: str = "",
    ) -> schema.AuditPage:
        """A page of the audit log, oldest first."""
        wanted = {"object": object, "who": who, "action": action}
        return self._get(schema.AuditPage, "/v1/audit", after=after, limit=limit, **wanted)

    def newest_audit(
        self,
        before: int | None = None,
        limit: int = 100,
        object: str = "",
        who: str = "",
        action: str = "",
    ) -> schema.AuditPage:
        """A page of the audit log, newest first, in front of the entry `before`."""
        wanted = {"before": before, "object": object, "who": who, "action": action}
        return self._get(schema.AuditPage, "/v1/audit", newest=True, limit=limit, **wanted)

    def settings(self) -> schema.Settings:
        """What the service was told."""
        return self._get(schema.Settings, "/v1/settings")

    def webhooks(self) -> list[schema.WebhookView]:
        """All webhooks."""
        return self._get(schema.WebhookList, "/v1/webhooks").webhooks

    def add_webhook(self, url: str, events: list[str], key: str = "") -> schema.NewWebhook:
        """Send events to an address."""
        body = schema.WebhookToAdd(url=url, events=events)
        return self._send(schema.NewWebhook, "POST", "/v1/webhooks", body, key)

    def remove_webhook(self, webhook: str, key: str = "") -> None:
        """Send nothing there any more."""
        self._request("DELETE", f"/v1/webhooks/{webhook}", key=key)


def _wait_before_retry(response: httpx.Response) -> float | None:
    """How long to wait where the same request may succeed later; None where it won't."""
    if response.status_code == 429:
        told = response.headers.get("Retry-After", "1")
        return min(LONGEST_WAIT_SECONDS, float(told)) if told.isdigit() else 1.0
    return 0.5 if response.status_code == 503 else None


def _refusal(response: httpx.Response) -> Exception:
    try:
        error = str(json.loads(response.content)["error"])
    except (ValueError, KeyError, TypeError):
        error = f"it answers with status {response.status_code}"
    kinds: dict[int, type[Exception]] = {
        401: UnknownTokenError,
        403: AccessError,
        404: NotKnownError,
        409: ConflictError,
    }
    kind = kinds.get(response.status_code)
    return ServiceError(error, response.status_code) if kind is None else kind(error)
