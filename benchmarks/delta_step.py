"""Does it matter how coarsely devices round their deltas, and that no two round alike?

A federation on this machine: the C engine as host library trains on every device, deltas are coded
as on the wire, and the fleet's own aggregation averages them. One seed for all devices of a round
is compared with a seed for each, and the steps of a delta with smaller and larger ones.

    python -m benchmarks.delta_step [--data digits|flowers] [--seeds 3] [--json FILE]

``digits`` is the demo's fleet. ``flowers`` needs the folder of shared data sets and models
(TINYFLEET_SHARED): MCUNet with plan 49kb, photographers dealt to 24 devices.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress
from scipy import ndimage

from benchmarks import mcunet
from codegen.compile import build_host_engine
from codegen.firmware.host_engine import HostEngine
from codegen.graph.ir import Graph
from codegen.importer.model import import_model
from codegen.program.lowering import lower
from codegen.program.plans import Plan, load_plan, resolve
from codegen.quantization.model import quantize_model
from fleet.aggregation import FedAvg, init
from fleet.aggregation.master import blob_from_master
from fleet.aggregation.mean import PlanSum, add_plan_sums, plan_sum_from_manifest
from fleet.attach.samples import deal_digits, input_codes
from fleet.campaign.planning import round_seed
from fleet.cli._output import console, table
from fleet.demo.digits import PLANS, device_names, example_folder
from fleet.firmware import compile_firmware
from fleet.protocol import delta_coding, device_seed
from fleet.protocol.manifest import Manifest, PlanEntry

DEVICES = 24
SIDE = 128  # pixels of MCUNet's input
WORST = 10  # percent of the devices


@dataclass(frozen=True)
class Data:
    """What one device trains on and is scored with; codes are int8 (n, H, W, C)."""

    plan: str
    train: NDArray[np.int8]
    train_labels: NDArray[np.int64]
    test: NDArray[np.int8]
    test_labels: NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """A model, its plans by name, and how it is trained."""

    graph: Graph
    plans: Mapping[str, Plan]
    manifest: Manifest
    weights: bytes
    rounds: int
    learning_rate: float


@dataclass(frozen=True)
class Way:
    """How deltas are rounded: steps 2^`coarser` times today's, one seed or one per device."""

    coarser: int
    seed_per_device: bool

    def __str__(self) -> str:
        seeds = "a seed per device" if self.seed_per_device else "one seed for all"
        return f"{seeds}, step x {2.0**self.coarser:g}"


WAYS = (
    Way(-2, False), Way(-2, True), Way(0, False), Way(0, True), Way(1, True), Way(2, True),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """Of one training of the whole federation; accuracies are shares of right answers."""

    way: Way
    seed: int
    median: float
    worst: float
    mean: float
    coded_bytes: dict[str, float]
    """Of a delta, by plan, mean over rounds and devices."""
    rounding_error: float
    """Root mean square of a round's averaged change less that without rounding, in today's steps of
    a delta; the last round's."""


def _shift(today: int, coarser: int | None) -> int:
    """Bits that are dropped of a delta instead of `today`'s; none where `coarser` is None."""
    return 0 if coarser is None else max(0, today + coarser)


class Engines:
    """Host libraries of a task by what is added to a delta's shifts."""

    def __init__(self, task: Task, folder: Path) -> None:
        self._task = task
        self._folder = folder
        self._built: dict[int | None, Path] = {}

    def get(self, coarser: int | None, plan: str) -> HostEngine:
        """An engine whose deltas have steps 2^`coarser` times as large, or the finest (None)."""
        if coarser not in self._built:
            programs = []
            for one in self._task.plans.values():
                program = lower(self._task.graph, one)
                shifts = [replace(of, shift=_shift(of.shift, coarser)) for of in program.segments]
                programs.append(replace(program, segments=tuple(shifts)))
            output = self._folder / f"engine-{coarser}.so"
            self._built[coarser] = build_host_engine((self._task.graph, programs), output)
        return HostEngine(self._built[coarser], self._task.plans[plan].id)


def run(
    task: Task, engines: Engines, devices: Mapping[str, Data], way: Way, seed: int
) -> Iterator[Outcome | None]:
    """Train; None after every device of every round, at last the outcome."""
    manifest = task.manifest
    state = init(manifest.tensors, task.weights)
    plans = {name: manifest.plan(plan.id) for name, plan in task.plans.items()}
    coded: dict[str, list[int]] = {name: [] for name in plans}
    rate = round(task.learning_rate * 2**20)
    error = 0.0
    for number in range(1, task.rounds + 1):
        blob = blob_from_master(manifest.tensors, state.master, len(task.weights))
        sums = {name: np.zeros(plan.delta_values, np.int64) for name, plan in plans.items()}
        exact = {name: np.zeros(plan.delta_values, np.int64) for name, plan in plans.items()}
        weights = dict.fromkeys(plans, 0)
        for device, data in devices.items():
            shared = round_seed(seed, number)
            mine = device_seed(shared, device) if way.seed_per_device else shared
            is_last = number == task.rounds
            for coarser, total in ((way.coarser, sums), *([(None, exact)] if is_last else [])):
                engine = engines.get(coarser, data.plan)
                engine.load(blob)
                # The order is a device's own in either case, as its ordinals are.
                order = np.random.default_rng([seed, number, len(data.train)])
                for at in order.permutation(len(data.train)):
                    engine.train_step(data.train[at], int(data.train_labels[at]), rate, mine)
                delta = engine.delta()
                total[data.plan] += delta.astype(np.int64) * len(data.train)
                if coarser is not None:
                    coded[data.plan].append(len(delta_coding.encode(delta)))
            weights[data.plan] += len(data.train)
            yield None
        used = [name for name in plans if weights[name]]
        parts, finest, today = (
            [_sum(manifest, plans[name], of[name], weights[name], coarser) for name in used]
            for of, coarser in ((sums, way.coarser), (exact, None), (sums, 0))
        )
        if number == task.rounds:
            error = _rounding_error(manifest, parts, finest, today)
        state = FedAvg().apply(state, [parts])
    blob = blob_from_master(manifest.tensors, state.master, len(task.weights))
    right = []
    for data in devices.values():
        engine = engines.get(way.coarser, data.plan)
        engine.load(blob)
        answers = [
            engine.score(sample, int(label)) == label
            for sample, label in zip(data.test, data.test_labels, strict=True)
        ]
        right.append(np.mean(answers))
        yield None
    yield Outcome(
        way,
        seed,
        float(np.median(right)),
        float(np.percentile(right, WORST)),
        float(np.average(right, weights=[len(data.test) for data in devices.values()])),
        {name: float(np.mean(sizes)) for name, sizes in coded.items() if sizes},
        error,
    )


def _sum(
    manifest: Manifest, plan: PlanEntry, values: NDArray[np.int64], weight: int, coarser: int | None
) -> PlanSum:
    part = plan_sum_from_manifest(manifest, plan, values.astype("<i8").tobytes(), weight)
    more = [
        np.full(of.values, _shift(of.shift, coarser) - of.shift, np.float64) for of in plan.segments
    ]
    return replace(part, units=(part.units * 2.0 ** np.concatenate(more)).astype(np.int64))


def _rounding_error(
    manifest: Manifest,
    rounded: Sequence[PlanSum],
    exact: Sequence[PlanSum],
    steps: Sequence[PlanSum],
) -> float:
    """Root mean square over trained coordinates, in the steps that `steps` have there."""
    size = sum(tensor.size for tensor in manifest.tensors)
    step = np.ones(size)
    for one in steps:
        step[one.coordinates] = one.units
    sums, weight = add_plan_sums(rounded, size)
    true, _ = add_plan_sums(exact, size)
    touched = weight > 0
    difference = (sums - true)[touched] / weight[touched] / step[touched]
    return float(np.sqrt(np.mean(difference**2)))


@contextmanager
def digits() -> Iterator[Task]:
    """The demo's model with its three plans."""
    example = example_folder()
    source = example / "digits.onnx", example / "calibration.npz"
    specs = [f"{example / 'plans.json'}#{name}" for name in PLANS]
    with compiled(source[0], source[1], specs, rounds=6, learning_rate=0.015) as task:
        yield task


def dealt_digits(task: Task, seed: int) -> dict[str, Data]:
    """The demo's devices; every third has each plan, as their links and batteries allow."""
    devices = {}
    for index, share in enumerate(deal_digits(device_names(DEVICES), seed)):
        codes = input_codes(task.manifest, share.x)
        held = share.held_out
        plan = ("full", "middle", "small")[index % 3]
        devices[share.device] = Data(plan, codes[~held], share.y[~held], codes[held], share.y[held])
    return devices


@contextmanager
def flowers() -> Iterator[Task]:
    """MCUNet with plan 49kb."""
    mcunet.require_model()
    specs = [f"{mcunet.PLANS}#49kb"]
    with compiled(mcunet.MODEL, None, specs, rounds=6, learning_rate=0.1 / 32) as task:
        yield task


def dealt_flowers(task: Task, seed: int) -> dict[str, Data]:
    """Photographers dealt to devices, which are all tested with the photos of unseen ones."""
    with np.load(mcunet.SHARED / "data" / "flowers96.npz") as file:
        train, test = (_enlarged(file[name]) for name in ("x_train", "x_test"))
        labels, test_labels = (file[name].astype(np.int64) for name in ("y_train", "y_test"))
    authors = [""] * len(train)
    with (mcunet.SHARED / "data" / "flowers96_attribution.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["split"] == "train":
                authors[int(row["index"])] = row["author"]
    names = device_names(DEVICES)
    dice = np.random.default_rng(seed)
    home = {
        one: names[at % DEVICES] for at, one in enumerate(dice.permutation(sorted(set(authors))))
    }
    (plan,) = task.plans
    devices = {}
    for number, name in enumerate(names):
        mine = np.array([home[author] == name for author in authors])
        # Each is tested with a part of the photos, so that all are tested once.
        part = np.arange(len(test)) % DEVICES == number
        devices[name] = Data(plan, train[mine], labels[mine], test[part], test_labels[part])
    return devices


def _enlarged(images: NDArray[np.uint8]) -> NDArray[np.int8]:
    factor = SIDE / images.shape[1]
    large = np.stack([ndimage.zoom(image, (factor, factor, 1), order=1) for image in images])
    return (large.astype(np.int16) - 128).astype(np.int8)


@contextmanager
def compiled(
    model: Path, calibration: Path | None, specs: Sequence[str], rounds: int, learning_rate: float
) -> Iterator[Task]:
    graph = quantize_model(import_model(model, None, calibration), calibration).graph
    plans = [resolve(load_plan(spec), graph) for spec in specs]
    with tempfile.TemporaryDirectory() as folder:
        bundle = compile_firmware(model, "stm32f746", specs, calibration, Path(folder) / "bundle")
        manifest = Manifest.read(bundle.path / "manifest.json")
        weights = bundle.weights
    yield Task(graph, {one.name: one for one in plans}, manifest, weights, rounds, learning_rate)


STUDIES = {"digits": (digits, dealt_digits), "flowers": (flowers, dealt_flowers)}


def rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """A row for each way: means over seeds, and the spread of the median."""
    shown = []
    for way in dict.fromkeys(one.way for one in outcomes):
        mine = [one for one in outcomes if one.way == way]
        medians = [100 * one.median for one in mine]
        sizes = {
            name: np.mean([one.coded_bytes[name] for one in mine]) for name in mine[0].coded_bytes
        }
        shown.append(
            [
                str(way),
                f"{np.mean(medians):.1f} ± {np.std(medians):.1f}",
                f"{100 * np.mean([one.mean for one in mine]):.1f}",
                f"{100 * np.mean([one.worst for one in mine]):.1f}",
                ", ".join(f"{name} {size:,.0f}" for name, size in sizes.items()),
                f"{np.mean([one.rounding_error for one in mine]):.3f}",
            ]
        )
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=sorted(STUDIES), default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    make, deal = STUDIES[options.data]
    outcomes: list[Outcome] = []
    with make() as task, tempfile.TemporaryDirectory() as folder, Progress() as progress:
        engines = Engines(task, Path(folder))
        steps = (task.rounds + 1) * DEVICES * len(WAYS) * options.seeds
        bar = progress.add_task(options.data, total=steps)
        for seed in range(1, options.seeds + 1):
            devices = deal(task, seed)
            for way in WAYS:
                for outcome in run(task, engines, devices, way, seed):
                    progress.advance(bar)
                    if outcome is not None:
                        outcomes.append(outcome)
    titles = ["deltas", "median %", "mean %", "worst tenth %", "bytes of a delta", "rounding error"]
    console().print(table(options.data, titles, rows(outcomes)))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(one) for one in outcomes], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
