"""Boards in QEMU in a fleet: its worker, its modems, a real broker and gateway."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from codegen.firmware.bundle import Bundle
from fleet.demo.site import GatewayProcess
from fleet.gateway.broker import Broker, BrokerConfig, new_passwords
from fleet.gateway.client import GatewayClient
from fleet.ports import free_port
from simulator.fleet.fleet import Fleet
from simulator.machines.device_spec import DeviceSpec
from tests import processes
from tests.patience import wait_until
from tests.simulator.conftest import skip_without
from tests.simulator.fleet.test_firmware import (
    BOARDED,
    CAMPAIGN,
    LABELS,
    SAMPLES,
    World,
    other_weights,
    running,
)

pytestmark = [pytest.mark.slow]


@pytest.fixture
def bundle(compiled: Callable[[str], Bundle]) -> Bundle:
    return compiled("mps2-an505")


@pytest.fixture
def world(bundle: Bundle, tmp_path: Path) -> World:
    skip_without("qemu")
    return World(tmp_path, bundle, machine="qemu")


def test_a_board_in_qemu_whose_power_fails_while_it_writes_takes_part_all_the_same(
    world: World, bundle: Bundle
) -> None:
    with running(world):
        world.fleet.cut_power_at_flash_operation(BOARDED, 300, seed=1)
        world.start(1, BOARDED, other_weights(bundle))
        result = world.collect(1)
        stats = world.fleet.stats()[BOARDED]
    assert result["accepted"] == 1
    assert stats.dials == 2


def sums_of_a_round(
    folder: Path, compiled: Callable[[str], Bundle], machines: Mapping[str, tuple[str, str]]
) -> bytes:
    """What a gateway adds up from devices by name, each a board and a machine."""
    (folder / "logs").mkdir(parents=True)
    passwords, gateway_password = new_passwords([*machines]), new_passwords(["gw"])
    broker = Broker(folder, BrokerConfig("demo", gateway_password, passwords, port=free_port()))
    gateway = GatewayProcess(folder, "gw", [*machines], broker.port, gateway_password["gw"])
    specs = [
        DeviceSpec(name, compiled(board).path, passwords[name], SAMPLES, LABELS, machine=machine)
        for name, (board, machine) in machines.items()
    ]
    with broker, gateway:
        gateway.wait_ready()
        client = GatewayClient(gateway.socket)
        with Fleet(specs, ("127.0.0.1", broker.port), workers=2) as fleet:

            def online() -> int:
                assert not any(one.fault for one in fleet.stats().values())
                return sum(one["online"] for one in client.hello()["devices"])

            wait_until(lambda: online() == len(machines), "all to be online")
            bundle = next(iter(map(compiled, (board for board, _ in machines.values()))))
            plan, blob = bundle.manifest.plans[1], other_weights(bundle)
            digest = hashlib.sha256(blob).hexdigest()
            client.start(
                campaign=CAMPAIGN,
                round=1,
                action="train",
                blobs=[{"sha256": digest, "data": blob}],
                tasks=[
                    {
                        "plan": plan.id,
                        "weights": digest,
                        "devices": {name: [1, 100] for name in machines},
                    }
                ],
                plans={plan.id: {"values": plan.delta_values}},
                epochs=1,
                learning_rate=0.02,
                seed=7,
                deadline_seconds=600,
                target=len(machines),
            )
            wait_until(
                lambda: client.collect(CAMPAIGN, 1)["state"] != "running", "the round to be closed"
            )
            result = client.collect(CAMPAIGN, 1)
    assert result["accepted"] == len(machines), result["declined"]
    return bytes(result["sums"][plan.id][0]["values"])


def test_a_mixed_fleet_adds_up_to_what_host_code_adds_up_to(
    compiled: Callable[[str], Bundle], tmp_path: Path
) -> None:
    skip_without("qemu")
    mixed = {
        "m4": ("mps2-an386", "qemu"),
        "m7": ("mps2-an500", "qemu"),
        "m33": ("mps2-an505", "qemu"),
        "m55": ("mps3-an547", "qemu"),
        "f407": ("stm32f407", "unicorn"),
        "f746": ("stm32f746", "unicorn"),
    }
    hosted = {name: (board, "host") for name, (board, _) in mixed.items()}
    sums = sums_of_a_round(tmp_path / "mixed", compiled, mixed)
    assert any(sums)
    assert sums == sums_of_a_round(tmp_path / "hosted", compiled, hosted)


def test_a_worker_that_is_killed_leaves_no_qemu_behind(world: World) -> None:
    with running(world):
        of_workers = {one.process: emulators_of(one.process) for one in world.fleet.worker_stats()}
        (worker,) = (pid for pid, found in of_workers.items() if found)
        os.kill(worker, signal.SIGKILL)
        wait_until(
            lambda: not [one for one in of_workers[worker] if Path(f"/proc/{one}").exists()],
            "the emulator to end",
        )


def emulators_of(worker: int) -> list[int]:
    """Processes of QEMU that this worker has started."""
    return [one for one in processes.running("qemu-system-arm") if parent_of(one) == worker]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
