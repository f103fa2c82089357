"""What a campaign hears from gateways: their devices, and which of them make no sense."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from fleet.campaign import CampaignConfig, DeviceInfo, Operation
from fleet.campaign.answers import RoundCounters
from fleet.clock import Clock
from fleet.coordinator.scores import add_counts
from fleet.coordinator.transport import Reply, Transport
from fleet.errors import CampaignError
from fleet.protocol.keys import TaskKeys
from fleet.store import Store

logger = logging.getLogger(__name__)


class Listener:
    """Listens to gateways for one campaign.

    Attributes: `quarantined`, gateways whose answers can't be used, with reasons; `on_round`,
    called with each usable reply about a round, whatever is waited for when it comes.
    """

    def __init__(
        self,
        store: Store,
        campaign: str,
        driver: str,
        transport: Transport,
        clock: Clock,
        keys: TaskKeys | None = None,
    ) -> None:
        """`driver` is the name that the campaign was claimed under; `keys` sign its tasks."""
        self._store = store
        self._campaign = campaign
        self._driver = driver
        self._transport = transport
        self._clock = clock
        self._generation = keys.keyring.keyring.generation if keys else 0
        self._devices: dict[str, dict[str, DeviceInfo]] = {}
        self._heard: dict[str, float] = {}
        self._hellos: Counter[str] = Counter()
        self._counters: dict[int, dict[str, RoundCounters]] = {}
        self.on_round: Callable[[Reply], None] = lambda reply: None
        self.quarantined: dict[str, str] = dict(store.quarantined(campaign))

    def devices(self) -> list[DeviceInfo]:
        """What is known of devices, of all gateways."""
        return [one for known in self._devices.values() for one in known.values()]

    def receive(self) -> list[Reply]:
        """Replies of gateways that aren't in quarantine; what devices there are is noted."""
        usable = []
        for reply in self._transport.receive():
            if reply.is_odd:
                self.quarantine(reply.gateway, reply.error)
            if reply.gateway in self.quarantined:
                continue
            usable.append(reply)
            if reply.round is not None and reply.round[0] == self._campaign:
                self.on_round(reply)
            if reply.hello is not None:
                self._heard[reply.gateway] = self._clock.monotonic()
                self._hellos[reply.gateway] += 1
                known = self._devices.setdefault(reply.gateway, {})
                changed = {
                    one.device: DeviceInfo(gateway=reply.gateway, **dict(one))
                    for one in reply.hello.devices
                }
                known.update(changed)
                self._note_keyrings(changed.values())
                self._note_counters(reply.gateway, reply.hello.rounds)
        return usable

    def quarantine(self, gateway: str, reason: str) -> None:
        """Go on without a gateway whose answers can't be used, in this campaign."""
        if gateway not in self.quarantined:
            about = {"campaign": self._campaign, "gateway": gateway}
            logger.error(
                "gateway %s is in quarantine from now on: %s", gateway, reason, extra=about
            )
            self._store.quarantine(self._campaign, self._driver, gateway, reason)
            self.quarantined[gateway] = reason
            self._devices.pop(gateway, None)

    def _note_keyrings(self, devices: Iterable[DeviceInfo]) -> None:
        """Say that devices follow a newer keyring than ours: they decline what it doesn't allow."""
        newest = max(devices, key=lambda one: one.keyring, default=None)
        if newest is None or newest.keyring <= self._generation:
            return
        ours = f"keyring {self._generation}" if self._generation else "none"
        logger.warning(
            "device %s follows keyring %d of its authority, and tasks go out with %s: give the "
            "coordinator's [signing] the newest one (docs/howto/keys.md)",
            newest.device,
            newest.keyring,
            ours,
            extra={"campaign": self._campaign, "gateway": newest.gateway},
        )
        self._generation = newest.keyring

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

    def ask_for_news(self, silence_seconds: float = 0.0) -> None:
        """Ask the gateways of which nothing was heard for so long for what has changed."""
        now = self._clock.monotonic()
        for gateway in self._transport.gateways() - self.quarantined.keys():
            if now - self._heard.get(gateway, now) >= silence_seconds:
                self._heard[gateway] = now
                self._transport.send(gateway, Operation.HELLO, {})

    def hear_news(self, seconds: float) -> None:
        """Ask all gateways for what has changed, and listen until they have told, or so long."""
        self.ask_for_news()
        before = {one: self._hellos[one] for one in self._transport.gateways()}
        end = self._clock.monotonic() + seconds
        while self._clock.monotonic() < end:
            if all(
                self._hellos[one] > count or one in self.quarantined
                for one, count in before.items()
            ):
                return
            self.receive()

    def too_few(
        self, config: CampaignConfig, least: int, ready: int, skipped: Mapping[str, str]
    ) -> CampaignError:
        """What to say where not enough devices come."""
        whys = [f"{name}: {why}" for name, why in list(skipped.items())[:5]]
        whys += [f"gateway {name}: {why}" for name, why in self.quarantined.items()]
        return CampaignError(
            f"{ready} of at least {least} devices are ready "
            f"after {config.wait_for_devices_seconds:.0f} s, at gateways "
            f"{sorted(self._transport.gateways()) or 'none'} "
            f"({'; '.join(whys) or 'none announced'})"
        )
