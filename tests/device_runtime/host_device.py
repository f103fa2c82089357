"""The device as a host shared library with the tiny model, and a broker in a few lines."""

from __future__ import annotations

import ctypes
import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from codegen.emit.monocypher import write_monocypher
from codegen.emit.zcbor_codec import generate_codec
from codegen.firmware.bundle import SamplesInfo
from codegen.host_toolchain import Source, host_toolchain
from fleet.protocol import Announce, Delta, Receipt, ReceiptResult, Status, Task, topics
from simulator.devices.flash_image import Identity, identity_region
from simulator.machines.host_structs import Flash, Region, Regions, SampleRegion, Setup

TESTS = Path(__file__).parent
RUNTIME = TESTS.parents[1] / "device_runtime"
CDDL = TESTS.parents[1] / "fleet" / "protocol" / "tinyfleet.cddl"

FLASH_ADDRESS = 0x08000000
CLASSES = 4
RING_BYTES = 4096
"""What the device has for bytes that nobody reads yet."""
IDENTITY = Identity("dev1", "f", "secret", 0, 115200)
PLANS = [
    name.ljust(31, ".").encode() + b"\0"
    for name in (
        "plan 0: weights and biases",
        "plan 1: biases",
        "plan 2: far too large",
        "plan 3: biases are personal",
    )
]


@dataclass(frozen=True)
class Shape:
    """How large tiny_model.c is, and a flash that has room for it."""

    inputs: int
    sectors: tuple[int, ...]
    """Two slots, identity, two of the journal, two of the sample log, two for personal values."""
    pool_bytes: int

    @property
    def factory(self) -> bytes:
        """The weights that are built in: zeros."""
        return bytes(CLASSES * (2 * self.inputs + 4))

    def address(self, sector: int) -> int:
        return FLASH_ADDRESS + sum(self.sectors[:sector])

    @property
    def samples(self) -> SamplesInfo:
        return SamplesInfo(
            address=self.address(5), bytes=sum(self.sectors[5:7]), sectors=(5, 2), units=2
        )


SMALL = Shape(16, (8192, 8192, 4096, 4096, 4096, 32_768, 32_768, 4096, 4096), 16_384)
WIDE = Shape(2560, (32_768, 32_768, 4096, 4096, 4096, 131_072, 131_072, 32_768, 32_768), 65_536)
"""41 chunks of 512 bytes down; a delta of several kilobytes up."""
SECTORS = list(SMALL.sectors)
POOL_BYTES = SMALL.pool_bytes
SAMPLES = SMALL.samples


def client_sources() -> list[Path]:
    """Everything of the runtime but kernels, ports and main."""
    folders = ("storage", "privacy", "client", "link", "hash", "engine", "codec")
    found = [path for name in folders for path in sorted((RUNTIME / name).glob("*.c"))]
    return [path for path in found if path.name != "delta_decode.c"]


def build_library(
    folder: Path,
    shape: Shape = SMALL,
    sanitize: tuple[str, ...] = ("undefined",),
    defines: Mapping[str, str | int] | None = None,
) -> ctypes.CDLL:
    """Compiles client, host port and tiny model, which ``defines`` may change."""
    digest = ",".join(map(str, hashlib.sha256(shape.factory).digest()))
    generated = generate_codec(CDDL, folder / "codec")
    sources = [
        *client_sources(),
        RUNTIME / "port" / "host" / "host_device.c",
        TESTS / "tiny_model.c",
    ]
    built = host_toolchain().build_host(
        [
            *(Source(source) for source in sources),
            *(Source(source, warnings=False) for source in generated),
            write_monocypher(folder / "codec"),
        ],
        include_dirs=[RUNTIME / "include", folder / "codec"],
        output=folder / "libdevice.so",
        defines={
            "ZCBOR_CANONICAL": 1,
            "INPUTS": shape.inputs,
            "FACTORY_SHA256": digest,
            **(defines or {}),
        },
        sanitize=sanitize,
    )
    library = ctypes.CDLL(str(built.output))
    for name in ("run", "dials", "has_power"):
        getattr(library, f"tf_host_device_{name}").restype = ctypes.c_bool
    return library


class HostDevice:
    """One device with flash and time of its own."""

    def __init__(
        self,
        library: ctypes.CDLL,
        sample_region: bytes,
        seed: int = 1,
        identity: Identity | None = IDENTITY,
        shape: Shape = SMALL,
        region: bytes = b"",
    ) -> None:
        """``region``: all of its identity region, where there is more than ``identity`` to it."""
        self._library = library
        sectors = shape.sectors
        self._memory = ctypes.create_string_buffer(library.tf_host_device_bytes() + 16)
        start = ctypes.addressof(self._memory)
        self._device = ctypes.c_void_p(start + -start % 16)
        self._sectors = (ctypes.c_uint32 * len(sectors))(*sectors)
        self.erases = (ctypes.c_uint32 * len(sectors))()
        self.flash = (ctypes.c_uint8 * sum(sectors))()
        ctypes.memset(self.flash, 0xFF, sum(sectors))
        if identity is not None:
            self.write_flash(shape.address(2), region or identity_region(identity))
        self.write_flash(shape.samples.address, sample_region)
        self._pool = (ctypes.c_uint64 * (shape.pool_bytes // 8))()

        def region(first: int, count: int) -> Region:
            return Region(shape.address(first), sum(sectors[first : first + count]), first, count)

        self.setup = Setup(
            board=b"host",
            flashes=(Flash * 2)(
                Flash(
                    ctypes.addressof(self.flash),
                    self._sectors,
                    FLASH_ADDRESS,
                    sum(sectors),
                    len(sectors),
                    self.erases,
                )
            ),
            regions=Regions(
                identity=region(2, 1),
                journal=region(3, 2),
                slots=(Region * 2)(region(0, 1), region(1, 1)),
                samples=SampleRegion(region(5, 2), shape.samples.units, 0),
                personal=region(7, 2),
            ),
            pool=ctypes.addressof(self._pool),
            pool_bytes=shape.pool_bytes,
            seed=seed,
        )

    def write_flash(self, address: int, data: bytes) -> None:
        ctypes.memmove(ctypes.addressof(self.flash) + address - FLASH_ADDRESS, data, len(data))

    def record(self, payload: bytes, label: int) -> int:
        return self._library.tf_host_device_record(self._device, label, payload, len(payload))

    def set_battery(self, battery: int) -> None:
        self._library.tf_host_device_set_battery(self._device, battery)

    def power_on(self, now: int) -> int:
        return self._library.tf_host_device_start(self._device, ctypes.byref(self.setup), now)

    def run(self, now: int, steps: int = 1) -> bool:
        return self._library.tf_host_device_run(self._device, now, steps)

    def receive(self, data: bytes) -> int:
        return self._library.tf_host_device_receive(self._device, data, len(data))

    def take(self) -> bytes:
        buffer = ctypes.create_string_buffer(4096)
        count = self._library.tf_host_device_take(self._device, buffer, 4096)
        return buffer.raw[:count]

    def set_carrier(self, carrier: bool) -> None:
        self._library.tf_host_device_set_carrier(self._device, carrier)

    def cut_power(self, operation: int) -> None:
        self._library.tf_host_device_cut_power(self._device, operation)

    @property
    def dials(self) -> bool:
        return self._library.tf_host_device_dials(self._device)

    @property
    def has_power(self) -> bool:
        return self._library.tf_host_device_has_power(self._device)

    @property
    def flash_operations(self) -> int:
        return self._library.tf_host_device_flash_operations(self._device)

    @property
    def state(self) -> int:
        return self._library.tf_host_device_state(self._device)

    def infer(self, sample: bytes) -> int:
        """What the application makes of a sample."""
        pool = (ctypes.c_uint64 * 1024)()
        return self._library.tf_host_device_infer(self._device, sample, pool, ctypes.sizeof(pool))

    @property
    def current_weights(self) -> bytes:
        digest = ctypes.create_string_buffer(32)
        self._library.tf_host_device_current_weights(self._device, digest)
        return digest.raw

    @property
    def candidate_weights(self) -> bytes:
        """Zeros where there is none."""
        digest = ctypes.create_string_buffer(32)
        self._library.tf_host_device_candidate_weights(self._device, digest)
        return digest.raw

    @property
    def base_weights(self) -> bytes:
        """What rounds start from: the candidate, else what is current."""
        candidate = self.candidate_weights
        return candidate if any(candidate) else self.current_weights


# --- A broker for one device --------------------------------------------------------------------


@dataclass
class Publication:
    topic: str
    payload: bytes
    retained: bool = False
    response_topic: str = ""
    expiry_seconds: int | None = None


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack(">H", len(data)) + data


def number(value: int) -> bytes:
    """Variable byte integer of MQTT 5, section 1.5.5."""
    encoded = bytearray()
    while True:
        value, digit = value >> 7, value & 127
        encoded.append(digit | (128 if value else 0))
        if not value:
            return bytes(encoded)


def read_number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
        if byte < 128:
            return value, at


def matches(wanted: str, topic: str) -> bool:
    levels, parts = wanted.split("/"), topic.split("/")
    return len(levels) == len(parts) and all(
        level in ("+", part) for level, part in zip(levels, parts, strict=True)
    )


@dataclass
class FakeBroker:
    """Enough of an MQTT 5 broker for one client: retained messages, subscriptions, PUBACKs.

    Sends what it may at once, whether or not the client reads. Keeps to the client's receive
    maximum. ``answer`` says with which reason a publication is acknowledged, None for not at all.
    """

    retained: dict[str, Publication] = field(default_factory=dict)
    published: list[Publication] = field(default_factory=list)
    subscribed: list[str] = field(default_factory=list)
    unsubscribed: list[str] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """("subscribe" or "unsubscribe", filter), in their order."""
    filters: dict[str, int] = field(default_factory=dict)
    """Those of this connection, with their QoS."""
    answer: Callable[[Publication], int | None] = lambda _: 0
    damage: Callable[[Publication], Publication] = lambda publication: publication
    """What becomes of a publication on its way to the client."""
    refuse: Callable[[str], bool] = lambda _: False
    """Which filters the client may not subscribe to."""
    connects: int = 0
    disconnected: bool = False
    receive_maximum: int = 1
    most_under_way: int = 0
    _bytes: bytes = b""
    _out: bytearray = field(default_factory=bytearray)
    _queue: list[Publication] = field(default_factory=list)
    _under_way: list[int] = field(default_factory=list)
    _next_id: int = 1

    def connection_begins(self) -> None:
        self._bytes = b""
        self._out.clear()
        self._queue.clear()
        self._under_way.clear()
        self.filters.clear()
        self.disconnected = False

    def send(self, publication: Publication) -> None:
        """As a gateway would publish it."""
        if publication.retained:
            if publication.payload:
                self.retained[publication.topic] = publication
            else:
                self.retained.pop(publication.topic, None)
        if self._qos_of(publication.topic) is not None:
            self._queue.append(publication)

    def _qos_of(self, topic: str) -> int | None:
        granted = [qos for wanted, qos in self.filters.items() if matches(wanted, topic)]
        return max(granted, default=None)

    def take(self) -> bytes:
        held_back = []
        for publication in self._queue:
            qos = self._qos_of(publication.topic)
            if qos == 0:
                self._publish(publication, b"")
            elif qos == 1 and len(self._under_way) < self.receive_maximum:
                self._publish(publication, struct.pack(">H", self._next_id))
                self._under_way.append(self._next_id)
                self.most_under_way = max(self.most_under_way, len(self._under_way))
                self._next_id = self._next_id % 65535 + 1
            elif qos == 1:
                held_back.append(publication)
        self._queue = held_back
        data = bytes(self._out)
        self._out.clear()
        return data

    def _publish(self, publication: Publication, identifier: bytes) -> None:
        publication = self.damage(publication)
        properties = b""
        if publication.expiry_seconds is not None:
            properties += b"\x02" + struct.pack(">I", publication.expiry_seconds)
        if publication.response_topic:
            properties += b"\x08" + text(publication.response_topic)
        body = text(publication.topic) + identifier
        body += number(len(properties)) + properties + publication.payload
        self._packet((0x32 if identifier else 0x30) | publication.retained, body)

    def _packet(self, first: int, body: bytes) -> None:
        self._out += bytes([first]) + number(len(body)) + body

    def receive(self, data: bytes) -> None:
        self._bytes += data
        while len(self._bytes) >= 2:
            try:
                length, start = read_number(self._bytes, 1)
            except IndexError:
                return
            if len(self._bytes) < start + length:
                return
            first, body = self._bytes[0], self._bytes[start : start + length]
            self._bytes = self._bytes[start + length :]
            self._take_packet(first, body)

    def _take_packet(self, first: int, body: bytes) -> None:
        kind = first >> 4
        if kind == 1:
            self._take_connect(body)
        elif kind == 3:
            self._take_publication(first, body)
        elif kind == 4:
            self._under_way.remove(struct.unpack_from(">H", body)[0])
        elif kind in (8, 10):
            self._take_request(kind == 8, body)
        elif kind == 12:
            self._packet(0xD0, b"")
        elif kind == 14:
            self.disconnected = True
        else:
            raise AssertionError(f"packet of type {kind} from a device")

    def _take_connect(self, body: bytes) -> None:
        self.connects += 1
        assert body[7] & 2, "not a clean start"
        size, at = read_number(body, 10)
        properties = body[at : at + size]
        assert 0x11 not in properties[:1], "a session that outlives the connection"
        where = properties.find(b"\x21")
        self.receive_maximum = struct.unpack_from(">H", properties, where + 1)[0]
        self._packet(0x20, b"\0\0\0")

    def _take_request(self, is_subscription: bool, body: bytes) -> None:
        size, at = read_number(body, 2)
        at += size
        length = struct.unpack_from(">H", body, at)[0]
        wanted = body[at + 2 : at + 2 + length].decode()
        if not is_subscription:
            self._packet(0xB0, body[:2] + b"\0\0")
            self.requests.append(("unsubscribe", wanted))
            self.unsubscribed.append(wanted)
            self.filters.pop(wanted, None)
            return
        qos = body[at + 2 + length] & 3
        self.requests.append(("subscribe", wanted))
        if self.refuse(wanted):
            self._packet(0x90, body[:2] + b"\0\x87")
            return
        self._packet(0x90, body[:2] + b"\0" + bytes([qos]))
        self.subscribed.append(wanted)
        self.filters[wanted] = qos
        self._queue += [
            publication
            for topic, publication in sorted(self.retained.items())
            if matches(wanted, topic)
        ]

    def _take_publication(self, first: int, body: bytes) -> None:
        length = struct.unpack_from(">H", body)[0]
        topic = body[2 : 2 + length].decode()
        identifier = body[2 + length : 4 + length]
        size, at = read_number(body, 4 + length)
        publication = Publication(topic, body[at + size :], bool(first & 1))
        reason = self.answer(publication)
        if reason is not None:
            self.published.append(publication)
            self._packet(0x40, identifier + bytes([reason]))


def counted(delta: Delta) -> Receipt:
    """A gateway's answer to a delta that it has on disk."""
    return Receipt(
        delta.lease, delta.campaign, delta.round, ReceiptResult.COUNTED, delta.coded_crc32
    )


@dataclass
class World:
    """A device, its broker, a gateway's receipts, and the time, which passes when it is told to."""

    device: HostDevice
    broker: FakeBroker
    fleet: str = "f"
    name: str = "dev1"
    gateway: str = "gw"
    now: int = 1_000_000
    link_is_up: bool = True
    connected: bool = False
    receipt: Callable[[Delta], Receipt | None] = counted
    """What the gateway says when the last chunk of a delta has come."""
    bytes_up: int = 0
    bytes_down: int = 0
    line_up: bytearray = field(default_factory=bytearray)  # all that the device has said
    _answered: int = 0

    def boot(self) -> int:
        status = self.device.power_on(self.now)
        self.connected = False
        self.device.set_carrier(False)  # DTR dropped with the reset, so the modem hung up
        return status

    def step(self, milliseconds: int = 1) -> bool:
        """One poll; bytes go both ways; returns whether the device has more to do at once."""
        self.now += milliseconds
        wants = self.device.dials and self.link_is_up and self.device.has_power
        if wants != self.connected:
            if self.connected:
                self.broker.receive(self.device.take())  # its last words
            self.connected = wants
            self.device.set_carrier(wants)
            if wants:
                self.broker.connection_begins()
        busy = self.device.run(self.now & 0xFFFFFFFF)
        if self.connected:
            self.carry()
        return busy

    def carry(self) -> None:
        """What both sides have to say, at once and whole."""
        said = self.device.take()
        self.bytes_up += len(said)
        self.line_up += said
        self.broker.receive(said)
        self._answer_deltas()
        data = self.broker.take()
        self.bytes_down += len(data)
        assert self.device.receive(data) == len(data), "the receive ring overflowed"

    def _answer_deltas(self) -> None:
        for publication in self.broker.published[self._answered :]:
            if publication.topic.endswith("/delta"):
                delta = Delta.decode(publication.payload)
                receipt = self.receipt(delta) if delta.chunk + 1 == delta.chunks else None
                if receipt is not None:
                    self.hand_over(receipt)
        self._answered = len(self.broker.published)

    def forget_published(self) -> None:
        self._answer_deltas()
        self.broker.published.clear()
        self._answered = 0

    def hand_over(self, receipt: Receipt | bytes) -> None:
        payload = receipt if isinstance(receipt, bytes) else receipt.encode()
        self.broker.send(Publication(topics.receipt(self.fleet, self.name), payload))

    def run_until(self, done: Callable[[], bool], seconds: float = 30.0) -> None:
        """Steps until ``done``; idle time passes faster."""
        end = self.now + seconds * 1000
        while not done():
            assert self.now < end, f"nothing happened within {seconds} s"
            busy = self.step(1)
            if not busy:
                self.now += 20

    def run_for(self, seconds: float) -> None:
        end = self.now + seconds * 1000
        while self.now < end:
            if not self.step(1):
                self.now += 20

    def of(self, kind: type[Announce] | type[Status] | type[Delta]) -> list:
        """What the device has published, decoded."""
        return [
            kind.decode(publication.payload)
            for publication in self.broker.published
            if publication.topic.endswith("/" + kind.KIND)
        ]

    def states(self) -> list[tuple[int, int]]:
        return [(status.state, status.reason) for status in self.of(Status)]

    def give(self, task: Task | bytes, expiry_seconds: int | None = None) -> None:
        payload = task if isinstance(task, bytes) else task.encode()
        topic = topics.task(self.fleet, self.name)
        response = topics.delta(self.fleet, self.gateway, self.name)
        self.broker.send(Publication(topic, payload, True, response, expiry_seconds))
