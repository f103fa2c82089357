"""A worker of a fleet: ``python -m simulator.fleet.worker FD``, started by the fleet.

One event loop: commands of the parent, sockets of the modems, slices of the machines. A
machine that has work to do gets a slice in turn; one that idles is run again when bytes came
for it or its timer tick is due. Bytes come first, since a device that was woken up by them
mostly needs microseconds.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import math
import multiprocessing.connection
import os
import selectors
import signal
import socket
import ssl
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from simulator.clock import Milliseconds, host_milliseconds
from simulator.devices.modem import Modem
from simulator.errors import FleetError
from simulator.fleet.fleet import (
    Command,
    DeviceStats,
    Reply,
    WorkerSettings,
    WorkerStats,
    resident_bytes,
)
from simulator.machines.device_spec import DeviceSpec
from simulator.machines.protocol import StopReason
from simulator.machines.registry import build_machine

_LONGEST_SLEEP_SECONDS = 0.5


@functools.cache
def tls_context(ca_file: Path) -> ssl.SSLContext:
    """What believes servers for whom ``ca_file`` vouches; one for all devices of a worker.

    Raises: FleetError where the file can't be used.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # of ssl, too
        raise FleetError(
            f"{ca_file} can't be used as certificate of an authority ({error}); give the ca.crt of "
            "the site's certificates"
        ) from None


class _Device:
    """A machine with its modem and its place in the worker's queues."""

    def __init__(self, spec: DeviceSpec, worker: _Worker) -> None:
        self.spec = spec
        prepared = worker.prepared[spec.machine, str(spec.bundle)]
        self.machine = build_machine(spec, prepared, worker.clock)
        place = spec.place or worker.broker
        assert place is not None, "the fleet has seen to it"
        self.modem = Modem(
            self.machine,
            (place.host, place.port),
            tls=tls_context(place.ca_file) if place.ca_file is not None else None,
            clock=worker.clock,
            on_socket=functools.partial(worker.socket_changed, self),
        )
        self.state = "running"
        self.fault: str | None = None
        self._noted_fault: Exception | None = None
        self.resets = 0
        self.busy_seconds = 0.0
        self.off_seconds = 0.1
        self.queued = False
        self.wake_at = 0.0
        self.events = 0

    def note_fault(self) -> None:
        """Tell of a fault since the last time."""
        fault = self.machine.last_fault
        if fault is not None and fault is not self._noted_fault:
            self.fault = f"device {self.spec.device}: {fault}"
            print(self.fault, file=sys.stderr, flush=True)
        self._noted_fault = fault

    def stats(self) -> DeviceStats:
        traffic = self.machine.traffic
        return DeviceStats(
            self.state,
            self.fault,
            self.modem.state.value,
            self.modem.last_error,
            traffic.up,
            traffic.down,
            self.resets,
            self.modem.dials,
            self.machine.flash_operations,
            self.machine.stack_high_water_bytes(),
            self.busy_seconds,
        )


class _Worker:
    def __init__(self, settings: WorkerSettings, connection: Any, clock: Milliseconds) -> None:
        self.broker = settings.broker
        self.prepared = settings.prepared
        self.clock = clock
        self._slice = settings.slice_milliseconds
        self._connection = connection
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection.fileno(), selectors.EVENT_READ, None)
        self._runnable: deque[_Device] = deque()
        self._sleeping: list[tuple[float, int, _Device]] = []
        self._sequence = 0
        self._devices: dict[str, _Device] = {}
        self._ended = False
        for spec in settings.devices:
            self._devices[spec.device] = _Device(spec, self)
        for device in self._devices.values():
            self._wake(device)

    # --- Loop ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Until the parent closes its end."""
        while not self._ended:
            self._poll(self._timeout())
            self._wake_sleepers()
            if self._runnable:
                self._run_one(self._runnable.popleft())
        for device in self._devices.values():
            device.modem.close()
            device.machine.close()

    def _seconds(self) -> float:
        return self.clock() / 1000.0

    def _timeout(self) -> float | None:
        if self._runnable:
            return 0.0
        if self._sleeping:
            return max(0.0, self._sleeping[0][0] - self._seconds())
        return None

    def _poll(self, timeout: float | None) -> None:
        for key, mask in self._selector.select(timeout):
            device = key.data
            if device is None:
                self._obey()
                continue
            reached = device.modem.step(
                readable=bool(mask & selectors.EVENT_READ),
                writable=bool(mask & selectors.EVENT_WRITE),
            )
            self._watch(device)
            if reached and device.state == "idle":
                self._wake(device, first=True)

    def _wake_sleepers(self) -> None:
        now = self._seconds()
        while self._sleeping and self._sleeping[0][0] <= now:
            due, _, device = heapq.heappop(self._sleeping)
            if due != device.wake_at or device.queued:
                continue  # it was woken up in another way since
            if device.state == "off":
                device.machine.power_on()
                device.state = "running"
            self._wake(device)

    def _wake(self, device: _Device, *, first: bool = False) -> None:
        if device.queued or device.state in ("off", "fault"):
            return
        device.queued = True
        device.wake_at = 0.0
        if first:
            self._runnable.appendleft(device)
        else:
            self._runnable.append(device)

    def _sleep(self, device: _Device, seconds: float) -> None:
        if math.isinf(seconds):
            device.wake_at = 0.0
            return
        device.wake_at = self._seconds() + seconds
        self._sequence += 1
        heapq.heappush(self._sleeping, (device.wake_at, self._sequence, device))

    def _run_one(self, device: _Device) -> None:
        device.queued = False
        if device.state in ("off", "fault"):
            return
        start = time.perf_counter()
        reason = device.machine.run(self._slice)
        device.busy_seconds += time.perf_counter() - start
        device.note_fault()
        reached = device.modem.step()
        self._watch(device)
        if reason is StopReason.IDLE:
            device.state = "idle"
            if reached:
                self._wake(device, first=True)  # the line has something to bring
            else:
                wanted = device.machine.tick_milliseconds / 1000.0
                self._sleep(device, min(wanted, _LONGEST_SLEEP_SECONDS, device.modem.wait_seconds))
        elif reason is StopReason.FAULT:
            device.state = "fault"
            device.modem.close()
        elif reason is StopReason.POWER_CUT:
            self._switch_off(device, device.off_seconds)
        else:
            if reason is StopReason.RESET:
                device.resets += 1
            device.state = "running"
            self._wake(device)

    def _switch_off(self, device: _Device, seconds: float) -> None:
        device.state = "off"
        device.modem.close()
        self._sleep(device, seconds)

    # --- Sockets -------------------------------------------------------------------------------

    def socket_changed(self, device: _Device, stream: socket.socket | None) -> None:
        """The modem made a socket, or is about to close the one it has."""
        device.events = 0
        if stream is None and device.modem.socket is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(device.modem.socket)

    def _watch(self, device: _Device) -> None:
        """Let the selector wait for what the modem can use now."""
        stream = device.modem.socket
        if stream is None:
            return
        wanted = (selectors.EVENT_READ if device.modem.wants_read else 0) | (
            selectors.EVENT_WRITE if device.modem.wants_write else 0
        )
        if wanted == device.events:
            return
        if not wanted:
            self._selector.unregister(stream)
        elif device.events:
            self._selector.modify(stream, wanted, device)
        else:
            self._selector.register(stream, wanted, device)
        device.events = wanted

    # --- Commands ------------------------------------------------------------------------------

    def _obey(self) -> None:
        try:
            command: Command = self._connection.recv()
        except (EOFError, OSError):
            self._ended = True
            return
        try:
            reply = Reply(getattr(self, f"_do_{command.name}")(*command.arguments))
        except Exception as error:  # the worker goes on whatever a command does
            reply = Reply(error=f"{command.name}{command.arguments}: {error}")
        try:
            self._connection.send(reply)
        except OSError:
            self._ended = True

    def _do_stats(self) -> WorkerStats:
        resident, proportional = resident_bytes()
        devices = {name: device.stats() for name, device in self._devices.items()}
        return WorkerStats(os.getpid(), resident, proportional, devices)

    def _do_power_cycle(self, name: str, off_seconds: float) -> None:
        device = self._devices[name]
        device.fault = None
        self._switch_off(device, off_seconds)

    def _do_cut_power_at_flash_operation(
        self, name: str, operations: int, seed: int, off_seconds: float
    ) -> None:
        device = self._devices[name]
        device.off_seconds = off_seconds
        device.machine.cut_power_at_flash_operation(operations, seed)

    def _do_read_flash(self, name: str, address: int, size: int) -> bytes:
        return self._devices[name].machine.read_memory(address, size)


def serve(connection: Any, clock: Milliseconds = host_milliseconds) -> None:
    """Be the worker of whoever holds the other end, until it is closed.

    Machines, modems and times without power all go by ``clock``. Where it runs ahead of the host's
    the worker sees that at the next command, byte or tick.
    """
    try:
        worker = _Worker(connection.recv(), connection, clock)
    except EOFError:
        return
    except FleetError as error:
        connection.send(Reply(error=str(error)))
        return
    connection.send(Reply())
    worker.run()


def main() -> None:
    """Run the worker whose parent holds the other end of the given socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    serve(multiprocessing.connection.Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
