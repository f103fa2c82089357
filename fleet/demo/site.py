"""All the real services of a small fleet on one machine, as one context manager.

A broker, gateway daemons, a SuperLink with its SuperExec, a SuperNode beside each gateway, and
the emulated boards. Every part can be killed and started again, which is what the kill tests do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fleet.coordinator.superlink import ManagedProcess, SuperLink, SuperNode
from fleet.demo.private import PrivateFleet
from fleet.errors import GatewayError
from fleet.gateway.broker import Broker, BrokerConfig, new_passwords
from fleet.gateway.client import GatewayClient
from fleet.gateway.config import BrokerSettings, GatewaySettings
from fleet.ports import free_port
from simulator.fleet.fleet import Fleet, worker_count
from simulator.machines.device_spec import DeviceSpec

FLEET = "demo"
_GATEWAY_START_SECONDS = 60.0


class GatewayProcess(ManagedProcess):
    """A gateway daemon as a child process, with its own socket, store and log."""

    def __init__(
        self,
        work: Path,
        gateway: str,
        devices: Sequence[str],
        broker_port: int,
        password: str,
    ) -> None:
        """Write the daemon's configuration into ``work``; nothing runs yet."""
        self.gateway = gateway
        self.socket = work / f"{gateway}.sock"
        secret = work / f"{gateway}.password"
        secret.touch(mode=0o600)
        secret.write_text(password + "\n", encoding="utf-8")
        config = work / f"{gateway}.toml"
        GatewaySettings(
            fleet=FLEET,
            gateway=gateway,
            store=work / f"{gateway}.sqlite",
            socket=self.socket,
            devices=tuple(devices),
            broker=BrokerSettings(port=broker_port, user=gateway, password_file=secret),
        ).write(config)
        super().__init__(
            f"gateway {gateway}",
            [sys.executable, "-m", "fleet.gateway", "--config", str(config)],
            work / "logs" / f"gateway-{gateway}.log",
            os.environ,
        )

    def wait_ready(self, seconds: float = _GATEWAY_START_SECONDS) -> None:
        """Wait until the socket answers. Raises `FlowerError` or `GatewayError` otherwise."""
        client = GatewayClient(self.socket, timeout_seconds=5.0)
        end = time.monotonic() + seconds
        while True:
            self.require_alive()
            try:
                client.hello()
                return
            except GatewayError:
                if time.monotonic() > end:
                    raise
            time.sleep(0.05)


class Site:
    """The services and boards of a demo; ``with`` starts them and always stops them all.

    Attributes: `broker`, `gateways` (by name), `superlink`, `nodes` (by gateway), `boards`, and
    `private`, the keys and the unmasker of a site that has some.
    State that outlives nothing lies in a temporary folder; logs are kept in `logs`.
    """

    def __init__(
        self,
        devices: Mapping[str, Sequence[str]],
        logs: Path,
        *,
        passwords: Mapping[str, str] | None = None,
        broker_port: int | None = None,
        least_devices: int = 0,
    ) -> None:
        """`devices` are the device names of each gateway; nothing is started yet.

        With `least_devices` its devices have keys, and there is an unmasker that answers for sets
        of so many.
        """
        self.logs = logs
        # Short, because the path of a unix socket is limited to about 100 bytes.
        self.work = Path(tempfile.mkdtemp(prefix="tinyfleet-"))
        self._stack = contextlib.ExitStack()
        everyone = [device for names in devices.values() for device in names]
        self.device_passwords = dict(passwords or new_passwords(everyone))
        gateway_passwords = new_passwords(devices)
        self.broker = Broker(
            self.work / "broker",
            BrokerConfig(
                fleet=FLEET,
                gateways=gateway_passwords,
                devices=self.device_passwords,
                port=broker_port or free_port(),
            ),
        )
        self.gateways = {
            name: GatewayProcess(self.work, name, names, self.broker.port, gateway_passwords[name])
            for name, names in devices.items()
        }
        self.superlink = SuperLink(self.work / "flower")
        self.nodes = {
            name: SuperNode(self.work / "flower", self.superlink.address, name, gateway.socket)
            for name, gateway in self.gateways.items()
        }
        self.private: PrivateFleet | None = None
        if least_devices:
            self.private = PrivateFleet(self.work, FLEET, everyone, least_devices)
        self.boards: Fleet | None = None

    def __enter__(self) -> Self:
        """Start the broker, the gateways and Flower, and wait until they answer."""
        self._stack.callback(self._leave)
        try:
            self._stack.enter_context(self.broker)
            for gateway in self.gateways.values():
                self._stack.enter_context(gateway)
            self._stack.enter_context(self.superlink)
            for node in self.nodes.values():
                self._stack.enter_context(node)
            if self.private is not None:
                self._stack.enter_context(self.private.unmasker)
                self.private.wait_ready()
            for gateway in self.gateways.values():
                gateway.wait_ready()
        except BaseException:
            self._stack.close()
            raise
        return self

    def boot(self, devices: Sequence[DeviceSpec]) -> Fleet:
        """Boot the boards; they run until the site is left."""
        if self.private is not None:
            devices = self.private.provisioned(devices)
        fleet = Fleet(devices, (self.broker.host, self.broker.port), workers=worker_count())
        self.boards = self._stack.enter_context(fleet)
        return self.boards

    def online(self) -> set[str]:
        """Devices that a gateway knows to be online."""
        found = set()
        for gateway in self.gateways.values():
            for device in GatewayClient(gateway.socket).devices():
                if device["online"]:
                    found.add(str(device["device"]))
        return found

    def accepted(self, campaign: str, number: int) -> int:
        """Deltas of a round that the gateways have accepted so far."""
        accepted = 0
        for gateway in self.gateways.values():
            # One that is being started again is asked at the next look.
            with contextlib.suppress(GatewayError):
                accepted += int(GatewayClient(gateway.socket).collect(campaign, number)["accepted"])
        return accepted

    def _leave(self) -> None:
        """Keep the logs, drop the rest."""
        self.logs.mkdir(parents=True, exist_ok=True)
        for folder in (self.work / "logs", self.work / "flower" / "logs"):
            if folder.is_dir():
                shutil.copytree(folder, self.logs, dirs_exist_ok=True)
        if self.broker.log_path.exists():
            shutil.copy(self.broker.log_path, self.logs / "mosquitto.log")
        shutil.rmtree(self.work, ignore_errors=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop everything that was started, last one first."""
        self._stack.close()
