"""The same C as on the boards, as a shared library of this machine: hundreds of devices a core.

``build_host_library`` builds device_runtime/port/host with a bundle's model; a ``HostMachine``
is one device of it. It has the flash layout and the pool of the bundle's board, and its deltas
are bit-equal to the board's, but stack, faults and instruction counts are the host's.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codegen.emit.monocypher import SOURCE, monocypher_source
from codegen.emit.zcbor_codec import CODEC_DEFINES
from codegen.firmware.boards import Board
from codegen.firmware.bundle import MANIFEST, Bundle, load_bundle
from codegen.firmware.flash_layout import KEEP_NUMBERS
from codegen.host_kernels import host_engine_sources
from codegen.host_toolchain import HostToolchain, Source, host_toolchain
from device_runtime import host_sources, include_directories
from simulator.clock import Milliseconds, host_milliseconds
from simulator.errors import ImageError
from simulator.machines.elf_image import load_elf
from simulator.machines.host_structs import (
    Costs,
    Done,
    Flash,
    Region,
    Regions,
    SampleRegion,
    Setup,
    Standing,
)
from simulator.machines.lazy_memory import ERASED, ZEROS, LazyMemory
from simulator.machines.protocol import CHARGING_FLAG, StopReason, TrafficCount

_STEPS_BETWEEN_LOOKS = 4
NEVER_AGAIN = 0xFFFFFFFF
"""tf_host_device_next_run_ms: nothing but bytes gives it something to do."""
_DIGEST_BYTES = 32


class _FlashMemory:
    """Sectors of a flash, erased at first."""

    def __init__(self, address: int, sector_bytes: ctypes.Array[ctypes.c_uint32]) -> None:
        self.address = address
        self._sectors = sector_bytes
        self._content = LazyMemory(sum(sector_bytes), ERASED)
        self.erases = (ctypes.c_uint32 * len(sector_bytes))()

    def descriptor(self) -> Flash:
        """For C, which keeps no reference to it."""
        memory, count = self._content, len(self._sectors)
        return Flash(memory.start, self._sectors, self.address, memory.size, count, self.erases)

    def place_of(self, address: int, size: int) -> int | None:
        """Where this process has the bytes at an address of the board's; None outside."""
        first = address - self.address
        if first < 0 or first + size > self._content.size:
            return None
        return self._content.start + first


def build_host_library(
    bundle: Bundle, output: Path, toolchain: HostToolchain | None = None
) -> Path:
    """Build the client, the engine and the bundle's model for this machine; returns ``output``.

    Raises: ToolchainError without a C compiler, or when it fails.
    """
    folder = bundle.source_folder
    # Of no concern to kernels, whose objects are those of other libraries, too.
    codec = tuple(f"-D{name}={value}" for name, value in sorted(CODEC_DEFINES.items()))
    generated = [
        Source(path, warnings="cbor" not in path.name, flags=codec)
        for path in sorted(folder.glob("*.c"))
        if path.name != SOURCE
    ]
    (toolchain or host_toolchain()).build_host(
        [
            *host_engine_sources(generated),
            *(Source(path, flags=codec) for path in host_sources()),
            monocypher_source(folder),
        ],
        include_dirs=[folder, *include_directories()],
        output=output,
    )
    return output


@dataclass(frozen=True)
class _Firmware:
    """What all devices of a bundle share."""

    board: Board
    flashes: tuple[tuple[int, ctypes.Array[ctypes.c_uint32]], ...]
    """The internal flash, and as much of the external one as is used: address, sector sizes."""
    regions: Regions
    pool_bytes: int
    pool_address: int
    """On the board."""


def _firmware(bundle: Bundle) -> _Firmware:
    layout, board = bundle.manifest.flash, bundle.board
    flashes = [(board.flash.address, board.flash.sectors)]
    external = board.external_flash
    regions = layout.regions.values()
    ends = [sum(region.sectors) for region in regions if region.flash == "external"]
    if external is not None and ends:
        count = max(ends) - len(board.flash.sectors)
        flashes.append((external.address, external.sectors[:count]))
    image = load_elf(bundle.firmware)
    pool_address = image.address_of("__pool_start")
    pool_bytes = image.address_of("__pool_end") - pool_address
    return _Firmware(
        board,
        tuple((address, (ctypes.c_uint32 * len(of))(*of)) for address, of in flashes),
        Regions(
            identity=_region(layout.identity),
            journal=_region(layout.journal),
            slots=(Region * 2)(_region(layout.slot_a), _region(layout.slot_b)),
            samples=SampleRegion(
                _region(layout.samples), layout.samples.units, KEEP_NUMBERS[layout.samples.keep]
            ),
            personal=Region() if layout.personal is None else _region(layout.personal),
        ),
        pool_bytes // 8 * 8,
        pool_address,
    )


@functools.lru_cache(maxsize=64)
def _firmware_at(path: Path, changed: int) -> _Firmware:
    del changed  # another bundle in the same place is another entry
    return _firmware(load_bundle(path))


@functools.lru_cache(maxsize=16)
def _library(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    pointer, word, flag = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_bool
    long = ctypes.c_uint64
    for name, result, arguments in (
        ("bytes", word, ()),
        ("start", ctypes.c_int, (pointer, pointer, word)),
        ("run", flag, (pointer, word, word)),
        ("work", None, (pointer, pointer, pointer, long, long, pointer)),
        ("next_run_ms", word, (pointer,)),
        ("receive", word, (pointer, ctypes.c_char_p, word)),
        ("take", word, (pointer, ctypes.c_char_p, word)),
        ("record", ctypes.c_int, (pointer, ctypes.c_uint16, ctypes.c_char_p, word)),
        ("dials", flag, (pointer,)),
        ("set_carrier", None, (pointer, flag)),
        ("set_battery", None, (pointer, ctypes.c_uint8)),
        ("cut_power", None, (pointer, word)),
        ("has_power", flag, (pointer,)),
        ("flash_operations", word, (pointer,)),
        ("state", ctypes.c_int32, (pointer,)),
        ("current_weights", None, (pointer, ctypes.c_char_p)),
        ("candidate_weights", None, (pointer, ctypes.c_char_p)),
        ("infer", ctypes.c_int32, (pointer, pointer, pointer, word)),
    ):
        function = getattr(library, f"tf_host_device_{name}")
        function.restype, function.argtypes = result, arguments
    return library


class HostMachine:
    """One device of a host library. Implements ``simulator.machines.protocol.Machine``."""

    def __init__(
        self,
        bundle: Bundle | Path | str,
        library: Path,
        *,
        clock: Milliseconds = host_milliseconds,
        battery_percent: Callable[[], float] = lambda: 100.0,
        charging: bool = False,
        seed: int = 0,
        flash_content: Iterable[tuple[int, bytes]] = (),
    ) -> None:
        """Make the flash with ``flash_content`` in it, and power the device on.

        Raises: ImageError when content lies outside the flash.
        """
        if isinstance(bundle, Bundle):
            firmware = _firmware(bundle)
        else:
            path = Path(bundle)
            firmware = _firmware_at(path, (path / MANIFEST).stat().st_mtime_ns)
        self.board = firmware.board
        self.fault: Exception | None = None
        self.last_fault: Exception | None = None
        self._library = _library(str(library))
        self._work = self._library.tf_host_device_work
        self._clock, self._start_of_clock = clock, clock()
        self._battery_percent = battery_percent
        self._charging = CHARGING_FLAG if charging else 0
        self._flashes = [_FlashMemory(*one) for one in firmware.flashes]
        for address, data in flash_content:
            ctypes.memmove(self._place_of(address, len(data)), data, len(data))
        self._pool = LazyMemory(firmware.pool_bytes, ZEROS)
        self._pool_address = firmware.pool_address
        self._setup = Setup(
            board=self.board.name.encode(),
            flashes=(Flash * 2)(*(flash.descriptor() for flash in self._flashes)),
            regions=firmware.regions,
            pool=self._pool.start,
            pool_bytes=firmware.pool_bytes,
            seed=seed & 0xFFFFFFFF,
        )
        # The struct is to be 16-byte aligned; ctypes promises 8.
        self._memory = ctypes.create_string_buffer(self._library.tf_host_device_bytes() + 16)
        self._device = (ctypes.addressof(self._memory) + 15) & ~15
        self.done = Done()
        self._bytes_up = self._bytes_down = 0
        self._line_was_up = False
        self.hang_ups = 0
        self.power_on()

    def run(self, max_milliseconds: float) -> StopReason:
        """Poll the client until it has nothing to do, or the slice is over."""
        if not self.has_power:
            return StopReason.POWER_CUT
        # A clock that stands still while it is looked at lets the client work until it idles.
        end = self._clock() + max_milliseconds
        busy = True
        while busy and self._clock() < end:
            percent = max(0, min(100, round(self._battery_percent())))
            self.set_battery(percent | self._charging)
            busy = self._call("run", self._now(), _STEPS_BETWEEN_LOOKS)
            self._look_at_line()
        if not self.has_power:
            return StopReason.POWER_CUT
        return StopReason.SLICE_OVER if busy else StopReason.IDLE

    @property
    def has_power(self) -> bool:
        """False once an armed power cut has happened, until ``power_on``."""
        return bool(self._call("has_power"))

    def set_battery(self, charge: int) -> None:
        """As tf_port's: percent, with bit 7 while the device charges."""
        self._call("set_battery", charge)

    def record(self, label: int, payload: bytes) -> bool:
        """The application adds a sample of its sensor to the log; False where that can't be."""
        return bool(self._call("record", label, payload, len(payload)) == 0)

    def infer(self, samples: NDArray[np.int8]) -> NDArray[np.int32]:
        """What the application infers from samples (n, H, W, C), between two runs: classes (n,).

        Raises: ImageError while the client doesn't run.
        """
        pool = LazyMemory(self._pool.size, ZEROS)
        codes = np.ascontiguousarray(samples, np.int8)
        found = [self._call("infer", one.ctypes.data, pool.start, pool.size) for one in codes]
        if any(one < 0 for one in found):
            raise ImageError("the device has no power, or its client didn't start")
        return np.array(found, np.int32)

    def flip(self, address: int, bit: int) -> bool:
        """Turn over a bit at an address of the board: of its flash, or of the pool in its SRAM.

        False elsewhere: what the rest of the SRAM holds has other addresses here.
        """
        first = address - self._pool_address
        if 0 <= first < self._pool.size:
            place: int | None = self._pool.start + first
        else:
            place = next((at for one in self._flashes if (at := one.place_of(address, 1))), None)
        if place is None:
            return False
        ctypes.c_uint8.from_address(place).value ^= 1 << bit
        return True

    def work(self, costs: Costs, now: int, until: int, standing: Standing) -> bytes:
        """Run in virtual time, from ``now`` on, both in the device's nanoseconds: to ``until``, or
        until there is nothing to do, or there are bytes for the line.

        These are taken and returned; how it stands then is written to ``standing``, and what was
        done is added to ``done``.
        """
        self._work(
            self._device,
            ctypes.byref(costs),
            ctypes.byref(self.done),
            now,
            until,
            ctypes.byref(standing),
        )
        taken: int = standing.taken
        if not taken:
            return b""
        self._bytes_up += taken
        return ctypes.string_at(ctypes.addressof(standing) + Standing.bytes.offset, taken)

    def receive(self, data: bytes) -> int:
        """Bytes go into the device's ring; returns how many were taken."""
        taken = int(self._call("receive", data, len(data)))
        self._bytes_down += taken
        return taken

    @property
    def bytes_under_way(self) -> int:
        """Bytes arrive as soon as there is room for them."""
        return 0

    def take_transmitted(self) -> bytes:
        """Bytes that the firmware has sent since the last call."""
        buffer = ctypes.create_string_buffer(2048)
        count = self._call("take", buffer, len(buffer))
        data = buffer.raw[:count]
        self._bytes_up += len(data)
        return data

    @property
    def data_terminal_ready(self) -> bool:
        """Whether the device wants a connection."""
        return bool(self._call("dials"))

    def set_data_carrier_detect(self, connected: bool) -> None:
        """Tell the device whether the connection is there."""
        self._call("set_carrier", connected)

    @property
    def traffic(self) -> TrafficCount:
        """Bytes on the serial line since the machine was made."""
        return TrafficCount(self._bytes_up, self._bytes_down)

    @property
    def tick_milliseconds(self) -> float:
        """After how long the idle device wants to be run again when nothing happens."""
        wanted = self._call("next_run_ms")
        return float("inf") if wanted == NEVER_AGAIN else float(wanted)

    @property
    def flash_operations(self) -> int:
        """Words programmed and sectors erased since the machine was made."""
        return int(self._call("flash_operations"))

    @property
    def sector_erases(self) -> NDArray[np.uint32]:
        """How often each sector was erased since the machine was made, those of the external flash
        behind the internal ones, as far as they are used."""
        return np.concatenate([np.array(one.erases, np.uint32) for one in self._flashes])

    @property
    def device_state(self) -> int:
        """What its client is doing (wire.md, device states); 0 where it doesn't run."""
        return int(self._call("state"))

    def current_weights(self) -> bytes:
        """Digest of what the application infers with, while the client runs."""
        return self._digest("current_weights")

    def candidate_weights(self) -> bytes:
        """Digest of the candidate, or zeros, while the client runs."""
        return self._digest("candidate_weights")

    def _digest(self, which: str) -> bytes:
        digest = ctypes.create_string_buffer(_DIGEST_BYTES)
        self._call(which, digest)
        return digest.raw

    def end_of_pool(self, size: int) -> bytes:
        """The last bytes of the pool, zeros until somebody writes there."""
        return ctypes.string_at(self._pool.start + self._pool.size - size, size)

    def stack_high_water_bytes(self) -> int:
        """Unknown: the stack is the host's."""
        return 0

    def power_on(self, *, keep_sram: bool = False) -> None:
        """Start again; flash keeps its content. Nothing else ever outlives the power here."""
        del keep_sram
        self._library.tf_host_device_start(self._device, ctypes.addressof(self._setup), self._now())
        self._look_at_line()

    def cut_power_at_flash_operation(self, operations: int, seed: int) -> None:
        """Cut power in the ``operations``-th (from 1) flash operation from now."""
        self._setup.seed = seed & 0xFFFFFFFF
        self._call("cut_power", operations)

    def read_memory(self, address: int, size: int) -> bytes:
        """Bytes of the flash.

        Raises: ImageError outside of it.
        """
        return ctypes.string_at(self._place_of(address, size), size)

    def close(self) -> None:
        """Nothing to give back that the garbage collector doesn't."""

    def _place_of(self, address: int, size: int) -> int:
        for flash in self._flashes:
            place = flash.place_of(address, size)
            if place is not None:
                return place
        raise ImageError(f"{size} bytes at {address:#010x} lie outside the flash")

    def _call(self, name: str, *arguments: Any) -> Any:
        return getattr(self._library, f"tf_host_device_{name}")(self._device, *arguments)

    def _now(self) -> int:
        return int(self._clock() - self._start_of_clock) & 0xFFFFFFFF

    def _look_at_line(self) -> None:
        is_up = self.data_terminal_ready
        if self._line_was_up and not is_up:
            self.hang_ups += 1
        self._line_was_up = is_up


def _region(region: Any) -> Region:
    first, count = region.sectors
    return Region(region.address, region.bytes, first, count)
