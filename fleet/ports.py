"""TCP ports for services that are started, killed and found again on one machine."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_OUTGOING = (32_768, 60_999)
_LOWEST, _HIGHEST = 10_000, 65_535
_TRIES = 100


def free_port() -> int:
    """A TCP port of loopback that is free at the moment and that no outgoing connection will take.

    Kernels give outgoing connections a port of a range of their own. Of that range, somebody's
    client could have it before the service binds it; and a client that dials a service while it is
    down could get the very port that it dials, and be connected to itself.
    """
    lowest, highest = _outgoing()
    chosen = random.SystemRandom()
    for _ in range(_TRIES):
        port = chosen.randint(_LOWEST, _HIGHEST)
        if lowest <= port <= highest:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _outgoing() -> tuple[int, int]:
    """The first and the last port of outgoing connections."""
    try:
        lowest, highest = map(int, _OUTGOING.read_text().split())
    except (OSError, ValueError):
        return _USUAL_OUTGOING
    return lowest, highest
