"""A round of Flower's own simulation engine, with clients that train the same model in PyTorch.

    python -m benchmarks.simulator.flower_engine [--clients N] [--rounds R]

Each client gets the weights that a plan trains, takes ten steps with batches of one, and sends them
back, as a device does. It prints how long each round took, the first with the start of its
processes; for an environment with `pip install -e . torch "flwr[simulation]"`, on the cores that it
may use.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import Tensor

import codegen
from benchmarks.simulator.torch_network import Network
from codegen.importer.model import import_model
from codegen.program.plans import load_plan, resolve
from codegen.quantization.calibration_set import load_calibration
from codegen.quantization.quantize import quantize

DIGITS = Path(codegen.__file__).parents[1] / "examples" / "digits"
STEPS = 10
PLAN = "middle"
TAKEN: list[float] = []


@functools.cache
def network() -> Network:
    """Made once in each process of the engine."""
    torch.set_num_threads(1)
    graph = quantize(
        import_model(DIGITS / "digits.onnx"), load_calibration(DIGITS / "calibration.npz")
    )
    return Network(graph, resolve(load_plan(f"{DIGITS / 'plans.json'}#{PLAN}"), graph))


def trained() -> dict[str, Tensor]:
    """What travels."""
    return {
        name: value.detach() for name, value in network().named_parameters() if value.requires_grad
    }


client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Ten steps on samples of one's own."""
    mine, model = np.random.default_rng(int(context.node_config["partition-id"])), network()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict(), strict=False)
    samples = torch.from_numpy(mine.normal(size=(STEPS, 1, 1, 8, 8)).astype(np.float32))
    labels = torch.from_numpy(mine.integers(0, 10, (STEPS, 1)))
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.01)
    for sample, label in zip(samples, labels, strict=True):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(sample), label).backward()
        optimizer.step()
    content = RecordDict(
        {"arrays": ArrayRecord(trained()), "metrics": MetricRecord({"num-examples": STEPS})}
    )
    return Message(content, reply_to=message)


class Timed(FedAvg):
    """FedAvg that notes when each round began and ended."""

    def configure_train(self, *args: Any, **kwargs: Any) -> Iterable[Message]:
        messages = super().configure_train(*args, **kwargs)
        self.begun = time.perf_counter()
        return messages

    def aggregate_train(self, *args: Any, **kwargs: Any) -> Any:
        result = super().aggregate_train(*args, **kwargs)
        TAKEN.append(time.perf_counter() - self.begun)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    server = ServerApp()

    @server.main()
    def run(grid: Grid, context: Context) -> None:
        everybody = options.clients
        strategy = Timed(1.0, 0.0, min_train_nodes=everybody, min_available_nodes=everybody)
        strategy.start(grid, ArrayRecord(trained()), num_rounds=options.rounds)

    cores = len(os.sched_getaffinity(0))
    run_simulation(
        server,
        client,
        options.clients,
        backend_config={
            "init_args": {"num_cpus": cores, "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    print(json.dumps({"clients": options.clients, "round_seconds": TAKEN}))


if __name__ == "__main__":
    # As what the engine's processes import; what lies in __main__ travels with each message.
    from benchmarks.simulator import flower_engine

    flower_engine.main()
