"""What can be done with devices and gateways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fleet.campaign.config import CampaignConfig
from fleet.errors import ConflictError, TakenNameError
from fleet.gateway.broker import new_passwords, password_hash
from fleet.protocol.manifest import Manifest
from fleet.registry import Device, Filter, NewDevice
from fleet.service import schema
from fleet.service.base import MOST_ON_A_PAGE, PAGE, Actor, Base, changing
from fleet.service.roles import Permission
from fleet.store.gateways import DEVICE, GATEWAY, GatewayRecord

MOST_VERSIONS = 20
"""That are counted one by one."""


def _by_count(of: Counter[str | None]) -> list[tuple[str | None, int]]:
    """Most first, and in the same order whenever one looks."""
    return sorted(of.items(), key=lambda one: (-one[1], one[0] or ""))


class DeviceOperations(Base):
    """What can be done with devices and gateways."""

    @changing(Permission.OPERATE)
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

    def summarize_devices(self, actor: Actor, of: str) -> schema.DeviceSummary:
        """The devices that a filter means, counted by state, site, board and version."""
        self._allow(actor, Permission.READ)
        states: Counter[str] = Counter()
        sites: dict[str, Counter[str]] = {}
        boards: Counter[str | None] = Counter()
        versions: Counter[str | None] = Counter()
        for one in self.registry.tally(Filter.parse(of)):
            states[one.state] += one.count
            if one.state == "retired":
                continue
            sites.setdefault(one.site, Counter())[one.state] += one.count
            boards[one.board] += one.count
            versions[one.current] += one.count
        most = _by_count(versions)[:MOST_VERSIONS]
        names = self.models.names([digest for digest, _ in most if digest])
        return schema.DeviceSummary(
            count=states.total(),
            states=dict(states),
            sites=[
                schema.SiteCount(site=name, states=dict(of)) for name, of in sorted(sites.items())
            ],
            boards=[
                schema.BoardCount(board=name, count=count) for name, count in _by_count(boards)
            ],
            versions=[
                schema.VersionCount(current=digest, version=names.get(digest or ""), count=count)
                for digest, count in most
            ],
            other_versions=versions.total() - sum(count for _, count in most),
        )

    def device(self, actor: Actor, name: str) -> schema.DeviceView:
        """One device."""
        self._allow(actor, Permission.READ)
        return self._views([self.registry.get(name)])[0]

    def device_history(self, actor: Actor, name: str) -> schema.History:
        """What a device has reported."""
        self._allow(actor, Permission.READ)
        self.registry.get(name)
        found = self.registry.history(name)
        configs = self.device_work.campaigns(frozenset(str(one["campaign"]) for one in found))
        names = {of: CampaignConfig.parse(text).name for of, text in configs.items()}
        versions = self.models.names({one["weights"] for one in found})
        return schema.History(
            history=[
                schema.HistoryEntry(
                    **one, name=names[one["campaign"]], version=versions.get(one["weights"])
                )
                for one in found
            ]
        )

    def device_record(self, actor: Actor, name: str) -> schema.DeviceRecord:
        """What a device has done, what that took of it, and where it failed."""
        self._allow(actor, Permission.READ)
        device = self.registry.get(name)
        work = self.device_work.of(name)
        power = None
        if device.observed is not None:
            text = self.models.manifest(device.observed.bundle)
            power = None if text is None else Manifest.parse(text).board.active_milliwatts
        troubles = []
        for one in self.device_work.troubles(name):
            config = CampaignConfig.parse(one.config)
            troubles.append(
                schema.DeviceTrouble(
                    campaign=one.campaign,
                    name=config.name,
                    stage=config.stages[one.stage].name,
                    failures=one.failures,
                    reason=one.reason,
                    not_before=one.not_before,
                )
            )
        return schema.DeviceRecord(
            rounds=work.reports,
            trained_rounds=work.trained,
            seconds=work.seconds,
            uplink_bytes=work.payload_bytes,
            active_milliwatts=power,
            millijoules=None if power is None else power * work.seconds,
            flash_slot_writes=work.versions,
            troubles=troubles,
        )

    @changing(Permission.OPERATE)
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

    @changing(Permission.OPERATE)
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

    @changing(Permission.OPERATE)
    def rotate_device(self, actor: Actor, name: str) -> schema.Password:
        """A new password; the old one is no good from now on."""
        device = self.registry.get(name)
        if device.retired:
            raise ConflictError(f"device {name} is retired: it has no password")
        password = new_passwords([name])[name]
        self.logins.grant(name, device.site, DEVICE, password_hash(password))
        self._note(actor, "devices.rotate", f"device:{name}")
        return schema.Password(device=name, password=password)

    @changing(Permission.ADMINISTER)
    def erase_device(self, actor: Actor, name: str) -> None:
        """Forget a device and what it reported."""
        device = self.registry.get(name)
        if not device.retired:
            raise ConflictError(f"device {name} is in use; retire it first, then erase it")
        self.registry.erase(name)
        self._note(actor, "devices.erase", f"device:{name}", {"site": device.site}, None)

    def _views(self, devices: Sequence[Device]) -> list[schema.DeviceView]:
        now = self.store.clock.wall()
        names = self.models.names({one.observed.current for one in devices if one.observed})
        return [self._view(one, now, names) for one in devices]

    def _view(self, one: Device, now: float, names: Mapping[str, str]) -> schema.DeviceView:
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
            values["version"] = names.get(one.observed.current)
        return schema.DeviceView.model_validate(values)

    # Gateways

    @changing(Permission.ADMINISTER)
    def add_gateway(self, actor: Actor, wanted: schema.GatewayToAdd) -> schema.Password:
        """Register a gateway, or bring one back, and let it in at its site's broker."""
        if self.registry.labels([wanted.gateway]):
            raise TakenNameError(f"{wanted.gateway} is a device's name; choose another")
        password = new_passwords([wanted.gateway])[wanted.gateway]
        before = self.gateways.add(wanted.gateway, wanted.site)
        self.logins.grant(wanted.gateway, wanted.site, GATEWAY, password_hash(password))
        self._note(
            actor,
            "gateways.add",
            f"gateway:{wanted.gateway}",
            None if before is None else {"site": before.site, "retired": True},
            {"site": wanted.site},
        )
        return schema.Password(device=wanted.gateway, password=password)

    @changing(Permission.ADMINISTER)
    def retire_gateway(self, actor: Actor, name: str) -> schema.GatewayView:
        """Take a gateway out of everything, and its broker's login away."""
        before = self.gateways.get(name)
        self.logins.revoke(name)
        self.gateways.retire(name)
        self._note(
            actor,
            "gateways.retire",
            f"gateway:{name}",
            {"site": before.site, "retired": before.retired},
            {"retired": True},
        )
        return self._gateway(self.gateways.get(name))

    def list_gateways(self, actor: Actor) -> schema.GatewayList:
        """All gateways."""
        self._allow(actor, Permission.READ)
        return schema.GatewayList(gateways=[self._gateway(one) for one in self.gateways.list()])

    def _gateway(self, one: GatewayRecord) -> schema.GatewayView:
        age = None
        if one.last_seen is not None:
            age = max(0.0, self.store.clock.wall() - one.last_seen)
        return schema.GatewayView(**vars(one), seen_age_seconds=age)
