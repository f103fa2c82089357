"""Memory of a dense training step in PyTorch: MCUNet-5FPS in float32, one sample, SGD, one thread.

The network is that of the int8 model, as ``benchmarks.simulator.torch_network`` writes it, all of
its weights and biases are trained. It runs in a process of its own, which holds PyTorch and the
network. Of several steps there is

* what the process takes at most: its peak resident memory (``VmHWM``);
* how much of that came after all imports, those included that PyTorch makes with its first
  optimizer; code that is mapped when it first runs is told apart (``RssFile``);
* PyTorch's own tensors: weights, gradients, and each storage that autograd saves for the backward
  pass, once (``saved_tensors_hooks``).

With ``BatchNorm2d`` behind each convolution, as in a network that wasn't exported for inference, it
is measured as well. Needs torch.

    python -m benchmarks.dense.pytorch [--json FILE]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from codegen.graph.ir import Graph
from codegen.program.plans import Plan

STEPS = 10


@dataclass(frozen=True)
class Memory:
    """Bytes of one process that trains."""

    imported: int
    """Resident before there is a network."""
    peak: int
    """The most that was resident."""
    code: int
    """Of what came since: pages of libraries."""
    weights: int
    gradients: int
    saved: int
    """What autograd keeps of a forward pass, without the weights."""

    @property
    def beyond_import(self) -> int:
        return self.peak - self.imported

    @property
    def tensors(self) -> int:
        return self.weights + self.gradients + self.saved


def resident(field: str) -> int:
    """``VmRSS``, or ``VmHWM``, the peak: bytes of this process."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(f"{field}:")).split()[1]) * 1024


def train(graph: Graph, everything: Plan, normalized: bool) -> Memory:
    """Steps of ``graph`` in this process, which should have done nothing before."""
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F

    from benchmarks.simulator.torch_network import Network

    torch.set_num_threads(1)
    torch.manual_seed(1)
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.001)  # it imports 80 MB
    ctypes.CDLL(None).malloc_trim(0)  # what imports left free isn't the network's
    imported, code = resident("VmRSS"), resident("RssFile")
    network = Network(graph, everything)
    parameters = list(network.parameters())
    if normalized:
        for layer in [module for module in network.modules() if isinstance(module, nn.Conv2d)]:
            norm = nn.BatchNorm2d(layer.out_channels)
            layer.register_forward_hook(lambda _layer, _inputs, output, norm=norm: norm(output))
            parameters += norm.parameters()
    height, width, channels = graph.tensors[graph.input].shape
    sample, label = torch.randn(1, channels, height, width), torch.tensor([3])
    optimizer = torch.optim.SGD(parameters, lr=0.001)
    held = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    for _ in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(sample), label).backward()
        optimizer.step()
    peak, code = resident("VmHWM"), resident("RssFile") - code
    optimizer.zero_grad(set_to_none=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = F.cross_entropy(network(sample), label)
    loss.backward()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    weight_bytes, gradient_bytes = (
        sum(tensor.untyped_storage().nbytes() for tensor in tensors)
        for tensors in (parameters, gradients)
    )
    return Memory(imported, peak, code, weight_bytes, gradient_bytes, sum(saved.values()))


def train_apart(graph: Graph, everything: Plan, normalized: bool) -> Memory:
    """``train`` in a process that begins with nothing."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, fresh) as pool:
        return pool.submit(train, graph, everything, normalized).result()


def main() -> int:
    # Here, because a new process imports this module as well.
    from benchmarks.mcunet import MODEL, require_model
    from codegen.importer.model import import_model
    from codegen.quantization.model import quantize_model
    from fleet.cli._output import console, table
    from tests.codegen.random_graphs import full_plan

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    require_model()
    graph = quantize_model(import_model(MODEL), None).graph
    found = {
        name: train_apart(graph, full_plan(graph), normalized)
        for name, normalized in (("as exported", False), ("with BatchNorm2d", True))
    }
    rows: list[list[object]] = [
        [what, *(figure(memory) for memory in found.values())]
        for what, figure in (
            ("the process", lambda memory: memory.peak),
            ("after all imports", lambda memory: memory.beyond_import),
            ("  of that: code", lambda memory: memory.code),
            ("tensors", lambda memory: memory.tensors),
            ("  weights", lambda memory: memory.weights),
            ("  gradients", lambda memory: memory.gradients),
            ("  saved for the backward pass", lambda memory: memory.saved),
        )
    ]
    console().print(table("Memory of a dense step in PyTorch, bytes", ["what", *found], rows))
    if options.json is not None:
        options.json.write_text(json.dumps({k: asdict(v) for k, v in found.items()}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
