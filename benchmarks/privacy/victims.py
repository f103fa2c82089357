"""What is attacked: two models of the digits with their plans, and the deltas of devices.

`convolutional` is the demo's network with its three plans and one that trains biases alone. `dense`
begins with a fully connected layer of 32 neurons; it is trained here, on the lab's digits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.neural_network import MLPClassifier

from benchmarks.delta_step import Engines, Task, compiled
from codegen.firmware.host_engine import HostEngine
from codegen.program.lowering import lower
from codegen.program.steps import Program
from fleet.attach.samples import input_codes
from fleet.demo.digits import PLANS, example_folder
from fleet.protocol.manifest import PlanEntry
from simulator.world import digits

PEOPLE = 24
HIDDEN = 32
RATE = 0.015
PUBLIC_SHARE = 20
ATTACKED_PLANS = ("bias", *PLANS)
DENSE_PLANS = ("dense-bias", "dense-full")
_OWN_PLANS = Path(__file__).with_name("plans.json")

Codes = NDArray[np.int8]
Labels = NDArray[np.int64]
Values = NDArray[np.int64]


@dataclass(frozen=True)
class Share:
    """Samples of one person or device: int8 codes (n, 8, 8, 1), labels (n,)."""

    codes: Codes
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, index: int) -> Share:
        """The share of one sample."""
        return Share(self.codes[index : index + 1], self.labels[index : index + 1])


@dataclass(frozen=True)
class Victim:
    """A model that devices train, with engines that compute what they would, bit for bit."""

    task: Task
    engines: Engines

    @cached_property
    def programs(self) -> dict[str, Program]:
        """Plan → what the reference interpreter runs."""
        return {name: lower(self.task.graph, plan) for name, plan in self.task.plans.items()}

    def engine(self, plan: str) -> HostEngine:
        """The device's C for a plan."""
        return self.engines.get(0, plan)

    def entry(self, plan: str) -> PlanEntry:
        """The plan in the manifest."""
        return self.task.manifest.plan(self.task.plans[plan].id)

    def codes(self, x: NDArray[np.float32]) -> Codes:
        """Pictures of 0 … 1 as the sensor's codes."""
        return input_codes(self.task.manifest, x)

    def delta(
        self,
        plan: str,
        share: Share,
        seed: int,
        weights: bytes | None = None,
        rate: float = RATE,
    ) -> Values:
        """The delta of a device that trains all of a share once, in an order of its own."""
        engine = self.engine(plan)
        engine.load(self.task.weights if weights is None else weights)
        for at in np.random.default_rng(seed).permutation(len(share)):
            engine.train_step(share.codes[at], int(share.labels[at]), round(rate * 2**20), seed)
        return engine.delta().astype(np.int64)


@contextmanager
def convolutional() -> Iterator[Victim]:
    """The demo's network; plans `bias`, `small`, `middle`, `full`."""
    example = example_folder()
    plans = [f"{example / 'plans.json'}#{name}" for name in PLANS]
    with _victim(
        example / "digits.onnx", example / "calibration.npz", [f"{_OWN_PLANS}#bias", *plans]
    ) as made:
        yield made


@contextmanager
def dense() -> Iterator[Victim]:
    """Flatten, 32 neurons, ReLU, 10 outputs; plans `dense-bias`, `dense-full`."""
    x, y = digits.load()
    lab = digits.lab_split()[0]
    with tempfile.TemporaryDirectory() as folder:
        model, calibration = Path(folder) / "dense.onnx", Path(folder) / "calibration.npz"
        model.write_bytes(_dense_network(x[lab], y[lab]).SerializeToString())
        np.savez(calibration, x=x[lab].transpose(0, 3, 1, 2), y=y[lab])
        with _victim(model, calibration, [f"{_OWN_PLANS}#{name}" for name in DENSE_PLANS]) as made:
            yield made


@contextmanager
def _victim(model: Path, calibration: Path, plans: Sequence[str]) -> Iterator[Victim]:
    with (
        compiled(model, calibration, plans, rounds=6, learning_rate=RATE) as task,
        tempfile.TemporaryDirectory() as folder,
    ):
        yield Victim(task, Engines(task, Path(folder)))


def _dense_network(x: NDArray[np.float32], y: Labels) -> onnx.ModelProto:
    pixels = x.reshape(len(x), -1)
    network = MLPClassifier((HIDDEN,), max_iter=1000, random_state=1).fit(pixels, y)
    constants = {
        "hidden.weight": network.coefs_[0],
        "hidden.bias": network.intercepts_[0],
        "head.weight": network.coefs_[1],
        "head.bias": network.intercepts_[1],
    }
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("Gemm", ["flat", "hidden.weight", "hidden.bias"], ["h"], "hidden"),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "head.weight", "head.bias"], ["logits"], "head"),
        ],
        "dense",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def people(victim: Victim, count: int, seed: int) -> list[Share]:
    """What the sensors of so many people have recorded to train with, each with its own drift."""
    dealt = digits.deal([f"person-{number}" for number in range(count)], seed)
    return [Share(victim.codes(one.x[~one.held_out]), one.y[~one.held_out]) for one in dealt]


def public_shares(victim: Victim, count: int, seed: int) -> list[Share]:
    """What other devices might have trained with, made of the lab's digits: a sensor each."""
    random = np.random.default_rng([seed, 0x9C])
    x, y = digits.load()
    lab = digits.lab_split()[0]
    shares = []
    for _ in range(count):
        likely = random.dirichlet(np.ones(digits.CLASSES))[y[lab]]
        chosen = random.choice(lab, PUBLIC_SHARE, replace=False, p=likely / likely.sum())
        seen = digits.draw_drift(random).apply(x[chosen])
        shares.append(Share(victim.codes(seen), y[chosen]))
    return shares


def public_samples(victim: Victim, count: int, seed: int) -> Share:
    """Digits that everybody may have, the lab's, each seen through some sensor of the fleet's kind.

    With them an attacker learns what deltas look like.
    """
    random = np.random.default_rng([seed, 0x9B])
    x, y = digits.load()
    chosen = random.choice(digits.lab_split()[0], count)
    seen = [digits.draw_drift(random).apply(x[at : at + 1])[0] for at in chosen]
    return Share(victim.codes(np.stack(seen)), y[chosen])
