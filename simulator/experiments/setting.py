"""Where a strategy learns: a world with its seed, firmware for its boards, and somewhere to run."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import device_runtime
from codegen.firmware.bundle import MANIFEST, WEIGHTS, Bundle
from fleet.firmware import compile_firmware
from simulator.errors import ExperimentError
from simulator.experiments.config import Evaluation, ExperimentConfig
from simulator.experiments.keys import VirtualKeys
from simulator.experiments.results import Accuracy, VersionScores
from simulator.experiments.tables import CellTables
from simulator.machines.elf_image import load_elf
from simulator.machines.registry import machine_kind
from simulator.virtual.costs import PlanInstructions, WorkCosts, measure_costs
from simulator.virtual.offline import Score, ScoreDevice, score_never_trained
from simulator.virtual.pool import DevicePool, keep_from_collector
from simulator.virtual.population import Firmware, Population

MakePool = Callable[[Population], DevicePool]
Tell = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and how much there is."""
FLEET = "experiment"


@dataclass(frozen=True, eq=False)
class Setting:
    """For one seed."""

    config: ExperimentConfig
    population: Population
    pool: DevicePool
    manifests: Mapping[str, str]
    """manifest.json texts by board."""
    weights: bytes
    """What devices are made with."""
    folder: Path
    """For what is needed while it runs."""
    tables: CellTables
    """For what there is of each device."""
    tell: Tell
    keys: VirtualKeys | None = None
    """Those that devices were given, where the strategy needs any."""

    @property
    def evaluate(self) -> Evaluation:
        """How versions are scored."""
        return self.config.evaluate

    def is_scored(self, training_round: int, rounds: int) -> bool:
        """Whether the version after a training round is one that is scored."""
        every = self.evaluate.every
        return every > 0 and (training_round % every == 0 or training_round == rounds)

    @property
    def scored_devices(self) -> list[int]:
        """Numbers of the devices on whose samples versions are scored."""
        numbers = self.population.numbers
        return list(numbers[: self.evaluate.devices or len(numbers)])

    def scores(self, training_round: int, seconds: float, weights: bytes) -> VersionScores:
        """How a version does; `tables` have it of each device."""
        of_devices = self.pool.each(ScoreDevice(weights), self.scored_devices)
        never = score_never_trained(self.population, weights) if self.evaluate.never_trained else []
        return self.scored(training_round, seconds, of_devices, never)

    def scored(
        self,
        training_round: int,
        seconds: float,
        devices: Mapping[int, Score],
        never_trained: Sequence[Score] = (),
    ) -> VersionScores:
        """The same where the scores are known: of the fleet's devices by number, and of others."""
        self.tables.add_scores(training_round, seconds, devices, never_trained)
        return VersionScores(
            training_round,
            seconds,
            Accuracy.of(devices.values()),
            Accuracy.of(never_trained),
        )

    def free_sram_bytes(self, number: int) -> int:
        """What a device has for a plan."""
        facts = self.population.world.device(number)
        image = load_elf(self.population.bundle(facts.board).firmware)
        pool = image.address_of("__pool_end") - image.address_of("__pool_start")
        return pool - facts.reserved_sram_bytes

    def common_plan(self) -> str:
        """Name of the largest plan for which the device with the least free SRAM has room."""
        plans = next(iter(self._bundles.values())).manifest.plans
        least = min(self.free_sram_bytes(number) for number in self.population.numbers)
        fitting = [one for one in plans if one.pool_bytes <= least]
        if not fitting:
            smallest = min(plans, key=lambda one: one.pool_bytes)
            raise ExperimentError(
                f"no plan fits all devices: {smallest.name} takes {smallest.pool_bytes} bytes and "
                f"one of them has {least}; reserve less SRAM, or add a smaller plan to model.plans"
            )
        return max(fitting, key=lambda one: one.delta_values).name

    @property
    def _bundles(self) -> dict[str, Bundle]:
        return {board: self.population.bundle(board) for board in self.population.firmware}


@contextmanager
def setting_for(
    config: ExperimentConfig,
    seed: int,
    source_folder: Path,
    firmware: Mapping[str, Firmware],
    folder: Path,
    tables: CellTables,
    make_pool: MakePool,
    tell: Tell,
    needs_keys: bool = False,
) -> Iterator[Setting]:
    """The setting of one seed, with all devices powered on; ``source_folder`` has the file."""
    population = Population(config.world, seed, source_folder, firmware, FLEET)
    keys = None
    if needs_keys:
        names = {number: population.world.device(number).name for number in population.numbers}
        keys = VirtualKeys.draw(seed, FLEET, names)
        population = replace(population, provisioned=keys.provisioned)
    tell("devices", 0, len(population.numbers))
    pool = make_pool(population)
    keep_from_collector()
    try:
        tell("devices", len(population.numbers), len(population.numbers))
        manifests = {board: (one.bundle / MANIFEST).read_text() for board, one in firmware.items()}
        weights = (next(iter(firmware.values())).bundle / WEIGHTS).read_bytes()
        yield Setting(config, population, pool, manifests, weights, folder, tables, tell, keys)
    finally:
        gc.unfreeze()
        pool.close()


def build_firmware(
    config: ExperimentConfig, source_folder: Path, folder: Path, tell: Tell
) -> dict[str, Firmware]:
    """Bundles and host libraries for the boards of a world, and what their work takes.

    What ``folder`` has of before is used where it was made of the same files.

    Raises: CodegenError, or SimulatorError where an image can't be measured.
    """
    boards = list(config.world.population.boards)
    made = {}
    for number, board in enumerate(boards):
        tell("firmware", number, len(boards))
        made[board] = _firmware(config, board, source_folder, folder / _short(board))
    tell("firmware", len(boards), len(boards))
    return made


def _short(board: str) -> str:
    return Path(board).stem


def _firmware(config: ExperimentConfig, board: str, source: Path, folder: Path) -> Firmware:
    model = config.model
    plans = [str(source / one) for one in model.plans]
    files = [source / model.onnx, *(Path(one.partition("#")[0]) for one in plans)]
    calibration = None
    if model.calibration is not None:
        calibration = source / model.calibration
        files.append(calibration)
    if board.endswith(".json"):
        files.append(source / board)
    key = hashlib.sha256(json.dumps([board, list(model.plans)]).encode())
    # Of other sources it would be another library.
    runtime = sorted(Path(device_runtime.__file__).parent.rglob("*.[ch]"))
    for one in [*files, *runtime]:
        if not one.is_file():
            raise ExperimentError(
                f"model: there is no file {one}; the experiment's own file may say where it comes "
                "from, or how it is made"
            )
        key.update(one.read_bytes())
    bundle, library, costs_file = (folder / name for name in ("bundle", "host.so", "costs.json"))
    key_file = folder / "made-of"
    if not key_file.exists() or key_file.read_text() != key.hexdigest():
        folder.mkdir(parents=True, exist_ok=True)
        key_file.unlink(missing_ok=True)
        compiled = compile_firmware(source / model.onnx, board, plans, calibration, bundle)
        machine_kind("host").prepare(bundle, library)
        costs = measure_costs(compiled)
        costs_file.write_text(json.dumps(asdict(costs)))
        key_file.write_text(key.hexdigest())
    read = json.loads(costs_file.read_text())
    by_plan = tuple(PlanInstructions(**one) for one in read["plans"])
    return Firmware(bundle, library, WorkCosts(read["clock_hz"], by_plan))
