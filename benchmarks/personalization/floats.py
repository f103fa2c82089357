"""FedAvg and fine-tuning in float: what the devices' integers are beside.

    pip install torch==2.13.0        # only for this script, not a dependency of the project
    python -m benchmarks.personalization.floats EXPERIMENT.yaml --plan PLAN --rate RATE > FILE.json

Devices, samples, rounds and epochs are those of an experiment; the network is the one that it
compiles, in PyTorch, with real inputs. One step for each sample, as on devices. No time passes, no
link loses anything, and all devices take part in each round.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.simulator.torch_network import Network
from codegen.importer.model import import_model
from codegen.program.plans import load_plan, resolve
from codegen.quantization.model import quantize_model
from simulator.devices.flash_image import held_out_mask
from simulator.experiments.results import Accuracy
from simulator.experiments.runner import Source
from simulator.virtual.offline import Score
from simulator.world.draws import generator
from simulator.world.world import World

Samples = tuple[Tensor, Tensor]
"""Inputs (n, channels, height, width) and classes (n,)."""
State = Mapping[str, Tensor]
"""All numbers of the network, by name."""


def main() -> None:
    """Print a list: one object for each seed, and what was learnt how."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--plan", required=True, help="FILE#NAME: which tensors are trained")
    parser.add_argument("--rate", type=float, required=True, help="of rounds, and of tuning")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tuning-epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="*", help="else those of the experiment")
    given = parser.parse_args()
    torch.set_num_threads(1)
    source = Source.read(given.experiment)
    found = [
        {"seed": seed, **_one(source, seed, given)} for seed in given.seeds or source.config.seeds
    ]
    print(json.dumps(found, indent=1))


def _one(source: Source, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    folder, config = source.folder, source.config
    assert config.model.calibration is not None, "a float model has a calibration set"
    calibration = folder / config.model.calibration
    graph = quantize_model(import_model(folder / config.model.onnx), calibration).graph
    network = Network(graph, resolve(load_plan(given.plan), graph))
    world = World(config.world, seed, folder)
    trained = [_trained(world, number) for number in world.devices]
    unseen = [_as_samples(world.data.unseen_log(number)) for number in world.devices]
    random = generator(seed, "float")
    first = _state(network)

    def tune(state: State, samples: Samples, epochs: int) -> State:
        return _trained_from(network, state, samples, given.rate, epochs, random)

    def scored(states: Sequence[State]) -> dict[str, float]:
        pairs = zip(states, unseen, strict=True)
        accuracy = Accuracy.of([_score(network, state, held) for state, held in pairs])
        assert accuracy is not None
        return {"mean": accuracy.mean, "worst_tenth": accuracy.worst_tenth}

    shared = first
    for _ in range(given.rounds):
        shared = _average([tune(shared, samples, 1) for samples in trained], trained)
    return {
        "alone": scored([tune(first, samples, given.rounds) for samples in trained]),
        "shared": scored([shared] * len(trained)),
        "fine-tuned": scored([tune(shared, samples, given.tuning_epochs) for samples in trained]),
    }


def _state(network: Network) -> State:
    return {name: value.clone() for name, value in network.state_dict().items()}


def _trained(world: World, number: int) -> Samples:
    log = world.data.log(number)
    kept = ~held_out_mask(len(log))
    return _as_samples(log.take(kept))


def _as_samples(log: Any) -> Samples:
    x: NDArray[np.float32] = np.ascontiguousarray(log.x.transpose(0, 3, 1, 2), np.float32)
    return torch.from_numpy(x), torch.from_numpy(np.asarray(log.y, np.int64))


def _trained_from(
    network: Network,
    state: State,
    samples: Samples,
    rate: float,
    epochs: int,
    random: np.random.Generator,
) -> State:
    """What SGD makes of a state, sample by sample, in an order of its own each epoch."""
    network.load_state_dict(state)
    parameters = [one for one in network.parameters() if one.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=rate)
    x, y = samples
    for _ in range(epochs):
        for index in random.permutation(len(y)):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(network(x[index : index + 1]), y[index : index + 1]).backward()
            optimizer.step()
    return _state(network)


def _average(states: Sequence[State], trained: Sequence[Samples]) -> State:
    """Of a round of FedAvg (arXiv 1602.05629): devices count by their samples."""
    weights = [len(y) for _, y in trained]
    return {
        name: torch.stack(
            [
                state[name] * (weight / sum(weights))
                for state, weight in zip(states, weights, strict=True)
            ]
        ).sum(0)
        for name in states[0]
    }


def _score(network: Network, state: State, held: Samples) -> Score:
    network.load_state_dict(state)
    x, y = held
    with torch.inference_mode():
        right = int((network(x).argmax(1) == y).sum())
    return Score(len(y), right)


if __name__ == "__main__":
    main()
