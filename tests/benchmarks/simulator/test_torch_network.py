import numpy as np
import pytest

pytest.importorskip("torch", reason="the host engine is compared with PyTorch: pip install torch")

import torch

from benchmarks.simulator.host import cases
from benchmarks.simulator.torch_network import Network
from codegen.program.lowering import lower
from codegen.program.plans import trained_tensors
from codegen.reference.interpreter import Interpreter

LEAST_CORRELATION = 0.99


@pytest.mark.parametrize("index", [0, 1])
def test_the_network_computes_and_trains_what_the_engine_does(index: int) -> None:
    _, graph, plan = cases()[index]
    network = Network(graph, plan)
    trained = {name for name, tensor in network.named_parameters() if tensor.requires_grad}
    head = graph.head
    wanted = {name.replace(f"{head.name}.", "head.") for name in trained_tensors(graph, plan)}
    assert {name.replace("/", ".") for name in trained} == wanted
    source, of_head = graph.tensors[graph.input], graph.tensors[head.input]
    codes = np.random.default_rng(3).integers(-128, 128, (8, *source.shape)).astype(np.int8)
    values = (codes.transpose(0, 3, 1, 2) - float(source.zero_point)) * source.scale
    with torch.no_grad():
        logits = network(torch.from_numpy(values.astype(np.float32))).numpy()
    interpreter = Interpreter(lower(graph, plan))
    integers = []
    for sample in codes:
        interpreter.score(sample, 0)
        integers.append(interpreter.logits)
    made = np.array(integers) * head.weight_scale / 256 * of_head.scale
    assert np.corrcoef(made.ravel(), logits.ravel())[0, 1] > LEAST_CORRELATION
