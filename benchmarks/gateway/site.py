"""What is measured: a Mosquitto, a gateway process with its store on disk; and the devices."""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import cbor2

from benchmarks.gateway import load
from benchmarks.gateway.device import FLEET, GATEWAY
from benchmarks.gateway.load import State, Told
from fleet.errors import GatewayError
from fleet.gateway.broker import Broker, BrokerConfig, new_passwords
from fleet.gateway.client import GatewayClient
from fleet.gateway.config import BrokerSettings, GatewaySettings
from fleet.ports import free_port

_TICKS = os.sysconf("SC_CLK_TCK")
_FRAME_HEAD_BYTES = 4


def allow_connections(count: int) -> None:
    """Let this process and its children have so many sockets; SystemExit where that can't be."""
    wanted = count + 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    except (ValueError, OSError):
        sys.exit(f"{count} connections need {wanted} open files, {hard} are allowed: ulimit -n")


@dataclass(frozen=True)
class Usage:
    """What a process has taken since it began."""

    cpu_seconds: float = 0.0
    bytes_written: int = 0
    """To disks."""

    @classmethod
    def of(cls, pid: int) -> Usage:
        """Of a process that lives."""
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        io = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
        return cls((int(fields[11]) + int(fields[12])) / _TICKS, int(io["write_bytes"]))

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.cpu_seconds + other.cpu_seconds, self.bytes_written + other.bytes_written)

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.cpu_seconds - other.cpu_seconds, self.bytes_written - other.bytes_written)


def most_memory(pid: int) -> int:
    """The largest resident memory that a process has had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024


class Site:
    """All three processes; a context manager that ends them."""

    def __init__(self, folder: Path, devices: int, values: int, train_seconds: float) -> None:
        """Write all configurations into ``folder``; nothing runs yet."""
        names = [f"device-{number:05}" for number in range(devices)]
        passwords = new_passwords([GATEWAY, *names])
        self.folder = folder
        self.values = values
        self._train_seconds = train_seconds
        self._passwords = {name: passwords[name] for name in names}
        config = BrokerConfig(FLEET, {GATEWAY: passwords[GATEWAY]}, self._passwords, free_port())
        self.broker = Broker(folder / "broker", config)
        password_file = folder / "gateway.password"
        password_file.write_text(passwords[GATEWAY] + "\n")
        self._settings = GatewaySettings(
            fleet=FLEET,
            gateway=GATEWAY,
            store=folder / "store.sqlite",
            socket=folder / "gateway.sock",
            broker=BrokerSettings(port=config.port, user=GATEWAY, password_file=password_file),
        )
        self._client = GatewayClient(self._settings.socket)
        self._gateway: subprocess.Popen[bytes] | None = None
        self._ended = {"gateway": Usage(), "broker": Usage()}
        self._gateway_memory = 0
        self.control_bytes: dict[str, int] = {}
        """The longest request or reply of every operation."""

    @property
    def names(self) -> list[str]:
        """Of the devices, by number."""
        return list(self._passwords)

    def __enter__(self) -> Self:
        """Start all, connect nobody yet."""
        self.broker.start()
        self.start_gateway()
        self._control, theirs = multiprocessing.Pipe()
        address = (self.broker.host, self.broker.port)
        context = multiprocessing.get_context("spawn")
        arguments = (self._passwords, self.values, self._train_seconds, address, theirs)
        self._load = context.Process(target=load.run, args=arguments, daemon=True)
        self._load.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End all."""
        if self._load.is_alive():
            self._control.send("stop")
            self._load.join(5)
            self._load.kill()
        if self._gateway is not None:
            self._gateway.terminate()
            self._gateway.wait()
        self.broker.stop()

    # ---- the three processes ---------------------------------------------------------

    def start_gateway(self) -> None:
        """Start it and wait for its socket."""
        config = self.folder / "gateway.toml"
        self._settings.write(config)
        with (self.folder / "gateway.log").open("ab") as log:
            self._gateway = subprocess.Popen(
                [sys.executable, "-m", "fleet.gateway", "--config", str(config)],
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + 60
        while True:
            try:
                self.ask("hello", cursor=0)
                return
            except GatewayError:
                if self._gateway.poll() is not None or time.monotonic() > end:
                    log_text = (self.folder / "gateway.log").read_text()
                    sys.exit(f"the gateway doesn't run:\n{log_text[-3000:]}")
                time.sleep(0.05)

    def kill_gateway(self) -> None:
        """As a power cut does it."""
        assert self._gateway is not None
        self._remember("gateway", self._gateway.pid)
        self._gateway_memory = self.gateway_memory
        self._gateway.kill()
        self._gateway.wait()

    def kill_broker(self) -> None:
        """As a power cut does it."""
        assert self.broker.pid is not None
        self._remember("broker", self.broker.pid)
        self.broker.kill()

    def _remember(self, process: str, pid: int) -> None:
        self._ended[process] += Usage.of(pid)

    def usage(self) -> dict[str, Usage]:
        """Of all processes so far, those that were killed included."""
        assert self._gateway is not None
        assert self.broker.pid is not None
        assert self._load.pid is not None
        return {
            "gateway": self._ended["gateway"] + Usage.of(self._gateway.pid),
            "broker": self._ended["broker"] + Usage.of(self.broker.pid),
            "load": Usage.of(self._load.pid),
        }

    @property
    def gateway_memory(self) -> int:
        """The most that the gateway has taken, in bytes."""
        assert self._gateway is not None
        return max(self._gateway_memory, most_memory(self._gateway.pid))

    # ---- asking ----------------------------------------------------------------------

    def ask(self, operation: str, **fields: Any) -> dict[str, Any]:
        """A request on the gateway's socket; GatewayError where it isn't there."""
        reply = self._client.request(operation, fields)
        for message in ({"op": operation, **fields}, {"ok": True, **reply}):
            size = _FRAME_HEAD_BYTES + len(cbor2.dumps(message))
            self.control_bytes[operation] = max(size, self.control_bytes.get(operation, 0))
        return reply

    def state(self) -> State:
        """How the devices are doing."""
        self._control.send("state")
        return cast(State, self._receive())

    def told(self, round: int) -> Mapping[str, Told | None]:
        """Receipts that devices have got for a round, by name."""
        self._control.send(("told", round))
        return cast("Mapping[str, Told | None]", self._receive())

    def _receive(self) -> Any:
        control: Connection = self._control
        while not control.poll(1.0):
            if not self._load.is_alive():
                sys.exit("the devices' process has failed")
        return control.recv()
