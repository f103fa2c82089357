"""The structs of device_runtime/port/host/host_device.h, for ctypes."""

from __future__ import annotations

import ctypes


class Region(ctypes.Structure):
    _fields_ = [
        ("address", ctypes.c_uint32),
        ("bytes", ctypes.c_uint32),
        ("first_sector", ctypes.c_uint16),
        ("sector_count", ctypes.c_uint16),
    ]


class Flash(ctypes.Structure):
    """``tf_host_flash``."""

    _fields_ = [
        ("content", ctypes.c_void_p),
        ("sector_bytes", ctypes.c_void_p),
        ("address", ctypes.c_uint32),
        ("bytes", ctypes.c_uint32),
        ("sector_count", ctypes.c_uint32),
        ("erases", ctypes.c_void_p),
    ]


class SampleRegion(ctypes.Structure):
    _fields_ = [("region", Region), ("units", ctypes.c_uint16), ("keep", ctypes.c_uint8)]


class Regions(ctypes.Structure):
    """``tf_flash_layout``."""

    _fields_ = [
        ("identity", Region),
        ("journal", Region),
        ("slots", Region * 2),
        ("samples", SampleRegion),
        ("personal", Region),
    ]


Secret = ctypes.CFUNCTYPE(
    ctypes.c_bool, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint8), ctypes.c_size_t
)
"""``tf_port.secret``."""


class Setup(ctypes.Structure):
    """``tf_host_setup``."""

    _fields_ = [
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
    ]
