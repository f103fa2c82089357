"""A site for nodes that Renode's own test runner makes: ``python -m tests.renode.site FOLDER``.

Writes FOLDER/nodes.resc, which makes the nodes, and FOLDER/ready when they may be started. They
take part in a training round at a broker with a gateway, beside emulated boards; and after that all
of them again, as Unicorn runs them. FOLDER/result.json says what came of it. The nodes' modems are
here.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from codegen.compile import compile_model
from codegen.firmware.bundle import Bundle
from fleet.demo.site import GatewayProcess
from fleet.gateway.broker import Broker, BrokerConfig, new_passwords
from fleet.gateway.client import GatewayClient
from fleet.ports import free_port
from simulator.devices.modem import Modem
from simulator.fleet.fleet import Fleet
from simulator.machines.device_spec import DeviceSpec
from simulator.machines.registry import flash_content
from simulator.machines.renode.machine import QUANTUM_SECONDS, write_node
from simulator.machines.renode.node_line import NodeLine
from simulator.machines.renode.platform_text import model_files

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits"
FLEET, GATEWAY, CAMPAIGN = "demo", "gw", "00112233445566aa"
PATIENCE_SECONDS = 300.0
LOOK_SECONDS = 0.005


class Node:
    """A node's line with its modem."""

    def __init__(self, line: NodeLine, broker_port: int) -> None:
        self.line = line
        self.modem = Modem(line, ("127.0.0.1", broker_port))
        self.cuts = 0

    def step(self) -> None:
        line = self.line
        line.take_frames()
        if line.power_is_cut:
            if line.was_reset:
                self.cuts += 1
                line.power_is_back()
            else:
                self.modem.close()
                line.was_reset = False
                return
        self.modem.step(readable=True, writable=True)


def compile_boards(folder: Path, boards: list[str]) -> dict[str, Bundle]:
    return {
        board: compile_model(
            DIGITS / "digits.onnx",
            board,
            None,
            DIGITS / "calibration.npz",
            folder / "bundles" / board,
            ROOT / "fleet" / "protocol" / "tinyfleet.cddl",
        )
        for board in boards
    }


def device_specs(bundles: dict[str, Bundle], names: list[str], **common: Any) -> list[DeviceSpec]:
    """Devices by board in turn."""
    boards = list(bundles)
    passwords = common.pop("passwords")
    return [
        DeviceSpec(
            name,
            bundles[boards[number % len(boards)]].path,
            passwords[name],
            np.random.default_rng(number).integers(-128, 128, (12, 8, 8, 1)).astype(np.int8),
            np.arange(12) % 10,
            **common,
        )
        for number, name in enumerate(names)
    ]


def start_round(client: GatewayClient, bundles: dict[str, Bundle], by_board: dict[str, str]) -> int:
    """One round with weights that nobody has; returns how many devices are asked."""
    first = next(iter(bundles.values()))
    blob = bytes([first.weights[0] ^ 1]) + first.weights[1:]
    digest = hashlib.sha256(blob).hexdigest()
    tasks, plans = [], {}
    for board, bundle in bundles.items():
        plan = bundle.manifest.plans[1]
        devices = {name: [1, 100] for name, of in by_board.items() if of == board}
        tasks.append({"plan": plan.id, "weights": digest, "devices": devices})
        plans[plan.id] = {"values": plan.delta_values}
    client.start(
        campaign=CAMPAIGN,
        round=1,
        action="train",
        blobs=[{"sha256": digest, "data": blob}],
        tasks=tasks,
        plans=plans,
        epochs=1,
        learning_rate=0.02,
        seed=7,
        deadline_seconds=600,
        target=len(by_board),
    )
    return len(by_board)


@contextlib.contextmanager
def open_site(
    folder: Path, devices: list[str], passwords: Mapping[str, str]
) -> Iterator[tuple[Broker, GatewayClient]]:
    """A broker and a gateway for these devices."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    own = new_passwords([GATEWAY])
    broker = Broker(folder / "broker", BrokerConfig(FLEET, own, passwords, port=free_port()))
    gateway = GatewayProcess(folder, GATEWAY, devices, broker.port, own[GATEWAY])
    with broker, gateway:
        gateway.wait_ready()
        yield broker, GatewayClient(gateway.socket)


def run(folder: Path, boards: list[str], count: int, beside: int) -> dict[str, Any]:
    bundles = compile_boards(folder, boards)
    nodes = [f"node-{number + 1}" for number in range(count)]
    names = [*nodes, *(f"board-{number + 1}" for number in range(beside))]
    passwords = new_passwords(names)
    specs = device_specs(bundles, names, passwords=passwords, fleet=FLEET)
    board_of = {spec.device: spec.bundle.name for spec in specs}
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        open_site(folder / "site", names, passwords) as (broker, client),
    ):
        write_nodes(folder, bundles, specs[:count], listener.getsockname()[1])
        (folder / "ready").touch()
        listener.settimeout(PATIENCE_SECONDS)
        running = [Node(NodeLine(listener.accept()[0]), broker.port) for _ in nodes]
        with emulated(specs[count:], broker):
            mixed = take_part(running, client, bundles, board_of)
    # The same devices, all of them in Unicorn.
    with open_site(folder / "twin", names, passwords) as (broker, client), emulated(specs, broker):
        twin = take_part([], client, bundles, board_of)
    return {
        "asked": len(names),
        "accepted": mixed["accepted"],
        "cuts": sum(node.cuts for node in running),
        "sums_are_unicorns": mixed["sums"] == twin["sums"] and mixed["accepted"] == len(names),
    }


def emulated(specs: list[DeviceSpec], broker: Broker) -> contextlib.AbstractContextManager[object]:
    return Fleet(specs, ("127.0.0.1", broker.port)) if specs else contextlib.nullcontext()


def write_nodes(
    folder: Path, bundles: dict[str, Bundle], specs: list[DeviceSpec], port: int
) -> None:
    script = [f"include @{path}" for path in model_files()]
    for spec in specs:
        place = folder / spec.device
        place.mkdir(exist_ok=True)
        firmware = Path(spec.bundle) / "firmware.elf"
        board = bundles[spec.bundle.name].board
        content = flash_content(spec)
        script += write_node(
            board, place, firmware, content, port, ends_with_worker=False
        ).splitlines()
        script.append("mach clear")
    script.append(f'emulation SetGlobalQuantum "{QUANTUM_SECONDS}"')
    (folder / "nodes.resc").write_text("\n".join(script) + "\n", encoding="utf-8")


def take_part(
    running: list[Node], client: GatewayClient, bundles: dict[str, Bundle], by_board: dict[str, str]
) -> dict[str, Any]:
    end = time.monotonic() + PATIENCE_SECONDS
    asked, looked = 0, 0.0
    reply: dict[str, Any] = {}
    while reply.get("state", "running") == "running":
        assert time.monotonic() < end, f"not done in {PATIENCE_SECONDS:.0f} s: {reply}"
        for node in running:
            node.step()
            assert node.line.end is None, str(node.line.end)
        time.sleep(LOOK_SECONDS)
        if time.monotonic() < looked:
            continue
        looked = time.monotonic() + 0.5
        if not asked:
            online = {one["device"] for one in client.hello()["devices"] if one["online"]}
            if online >= by_board.keys():
                asked = start_round(client, bundles, by_board)
        else:
            reply = client.collect(CAMPAIGN, 1)
    return reply


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--boards", default="stm32f407,stm32f746")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--beside", type=int, default=2)
    given = parser.parse_args()
    result = run(given.folder.absolute(), given.boards.split(","), given.nodes, given.beside)
    (given.folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
