"""The same C as on the boards, as a shared library of this machine: hundreds of devices a core.

``build_host_library`` builds device_runtime/port/host with a bundle's model; a ``HostMachine``
is one device of it. It has the flash layout and the pool of the bundle's board, and its deltas
are bit-equal to the board's, but stack, faults and instruction counts are the host's.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from codegen.emit.zcbor_codec import CODEC_DEFINES
from codegen.firmware.boards import Board
from codegen.firmware.bundle import Bundle, RegionInfo, load_bundle
from codegen.firmware.flash_layout import KEEP_NUMBERS
from codegen.host_kernels import host_engine_sources
from codegen.host_toolchain import HostToolchain, Source, host_toolchain
from device_runtime import host_sources, include_directories
from simulator.clock import Milliseconds, host_milliseconds
from simulator.errors import ImageError
from simulator.machines.elf_image import load_elf
from simulator.machines.protocol import StopReason, TrafficCount

_STEPS_BETWEEN_LOOKS = 4
_NEVER = 0xFFFFFFFF
_CHARGING = 0x80  # TF_CHARGING in tinyfleet/port.h


class _Region(ctypes.Structure):
    _fields_ = (
        ("address", ctypes.c_uint32),
        ("bytes", ctypes.c_uint32),
        ("first_sector", ctypes.c_uint16),
        ("sector_count", ctypes.c_uint16),
    )


class _Flash(ctypes.Structure):
    """tf_host_flash of device_runtime/port/host/host_device.h."""

    _fields_ = (
        ("content", ctypes.c_void_p),
        ("sector_bytes", ctypes.POINTER(ctypes.c_uint32)),
        ("address", ctypes.c_uint32),
        ("bytes", ctypes.c_uint32),
        ("sector_count", ctypes.c_uint32),
    )


class _FlashMemory:
    """Erased sectors of a flash."""

    def __init__(self, address: int, sectors: Sequence[int]) -> None:
        self.address = address
        size = sum(sectors)
        self.content = (ctypes.c_uint8 * size).from_buffer(bytearray(b"\xff" * size))
        self._sectors = (ctypes.c_uint32 * len(sectors))(*sectors)

    def descriptor(self) -> _Flash:
        """For C, which keeps no reference to it."""
        content, count = self.content, len(self._sectors)
        return _Flash(ctypes.addressof(content), self._sectors, self.address, len(content), count)


def _flashes_of(board: Board, regions: Iterable[RegionInfo]) -> list[_FlashMemory]:
    """The internal flash, and as much of the external one as ``regions`` use."""
    flashes = [_FlashMemory(board.flash.address, board.flash.sectors)]
    external = board.external_flash
    ends = [sum(region.sectors) for region in regions if region.flash == "external"]
    if external is not None and ends:
        count = max(ends) - len(board.flash.sectors)
        flashes.append(_FlashMemory(external.address, external.sectors[:count]))
    return flashes


class _SampleRegion(ctypes.Structure):
    """tf_sample_region of device_runtime/include/tinyfleet/sample_log.h."""

    _fields_ = (("region", _Region), ("units", ctypes.c_uint16), ("keep", ctypes.c_uint8))


class _Regions(ctypes.Structure):
    """tf_flash_layout of device_runtime/include/tinyfleet/flash_layout.h."""

    _fields_ = (
        ("identity", _Region),
        ("journal", _Region),
        ("slots", _Region * 2),
        ("samples", _SampleRegion),
    )


class _Setup(ctypes.Structure):
    """tf_host_setup of host_device.h."""

    _fields_ = (
        ("board", ctypes.c_char_p),
        ("flashes", _Flash * 2),
        ("regions", _Regions),
        ("pool", ctypes.c_void_p),
        ("pool_bytes", ctypes.c_uint32),
        ("seed", ctypes.c_uint32),
        ("fault_pc", ctypes.c_uint32),
        ("reset_cause", ctypes.c_uint8),
        ("fault_code", ctypes.c_uint8),
    )


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
    ]
    (toolchain or host_toolchain()).build_host(
        [
            *host_engine_sources(generated),
            *(Source(path, flags=codec) for path in host_sources()),
        ],
        include_dirs=[folder, *include_directories()],
        output=output,
    )
    return output


@functools.lru_cache(maxsize=16)
def _library(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    pointer, word, flag = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_bool
    for name, result, arguments in (
        ("bytes", word, ()),
        ("start", ctypes.c_int, (pointer, pointer, word)),
        ("run", flag, (pointer, word, word)),
        ("next_run_ms", word, (pointer,)),
        ("receive", word, (pointer, ctypes.c_char_p, word)),
        ("take", word, (pointer, ctypes.c_char_p, word)),
        ("dials", flag, (pointer,)),
        ("set_carrier", None, (pointer, flag)),
        ("set_battery", None, (pointer, ctypes.c_uint8)),
        ("cut_power", None, (pointer, word)),
        ("has_power", flag, (pointer,)),
        ("flash_operations", word, (pointer,)),
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
        if not isinstance(bundle, Bundle):
            bundle = load_bundle(bundle)
        self.board = bundle.board
        self.fault: Exception | None = None
        self.last_fault: Exception | None = None
        self._library = _library(str(library))
        self._clock, self._start_of_clock = clock, clock()
        self._battery_percent = battery_percent
        self._charging = _CHARGING if charging else 0
        layout = bundle.manifest.flash
        self._flashes = _flashes_of(self.board, layout.regions.values())
        for address, data in flash_content:
            ctypes.memmove(self._place_of(address, len(data)), data, len(data))
        image = load_elf(bundle.firmware)
        pool_bytes = image.address_of("__pool_end") - image.address_of("__pool_start")
        self._pool = (ctypes.c_uint64 * (pool_bytes // 8))()
        self._setup = _Setup(
            board=self.board.name.encode(),
            flashes=(_Flash * 2)(*(flash.descriptor() for flash in self._flashes)),
            regions=_Regions(
                identity=_region(layout.identity),
                journal=_region(layout.journal),
                slots=(_Region * 2)(_region(layout.slot_a), _region(layout.slot_b)),
                samples=_SampleRegion(
                    _region(layout.samples),
                    layout.samples.units,
                    KEEP_NUMBERS[layout.samples.keep],
                ),
            ),
            pool=ctypes.addressof(self._pool),
            pool_bytes=pool_bytes // 8 * 8,
            seed=seed & 0xFFFFFFFF,
        )
        # The struct is to be 16-byte aligned; ctypes promises 8.
        self._memory = ctypes.create_string_buffer(self._library.tf_host_device_bytes() + 16)
        self._device = (ctypes.addressof(self._memory) + 15) & ~15
        self._operations_before = 0
        self._bytes_up = self._bytes_down = 0
        self._line_was_up = False
        self._started = False
        self.hang_ups = 0
        self.power_on()

    def run(self, max_milliseconds: float) -> StopReason:
        """Poll the client until it has nothing to do, or the slice is over."""
        if not self._has_power():
            return StopReason.POWER_CUT
        # A clock that stands still while it is looked at lets the client work until it idles.
        end = self._clock() + max_milliseconds
        busy = True
        while busy and self._clock() < end:
            percent = max(0, min(100, round(self._battery_percent())))
            self._call("set_battery", percent | self._charging)
            busy = self._call("run", self._now(), _STEPS_BETWEEN_LOOKS)
            self._look_at_line()
        if not self._has_power():
            return StopReason.POWER_CUT
        return StopReason.SLICE_OVER if busy else StopReason.IDLE

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
        return float("inf") if wanted == _NEVER else float(wanted)

    @property
    def flash_operations(self) -> int:
        """Words programmed and sectors erased since the machine was made."""
        return self._operations_before + int(self._call("flash_operations"))

    def stack_high_water_bytes(self) -> int:
        """Unknown: the stack is the host's."""
        return 0

    def power_on(self, *, keep_sram: bool = False) -> None:
        """Start again; flash keeps its content. Nothing else ever outlives the power here."""
        del keep_sram
        if self._started:
            self._operations_before = self.flash_operations
        self._library.tf_host_device_start(self._device, ctypes.addressof(self._setup), self._now())
        self._started = True
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
            first = address - flash.address
            if first >= 0 and first + size <= len(flash.content):
                return ctypes.addressof(flash.content) + first
        raise ImageError(f"{size} bytes at {address:#010x} lie outside the flash")

    def _call(self, name: str, *arguments: Any) -> Any:
        return getattr(self._library, f"tf_host_device_{name}")(self._device, *arguments)

    def _has_power(self) -> bool:
        return bool(self._call("has_power"))

    def _now(self) -> int:
        return int(self._clock() - self._start_of_clock) & 0xFFFFFFFF

    def _look_at_line(self) -> None:
        is_up = self.data_terminal_ready
        if self._line_was_up and not is_up:
            self.hang_ups += 1
        self._line_was_up = is_up


def _region(region: Any) -> _Region:
    first, count = region.sectors
    return _Region(region.address, region.bytes, first, count)
