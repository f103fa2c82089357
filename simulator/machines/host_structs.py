"""The structs of device_runtime/port/host/host_device.h, for ctypes."""

from __future__ import annotations

import ctypes


class Region(ctypes.Structure):
    """tf_flash_region of device_runtime/include/tinyfleet/flash.h."""

    _fields_ = (
        ("address", ctypes.c_uint32),
        ("bytes", ctypes.c_uint32),
        ("first_sector", ctypes.c_uint16),
        ("sector_count", ctypes.c_uint16),
    )


class Flash(ctypes.Structure):
    """tf_host_flash."""

    _fields_ = (
        ("content", ctypes.c_void_p),
        ("sector_bytes", ctypes.POINTER(ctypes.c_uint32)),
        ("address", ctypes.c_uint32),
        ("bytes", ctypes.c_uint32),
        ("sector_count", ctypes.c_uint32),
        ("erases", ctypes.POINTER(ctypes.c_uint32)),
    )


class SampleRegion(ctypes.Structure):
    """tf_sample_region of device_runtime/include/tinyfleet/sample_log.h."""

    _fields_ = (("region", Region), ("units", ctypes.c_uint16), ("keep", ctypes.c_uint8))


class Regions(ctypes.Structure):
    """tf_flash_layout of device_runtime/include/tinyfleet/flash_layout.h."""

    _fields_ = (
        ("identity", Region),
        ("journal", Region),
        ("slots", Region * 2),
        ("samples", SampleRegion),
        ("personal", Region),
    )


Secret = ctypes.CFUNCTYPE(
    ctypes.c_bool, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint8), ctypes.c_size_t
)
"""tf_port.secret of device_runtime/include/tinyfleet/port.h."""


class Setup(ctypes.Structure):
    """tf_host_setup."""

    _fields_ = (
        ("board", ctypes.c_char_p),
        ("flashes", Flash * 2),
        ("regions", Regions),
        ("pool", ctypes.c_void_p),
        ("pool_bytes", ctypes.c_uint32),
        ("seed", ctypes.c_uint32),
        ("fault_pc", ctypes.c_uint32),
        ("reset_cause", ctypes.c_uint8),
        ("fault_code", ctypes.c_uint8),
        ("secret", Secret),
    )


class Costs(ctypes.Structure):
    """tf_host_costs: nanoseconds; the arrays are by plan, as in the bundle."""

    _fields_ = (
        ("forward", ctypes.POINTER(ctypes.c_uint64)),
        ("step", ctypes.POINTER(ctypes.c_uint64)),
        ("poll", ctypes.c_uint64),
        ("flash_word", ctypes.c_uint64),
        ("flash_erase", ctypes.c_uint64),
        ("flash_erase_byte", ctypes.c_uint64),
    )


class Done(ctypes.Structure):
    """tf_host_done: what a device has done since its machine was made."""

    _fields_ = (
        ("forward_passes", ctypes.c_uint64),
        ("train_steps", ctypes.c_uint64),
        ("forward_nanoseconds", ctypes.c_uint64),
        ("train_nanoseconds", ctypes.c_uint64),
        ("flash_words", ctypes.c_uint64),
        ("flash_erases", ctypes.c_uint64),
        ("flash_bytes_erased", ctypes.c_uint64),
    )


class Standing(ctypes.Structure):
    """tf_host_standing; one serves all devices of a process."""

    _fields_ = (
        ("now", ctypes.c_uint64),
        ("next_run_ms", ctypes.c_uint32),
        ("taken", ctypes.c_uint32),
        ("is_busy", ctypes.c_bool),
        ("dials", ctypes.c_bool),
        ("has_power", ctypes.c_bool),
        ("bytes", ctypes.c_uint8 * 2048),
    )
