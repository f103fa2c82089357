"""The real firmware on emulated boards and as host code, at a real broker with a real gateway."""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from codegen.compile import compile_graph, compile_model
from codegen.firmware.boards import Board, load_board
from codegen.firmware.bundle import Bundle
from codegen.firmware.toolchain import find_toolchain
from codegen.program.lowering import lower
from codegen.program.plans import PlanSpec
from codegen.quantization.calibration_set import load_calibration
from codegen.reference.interpreter import Interpreter
from fleet.demo.site import GatewayProcess
from fleet.gateway.broker import Broker, BrokerConfig, new_passwords
from fleet.gateway.client import GatewayClient
from fleet.ports import free_port
from fleet.protocol import device_seed
from simulator.fleet.fleet import Fleet
from simulator.machines.device_spec import DeviceSpec
from tests.codegen.mcunet import MODEL, needs_mcunet
from tests.codegen.random_graphs import full_plan, random_picture_graph, random_target_graph
from tests.patience import PATIENCE_SECONDS
from tests.simulator.conftest import skip_without

ROOT = Path(__file__).parents[3]
DIGITS = ROOT / "examples" / "digits"
CAMPAIGN = "00112233445566aa"
FLEET = "demo"
BOARDED, HOSTED = "on-board", "on-host"
# Round seeds that give these two devices one and the same seed, so that they train alike.
SEEDS = {BOARDED: 168_623, HOSTED: 3_278}
SAMPLES = np.random.default_rng(5).integers(-128, 128, (9, 8, 8, 1)).astype(np.int8)
LABELS = np.arange(9)


def with_little_flash_inside() -> Board:
    """So little that the slots lie in the external flash, which only the linked image tells."""
    described = load_board("stm32f746").model_dump()
    described["flash"]["sectors"] = [32768] * 4 + [131072]
    return Board.model_validate(described)


BOARDS = {
    "stm32f407": load_board("stm32f407"),
    "stm32f746": load_board("stm32f746"),
    "stm32f746-external": with_little_flash_inside(),
}


@pytest.fixture(scope="module", params=BOARDS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    board = request.param
    return compile_model(
        DIGITS / "digits.onnx",
        BOARDS[board],
        None,
        DIGITS / "calibration.npz",
        tmp_path_factory.mktemp("firmware") / board,
        ROOT / "fleet" / "protocol" / "tinyfleet.cddl",
    )


class World:
    """Broker, gateway and two devices with the same samples: a board and host code."""

    def __init__(
        self,
        folder: Path,
        bundle: Bundle,
        samples: NDArray[np.int8] = SAMPLES,
        flash: Mapping[str, tuple[tuple[int, bytes], ...]] = MappingProxyType({}),
        machine: str = "unicorn",
        labels: NDArray[np.int64] = LABELS,
    ) -> None:
        (folder / "logs").mkdir()
        passwords = new_passwords([BOARDED, HOSTED])
        gateway_password = new_passwords(["gw"])
        self.bundle = bundle
        self.broker = Broker(
            folder / "broker",
            BrokerConfig(FLEET, gateway_password, passwords, port=free_port()),
        )
        self.gateway = GatewayProcess(
            folder, "gw", [BOARDED, HOSTED], self.broker.port, gateway_password["gw"]
        )
        self.fleet = Fleet(
            [
                DeviceSpec(
                    name,
                    bundle.path,
                    passwords[name],
                    samples,
                    labels,
                    machine=machine,
                    seed=3,
                    flash=flash.get(name, ()),
                )
                for name, machine in ((BOARDED, machine), (HOSTED, "host"))
            ],
            ("127.0.0.1", self.broker.port),
        )
        self.client = GatewayClient(self.gateway.socket)

    def until(
        self, what: str, condition: Callable[[], Any], seconds: float = PATIENCE_SECONDS
    ) -> Any:
        end = time.monotonic() + seconds
        while not (found := condition()):
            stats = self.fleet.stats()
            assert not any(device.fault for device in stats.values()), stats
            assert time.monotonic() < end, f"waited until {what}: {stats}"
            time.sleep(0.05)
        return found

    def announced(self) -> dict[str, dict[str, Any]]:
        return {
            device["device"]: device
            for device in self.client.hello()["devices"]
            if device["online"]
        }

    def start(self, number: int, device: str, blob: bytes, plan: int = 1) -> None:
        digest = hashlib.sha256(blob).hexdigest()
        chosen = self.bundle.manifest.plans[plan]
        self.client.start(
            campaign=CAMPAIGN,
            round=number,
            action="train",
            blobs=[{"sha256": digest, "data": blob}],
            tasks=[{"plan": chosen.id, "weights": digest, "devices": {device: [1, 100]}}],
            plans={chosen.id: {"values": chosen.delta_values}},
            epochs=1,
            learning_rate=0.02,
            seed=SEEDS[device],
            deadline_seconds=600,
            target=1,
        )

    def collect(self, number: int, seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        def closed() -> dict[str, Any] | None:
            self.client.watch([(CAMPAIGN, number)], wait_seconds=1)
            reply = self.client.collect(CAMPAIGN, number)
            return reply if reply["state"] != "running" else None

        reply: dict[str, Any] = self.until(f"round {number} is closed", closed, seconds)
        return reply


@pytest.fixture
def world(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(World(tmp_path_factory.mktemp("w"), bundle)) as world:
        yield world


@contextlib.contextmanager
def running(world: World) -> Iterator[World]:
    with world.broker, world.gateway:
        world.gateway.wait_ready()
        with world.fleet:
            world.until("both are online", lambda: len(world.announced()) == 2)
            yield world


def newest(device: dict[str, Any]) -> str:
    """What a device would train from."""
    return str(device["candidate"] or device["current"])


def other_weights(bundle: Bundle) -> bytes:
    blob = bundle.weights
    return bytes([blob[0] ^ 1]) + blob[1:]


def test_board_and_host_code_announce_alike_and_send_the_same_delta(world: World) -> None:
    boarded, hosted = (world.announced()[name] for name in (BOARDED, HOSTED))
    for field in ("board", "bundle", "current", "candidate", "train_samples", "held_out_samples"):
        assert boarded[field] == hosted[field], field
    assert (boarded["train_samples"], boarded["held_out_samples"]) == (6, 3)
    assert device_seed(SEEDS[BOARDED], BOARDED) == device_seed(SEEDS[HOSTED], HOSTED)
    blob = other_weights(world.bundle)
    results = []
    for number, device in enumerate((BOARDED, HOSTED), 1):
        world.start(number, device, blob)
        results.append(world.collect(number))
    plan = world.bundle.manifest.plans[1].id
    sums = [result["sums"][plan][0]["values"] for result in results]
    assert [result["accepted"] for result in results] == [1, 1]
    assert sums[0] == sums[1]
    assert any(np.frombuffer(sums[0], "<i8"))
    scores = [
        {key: result["reports"][0][key] for key in ("correct_before", "loss_before", "loss_after")}
        for result in results
    ]
    assert scores[0] == scores[1]
    stats = world.fleet.stats()
    assert stats[BOARDED].bytes_down > len(blob)
    assert 0 < stats[BOARDED].stack_high_water_bytes < 4096


def slots_of(world: World, device: str) -> tuple[tuple[int, bytes], ...]:
    flash = world.bundle.manifest.flash
    return tuple(
        (slot.address, world.fleet.read_flash(device, slot.address, slot.bytes))
        for slot in (flash.slot_a, flash.slot_b)
    )


def brighter_calibration(folder: Path) -> Path:
    """Inputs of another range, so that the same network gets other scales."""
    inputs = load_calibration(DIGITS / "calibration.npz")
    np.savez(folder / "brighter.npz", x=2 * inputs)
    return folder / "brighter.npz"


@pytest.mark.parametrize("bundle", ["stm32f746-external"], indirect=True)
def test_slots_that_outlast_their_firmware_count_for_the_same_model_only(
    bundle: Bundle, tmp_path: Path
) -> None:
    learnt = other_weights(bundle)
    (tmp_path / "first").mkdir()
    with running(World(tmp_path / "first", bundle)) as world:
        for number, device in enumerate((BOARDED, HOSTED), 1):
            world.start(number, device, learnt)
            result = world.collect(number)
            assert result["accepted"] == 1, result["declined"]
        left = {device: slots_of(world, device) for device in (BOARDED, HOSTED)}

    def reflashed(name: str, calibration: Path) -> tuple[Bundle, set[str]]:
        folder = tmp_path / name
        folder.mkdir()
        board = BOARDS["stm32f746-external"]
        cddl = ROOT / "fleet" / "protocol" / "tinyfleet.cddl"
        made = compile_model(
            DIGITS / "digits.onnx",
            board,
            [f"{DIGITS / 'plans.json'}#full"],  # publishes what the default plans publish
            calibration,
            folder / "bundle",
            cddl,
        )
        assert made.manifest.bundle_id != bundle.manifest.bundle_id
        assert made.manifest.weights.bytes == bundle.manifest.weights.bytes
        assert made.manifest.flash.slot_a == bundle.manifest.flash.slot_a
        assert made.manifest.flash.slot_b == bundle.manifest.flash.slot_b
        with running(World(folder, made, flash=left)) as world:
            return made, {newest(device) for device in world.announced().values()}

    other, active = reflashed("other", brighter_calibration(tmp_path))
    assert other.manifest.model.digest != bundle.manifest.model.digest
    assert active == {other.manifest.weights.sha256}
    same, active = reflashed("same", DIGITS / "calibration.npz")
    assert same.manifest.model.digest == bundle.manifest.model.digest
    assert active == {hashlib.sha256(learnt).hexdigest()}


@pytest.mark.parametrize("loss", ["binary", "mse", "picture"])
def test_a_round_of_yes_or_no_one_of_targets_and_one_of_pictures(
    loss: Literal["binary", "mse", "picture"], tmp_path: Path
) -> None:
    graph, samples = random_picture_graph(3) if loss == "picture" else random_target_graph(5, loss)
    bundle = compile_graph(
        graph,
        load_board("stm32f746"),
        [full_plan(graph)],
        onnx_sha256="00" * 32,
        out=tmp_path / "bundle",
        protocol_cddl=ROOT / "fleet" / "protocol" / "tinyfleet.cddl",
        toolchain=find_toolchain(),
    )
    # Bits of the outputs: where they count, more than there are classes.
    labels = np.arange(9) * 100 if loss != "binary" else np.arange(9) % bundle.manifest.model.labels
    interpreter = Interpreter(lower(graph, full_plan(graph)))
    held_out = [index for index in range(9) if index % 3 == 2]
    right = [interpreter.score(samples[i], int(labels[i])) == labels[i] for i in held_out]
    with running(World(tmp_path, bundle, samples[:9], labels=labels)) as world:
        sums = []
        for number, name in enumerate((BOARDED, HOSTED), 1):
            assert world.announced()[name]["train_samples"] == 6
            world.start(number, name, bundle.weights, plan=0)
            result = world.collect(number)
            assert result["accepted"] == 1, result["declined"]
            report = result["reports"][0]
            assert report["correct_before"] == sum(right)
            assert report["loss_before"] > 0
            sums.append(result["sums"][bundle.manifest.plans[0].id][0]["values"])
        assert sums[0] == sums[1]
        assert any(np.frombuffer(sums[0], "<i8"))


@pytest.mark.slow
@pytest.mark.parametrize("device", [BOARDED, HOSTED])
def test_power_cuts_while_weights_are_staged_only_delay_the_delta(
    world: World, device: str
) -> None:
    blob = other_weights(world.bundle)

    def dials() -> int:
        return world.fleet.stats()[device].dials

    def is_closed() -> bool:
        return bool(world.client.collect(CAMPAIGN, 1)["state"] == "closed")

    for cut, operations in enumerate((1, 40, 3000), 1):
        before = dials()
        world.fleet.cut_power_at_flash_operation(device, operations, seed=cut, off_seconds=0.05)
        if cut == 1:
            world.start(1, device, blob)
            world.until("it is back", lambda before=before: dials() > before)
        else:  # host code may be done before the next cut is armed
            world.until("it is back", lambda before=before: dials() > before or is_closed())
    result = world.collect(1)
    assert (result["accepted"], result["duplicate"]) == (1, 0)
    world.fleet.power_cycle(device)  # it announces its weights when it connects
    world.until(
        "it has the new weights",
        lambda: (
            newest(world.announced().get(device, {"candidate": "", "current": ""}))
            == hashlib.sha256(blob).hexdigest()
        ),
    )


@needs_mcunet
@pytest.mark.slow
@pytest.mark.parametrize("machine", ["unicorn", "renode"])
def test_a_round_of_mcunet_with_its_weights_in_the_external_flash(
    tmp_path: Path, machine: str
) -> None:
    skip_without(machine)
    bundle = compile_model(
        MODEL,
        "stm32f746",
        [PlanSpec(name="head")],
        None,
        tmp_path / "bundle",
        ROOT / "fleet" / "protocol" / "tinyfleet.cddl",
    )
    flash = bundle.manifest.flash
    assert flash.slot_a.flash == flash.samples.flash == "external"
    assert flash.samples.bytes >= 64 * 128 * 128 * 3
    samples = np.random.default_rng(5).integers(-128, 128, (9, 128, 128, 3)).astype(np.int8)
    with running(World(tmp_path, bundle, samples, machine=machine)) as world:
        for device in world.announced().values():
            assert (device["train_samples"], device["held_out_samples"]) == (6, 3)
        blob = other_weights(bundle)
        sums = []
        for number, name in enumerate((BOARDED, HOSTED), 1):
            world.start(number, name, blob, plan=0)
            result = world.collect(number, seconds=500)
            assert result["accepted"] == 1
            sums.append(result["sums"][bundle.manifest.plans[0].id][0]["values"])
        assert sums[0] == sums[1]
        assert any(np.frombuffer(sums[0], "<i8"))
