"""Worlds of one device, and what happens in them."""

from __future__ import annotations

import ctypes
import hashlib

from fleet.protocol import Delta, DeviceState, Reason, Status, topics
from fleet.protocol.chunks import chunks_of

from ..host_device import IDENTITY, PLANS, SMALL, FakeBroker, HostDevice, Publication, Shape, World
from ..keyed import Keys
from ..tiny_round import Data, Weights, clustered_data, train

FACTORY = SMALL.factory
DATA = clustered_data()
ALL, BIASES, LARGE, PERSONAL = PLANS
DELTA_TOPIC = "fleet/f/gw/gw/dev1/delta"
TASK_TOPIC = "fleet/f/to/dev1/task"


def make_world(
    library: ctypes.CDLL, data: Data = DATA, shape: Shape = SMALL, region: bytes = b""
) -> World:
    device = HostDevice(library, data.region(shape.samples), shape=shape, region=region)
    made = World(device, FakeBroker())
    assert made.boot() == 0
    return made


def keyed_world(library: ctypes.CDLL, keys: Keys, region: bytes = b"") -> World:
    """With these keys, unless its identity ``region`` says otherwise."""
    return make_world(library, region=region or keys.region(IDENTITY))


def online(world: World) -> World:
    world.run_until(lambda: bool(world.of(Status)))
    return world


def trained(plan: bytes = ALL, seed: int = 99) -> Weights:
    """Other weights than the factory's, that score well."""
    return train(Weights.parse(FACTORY), DATA, seed, epochs=1, biases_only=plan == BIASES)


def worse_than(good: Weights) -> bytes:
    return Weights(-good.matrix, -good.biases).blob()


def digest_of(blob: bytes) -> bytes:
    return hashlib.sha256(blob).digest()


def publish_blob(
    world: World,
    blob: bytes,
    digest: bytes = b"",
    chunk_bytes: int = 16,
    lacking: int | None = None,
) -> None:
    """All chunks but one, where one is ``lacking``, under the digest that is their own or said."""
    for number, payload in chunks_of(blob, chunk_bytes):
        if number != lacking:
            topic = topics.blob("f", digest or digest_of(blob), number)
            world.broker.send(Publication(topic, payload, True))


def group_filter(blob: bytes, group: int) -> str:
    return topics.any_of_group("f", digest_of(blob), group)


def has_whole_delta(world: World) -> bool:
    deltas = world.of(Delta)
    return bool(deltas) and deltas[-1].chunk == deltas[-1].chunks - 1


def finish_round(world: World, seconds: float = 60) -> list[Delta]:
    """Runs until the gateway has the delta and the device its receipt."""
    world.run_until(lambda: has_whole_delta(world), seconds)
    world.run_until(lambda: world.device.state != DeviceState.SENDING)
    return world.of(Delta)


def decline_of(world: World) -> Reason:
    world.run_until(lambda: (world.states() or [(0, 0)])[-1][0] == DeviceState.DECLINED)
    assert not world.of(Delta)
    return Reason(world.states()[-1][1])
