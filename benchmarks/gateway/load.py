"""All devices of the benchmark in one process: sockets and epoll, nothing in between.

It shares the machine with what it measures, so it does as little as it can.
"""

from __future__ import annotations

import heapq
import random
import select
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from benchmarks.gateway.deltas import Deltas
from benchmarks.gateway.device import Device, Told

# Fewer than the broker's listen queue holds.
CONNECTING_AT_ONCE = 64
# After a lost connection: a modem is never back at once, nor all modems in one instant.
RECONNECT_SECONDS = (1.0, 6.0)
WAKE_SECONDS = 0.25
READ_BYTES = 1 << 16


@dataclass(frozen=True)
class State:
    """How the devices are doing."""

    connected: int
    busy: int
    sent: int
    """Deltas, those sent again included."""
    reconnections: int


@dataclass(eq=False)
class _Link:
    device: Device
    socket: socket.socket | None = None
    unsent: bytes = b""


class Load:
    """The event loop; ``control`` asks ``state``, ``told`` (with a round) and ``stop``."""

    def __init__(self, devices: Sequence[Device], address: tuple[str, int], control: Connection):
        self._links = [_Link(device) for device in devices]
        self._address = address
        self._control = control
        self._epoll = select.epoll()
        self._by_fd: dict[int, _Link] = {}
        self._connecting = 0
        self._reconnections = 0
        # When to connect, and which.
        self._to_connect: list[tuple[float, int]] = [(0.0, n) for n in range(len(devices))]

    def run(self) -> None:
        """Until ``stop``."""
        control = self._control.fileno()
        self._epoll.register(control, select.EPOLLIN)
        next_wake = time.monotonic() + WAKE_SECONDS
        while True:
            events = self._epoll.poll(0.05 if self._to_connect else WAKE_SECONDS)
            now = time.monotonic()
            for fd, event in events:
                if fd == control:
                    if not self._answer():
                        return
                    continue
                link = self._by_fd.get(fd)
                if link is not None:
                    self._serve(link, event, now)
            if now >= next_wake:
                next_wake = now + WAKE_SECONDS
                for link in self._links:
                    if link.device.due <= now:
                        self._send(link, link.device.wake(now))
            self._connect_some(now)

    def _answer(self) -> bool:
        return self._reply_to(self._control.recv())

    def _reply_to(self, wanted: object) -> bool:
        match wanted:
            case "state":
                devices = [link.device for link in self._links]
                self._control.send(
                    State(
                        sum(device.connected for device in devices),
                        sum(device.busy for device in devices),
                        sum(device.sent for device in devices),
                        self._reconnections,
                    )
                )
            case ("told", round):
                told = {link.device.name: link.device.told.get(round) for link in self._links}
                self._control.send(told)
            case _:
                return False
        return True

    def _connect_some(self, now: float) -> None:
        while (
            self._to_connect
            and self._to_connect[0][0] <= now
            and self._connecting < CONNECTING_AT_ONCE
        ):
            _, number = heapq.heappop(self._to_connect)
            link = self._links[number]
            link.socket = socket.socket()
            link.socket.setblocking(False)
            link.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.socket.connect_ex(self._address)
            link.unsent = link.device.connect()
            self._connecting += 1
            self._by_fd[link.socket.fileno()] = link
            self._epoll.register(link.socket, select.EPOLLIN | select.EPOLLOUT)

    def _serve(self, link: _Link, event: int, now: float) -> None:
        assert link.socket is not None
        if event & select.EPOLLOUT and link.unsent:
            waiting, link.unsent = link.unsent, b""
            self._send(link, waiting)
            if not link.unsent and link.socket is not None:
                self._epoll.modify(link.socket, select.EPOLLIN)
        if event & ~select.EPOLLOUT and link.socket is not None:
            try:
                data = link.socket.recv(READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lost(link, now)
                return
            was = link.device.connected
            self._send(link, link.device.receive(data, now))
            self._connecting -= link.device.connected and not was

    def _send(self, link: _Link, data: bytes) -> None:
        if not data or link.socket is None:
            return
        if link.unsent:
            link.unsent += data
            return
        try:
            sent = link.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # epoll tells that it is gone
        if sent < len(data):
            link.unsent = data[sent:]
            self._epoll.modify(link.socket, select.EPOLLIN | select.EPOLLOUT)

    def _lost(self, link: _Link, now: float) -> None:
        assert link.socket is not None
        self._connecting -= not link.device.connected
        self._reconnections += 1
        del self._by_fd[link.socket.fileno()]
        link.socket.close()  # epoll forgets it
        link.socket, link.unsent = None, b""
        link.device.lost()
        again = now + random.uniform(*RECONNECT_SECONDS)
        heapq.heappush(self._to_connect, (again, link.device.number))


def run(
    passwords: Mapping[str, str],
    values: int,
    train_seconds: float,
    address: tuple[str, int],
    control: Connection,
) -> None:
    """The process's main function; ``passwords`` by device, of which the last trains longest."""
    deltas = Deltas(values)
    devices = [
        Device(number, name, password, deltas, train_seconds * number / len(passwords))
        for number, (name, password) in enumerate(passwords.items())
    ]
    Load(devices, address, control).run()


__all__ = ["Load", "State", "Told", "run"]
