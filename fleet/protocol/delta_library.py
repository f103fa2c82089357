"""The device's own delta decoder (``device_runtime/codec/delta_decode.c``), built for this machine.

``setup.py`` builds it into the package. Where that wasn't possible there is none, and
:mod:`fleet.protocol.delta_coding` does with numpy what this does a hundred times faster.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fleet.errors import CodingError

LIBRARY = Path(__file__).with_name("_delta_decoder.so")
REMEDY = "install a C compiler (apt-get install gcc) and tinyfleet again"

Decoder = Callable[[bytes, int], NDArray[np.int32]]

log = logging.getLogger(__name__)


@functools.cache
def installed() -> Decoder | None:
    """The decoder that was built with this package; the log says once where there is none."""
    try:
        return load(LIBRARY)
    except OSError as error:
        log.warning("deltas are decoded with numpy, a hundred times slower: %s; %s", error, REMEDY)
        return None


def load(library: Path) -> Decoder:
    """The decoder in a shared library; OSError where it can't be loaded."""
    # PyDLL, which doesn't let other threads run meanwhile: decoding takes less time than it may
    # take to get Python's lock back from a busy thread.
    decode = ctypes.PyDLL(str(library)).tf_delta_decode
    decode.restype = ctypes.c_int
    decode.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_uint32]

    def decoder(data: bytes, count: int) -> NDArray[np.int32]:
        values = np.empty(count, np.int32)
        if decode(data, len(data), values.ctypes.data, count):
            raise CodingError(f"{len(data)} bytes aren't the canonical form of {count} values")
        return values

    return decoder
