"""A site whose devices mask their deltas: the gateway, driver and unmasker that ship, in virtual
time. Only the training is made up; what a device masked is kept for the test alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.campaign import CampaignConfig, Operation
from fleet.coordinator.creation import new_campaign
from fleet.coordinator.driver import CampaignDriver
from fleet.coordinator.key_holders import KeyHolders
from fleet.coordinator.transport import Reply, Transport, read_replies
from fleet.errors import UnmaskerError
from fleet.privacy import discrete_gaussian
from fleet.protocol import Announce, Delta, Task
from fleet.protocol.keys import (
    DeviceKeys,
    Keyring,
    SignedKeyring,
    SigningKey,
    TaskKeys,
    exchange_public,
    is_signed,
    task_digest,
)
from fleet.protocol.manifest import Manifest
from fleet.protocol.mask_requests import MaskRequest, UnmaskerFacts
from fleet.protocol.masking import (
    NONCE_BYTES,
    Binding,
    MaskParameters,
    Words,
    mask_delta,
    noise_key,
)
from fleet.store import SqlStore, sqlite_url
from fleet.unmasker import LocalUnmasker, UnmaskerStore
from tests.fleet.coordinator import small_model
from tests.fleet.gateway.deltas import FLEET, GATEWAY, announcement, delta_chunks
from tests.fleet.gateway.virtual_site import VirtualDevice, VirtualSite

MANIFEST = Manifest.parse(json.dumps(small_model.manifest("a")))
PLANS = {plan.id: plan for plan in MANIFEST.plans}
BLOB = small_model.blob()


class MaskedDevice(VirtualDevice):
    """Has keys of its own; believes signed tasks only, and masks what it sends."""

    site: MaskedSite

    def __init__(self, site: MaskedSite, name: str, values: int) -> None:
        # The noise of private campaigns follows from it: the same in each run.
        exchange = hashlib.sha256(name.encode()).digest()
        self.keys = DeviceKeys(exchange, SigningKey.generate())
        self.free_sram_bytes = 20_000
        self.masked: dict[int, NDArray[np.int32]] = {}
        """Values before their masks, by the CRC-32 of the delta."""
        self.forgeries = 0
        self._in_flash = b""
        self.spoils_seals = False
        super().__init__(site, name, values)

    def announcement(self) -> Announce:
        return announcement(
            lease=self.lease,
            bundle=bytes.fromhex(MANIFEST.bundle_id),
            current=hashlib.sha256(BLOB).digest(),
            free_sram_bytes=self.free_sram_bytes,
            link_bits_per_second=1_000_000,
            keyring=1,
        )

    def _hears(self, topic: str, payload: bytes, retained: bool) -> None:
        if topic.endswith("/task") and payload:
            task = Task.decode(payload)
            digest = task_digest(FLEET, GATEWAY, self.name, task.unsigned())
            if not is_signed(self.site.task_key.public, digest, task.signature):
                self.forgeries += 1
                return
            if task.weights != self._in_flash:
                self._in_flash = task.weights
                self.flash.clear()
        super()._hears(topic, payload, retained)

    def make_delta(self, task: Task, dice: np.random.Generator) -> list[Delta]:
        if not task.epochs:
            return delta_chunks(task, np.zeros(0, np.int32), 0)
        parameters = MaskParameters.of(task)
        plan = PLANS[task.plan.hex()]
        bound = parameters.value_bound
        values = dice.integers(-bound, bound + 1, plan.delta_values).astype(np.int32)
        if parameters.clip:
            # What it has learnt is within the clip, so that nothing is cut off.
            length = max(1.0, float(np.linalg.norm(values)))
            values = np.trunc(values * min(1.0, parameters.clip / length)).astype(np.int32)
        binding = Binding(
            *(FLEET, self.name, task.campaign, task.round, task.plan, task.weights),
            parameters.values(plan.delta_values),
            parameters,
        )
        if parameters.norm_share:
            values = np.append(values, np.int32(parameters.norm_share))
        nonce = dice.bytes(NONCE_BYTES)
        if parameters.noise_variance:
            key = noise_key(self.keys.exchange, nonce)
            noise = discrete_gaussian(key, parameters.noise_variance, values.size)
            values = values + noise.astype(np.int32)
        made = mask_delta(self.keys.exchange, self.site.unmasker_keys, nonce, values, binding)
        coded = made.encode(parameters.bits)
        if self.spoils_seals:
            coded = coded[:20] + bytes([coded[20] ^ 1]) + coded[21:]
        chunks = delta_chunks(task, values, int(dice.integers(1, 60)), coded_all=coded)
        self.masked[chunks[0].coded_crc32] = values
        return chunks


class FlakyUnmasker:
    """An unmasker that may be away, and is killed after it has recorded a set and before it
    answers."""

    def __init__(self, inner: LocalUnmasker) -> None:
        self.inner = inner
        self.asked = 0
        self.is_away: Callable[[int], bool] = lambda number: False
        self.dies_at: set[int] = set()
        self.requests: list[MaskRequest] = []

    def masks(self, request: MaskRequest) -> Words:
        self.asked += 1
        if self.is_away(self.asked):
            raise UnmaskerError("away")
        self.requests.append(request)
        answer = self.inner.masks(request)
        if self.asked in self.dies_at:
            raise UnmaskerError("killed between record and answer")
        return answer

    def facts(self) -> UnmaskerFacts:
        return self.inner.facts()


class MaskedSite(VirtualSite):
    """One gateway, devices that mask, unmaskers in this process."""

    devices: dict[str, MaskedDevice]

    def __init__(self, folder: Path, seed: int, devices: int, unmaskers: int = 1) -> None:
        self.task_key, self.authority = SigningKey.generate(), SigningKey.generate()
        privates = [bytes([number]) * 32 for number in range(1, unmaskers + 1)]
        self.unmasker_keys = [exchange_public(one) for one in privates]
        super().__init__(folder, seed, devices)
        self.unmaskers = [
            FlakyUnmasker(LocalUnmasker(one, FLEET, UnmaskerStore(), 2, self.clock))
            for one in privates
        ]
        for one in self.unmaskers:
            for name, device in self.devices.items():
                one.inner.store.enrol([device.keys.enrol(FLEET, name)], FLEET, 0.0)
        keyring = Keyring(1, self.task_key.public, tuple(self.unmasker_keys))
        self.holders = KeyHolders(
            TaskKeys(FLEET, self.task_key, SignedKeyring.sign(self.authority, FLEET, keyring)),
            dict(zip(self.unmasker_keys, self.unmaskers, strict=True)),
        )

    def make_device(self, name: str) -> MaskedDevice:
        return MaskedDevice(self, name, self.values)

    def plain_sum(self, counted: Mapping[str, int]) -> NDArray[np.int64]:
        """What the deltas with these CRCs add up to, as their devices computed them."""
        return sum(
            (self.devices[name].masked[crc32].astype(np.int64) for name, crc32 in counted.items()),
            start=np.int64(0),
        )


class SiteTransport(Transport):
    """Asks the site's gateway; a reply is there at once. A gateway that is down says nothing."""

    def __init__(self, site: VirtualSite) -> None:
        self._site = site
        self._replies: list[Reply] = []
        self._cursor = 0
        self.meddles: Callable[[Operation, dict[str, Any]], dict[str, Any]] = lambda _, one: one
        self.send(GATEWAY, Operation.HELLO, {})

    def gateways(self) -> frozenset[str]:
        return frozenset({GATEWAY})

    def send(self, gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        answers = []
        if operation is not Operation.HELLO:
            name = {"campaign": fields["campaign"], "round": fields["round"]}
            # All reports each time: whoever meddles has them together.
            asked = {**fields, "cursor": 0} if operation is Operation.COLLECT else fields
            answer = self.meddles(operation, self._site.ask(operation.value, **asked))
            answers.append({"op": operation.value, **name, "answer": answer})
        hello = self._site.ask("hello", cursor=self._cursor)
        self._cursor = hello["cursor"]
        self._replies += read_replies(gateway, {"answers": answers, "hello": hello})

    def receive(self) -> list[Reply]:
        replies, self._replies = self._replies, []
        self._site.clock.sleep(0.4)
        return replies


@contextmanager
def masked_campaign(
    site: MaskedSite, rounds: int = 1, **changes: Any
) -> Iterator[tuple[SqlStore, str]]:
    """A stored campaign over the site's devices."""
    store = SqlStore(sqlite_url(site.folder / "campaign.sqlite"), site.clock)
    fields: dict[str, Any] = {
        "name": "cows",
        "coding": "masked",
        "masking": {"least_devices": 3, "spare": 0.0},
        "rounds": rounds,
        "min_devices": len(site.devices),
        "deadline_seconds": 900,
        "wait_for_devices_seconds": 1200,
        "score_first": False,
        "last_round": "none",
    }
    config = CampaignConfig.model_validate({**fields, **changes})
    yield store, new_campaign(store, config, small_model.manifest_texts("a"), BLOB)
    store.close()


def drive(site: MaskedSite, store: SqlStore, campaign: str, transport: Transport) -> str:
    """Drive it to its end; its state."""
    driver = CampaignDriver(store, campaign, transport, clock=site.clock, protection=site.holders)
    return driver.run()
