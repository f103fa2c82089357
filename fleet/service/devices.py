"""What can be done with devices and gateways."""

from __future__ import annotations

from typing import Any

from fleet.errors import ConflictError, TakenNameError
from fleet.gateway.broker import new_passwords, password_hash
from fleet.registry import Device, Filter, NewDevice
from fleet.service import schema
from fleet.service.base import MOST_ON_A_PAGE, PAGE, Actor, Base, changing
from fleet.service.roles import Permission
from fleet.store.gateways import DEVICE, GATEWAY, GatewayRecord


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
