"""A quantized graph as a float PyTorch network, as somebody would write it who trains in float.

Convolutions with their biases, clamps where the codes' saturation is an activation, and SGD over
the tensors of which a plan trains something.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from codegen.graph.ir import INT8_MIN, Conv, DepthwiseConv, Graph, Head
from codegen.operators.add import Add
from codegen.operators.global_average_pool import GlobalAveragePool
from codegen.program.plans import Plan

CODES = 255
Q88_STEPS = 256


class Network(nn.Module):
    """Tensors of ``graph`` in real units; ``plan`` says which get gradients."""

    def __init__(self, graph: Graph, plan: Plan) -> None:
        super().__init__()
        self._steps: list[Callable[[dict[str, Tensor]], Tensor]] = []
        self._input = graph.input
        for op in graph.ops:
            if isinstance(op, (Conv, DepthwiseConv)):
                self._convolve(op, graph)
            elif isinstance(op, Add):
                self._do(op.output, lambda v, op=op: v[op.inputs[0]] + v[op.inputs[1]])
            elif isinstance(op, GlobalAveragePool):
                self._do(op.output, lambda v, op=op: v[op.input].mean((2, 3)))
            elif isinstance(op, Head):
                self._classify(op, graph, plan.head)
            else:
                raise NotImplementedError(f"{op.name}: {type(op).__name__} isn't compared")
        trained = {f"{layer}.bias" for layer in plan.biases}
        trained |= {f"{item.layer}.weight" for item in plan.weights}
        # Names of modules have no dots: those of layers may have both, and are told apart without.
        trained = {name.replace("/", ".") for name in trained}
        for name, parameter in self.named_parameters():
            if not name.startswith("head."):
                parameter.requires_grad_(name.replace("/", ".") in trained)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of samples (batch, channels, height, width)."""
        values = {self._input: x}
        for step in self._steps:
            last = step(values)
        return last

    def _do(self, output: str, made: Callable[[dict[str, Tensor]], Tensor]) -> None:
        def step(values: dict[str, Tensor]) -> Tensor:
            values[output] = made(values)
            return values[output]

        self._steps.append(step)

    def _convolve(self, op: Conv | DepthwiseConv, graph: Graph) -> None:
        depthwise = isinstance(op, DepthwiseConv)
        codes = op.weight.transpose(2, 0, 1)[:, None] if depthwise else None
        codes = op.weight.transpose(0, 3, 1, 2) if codes is None else codes
        outputs, inputs, height, width = codes.shape
        pad = op.padding
        even = pad.top == pad.bottom and pad.left == pad.right
        layer = nn.Conv2d(
            outputs if depthwise else inputs,
            outputs,
            (height, width),
            op.stride,
            (pad.top, pad.left) if even else 0,
            groups=outputs if depthwise else 1,
        )
        scale = np.asarray(op.weight_scale, np.float64)
        input_scale = graph.tensors[op.input].scale
        _fill(layer, codes * scale[:, None, None, None], op.bias * scale * input_scale)
        self.add_module(op.name.replace(".", "/"), layer)
        target = graph.tensors[op.output]
        largest = CODES * target.scale if target.zero_point == INT8_MIN else None
        around = None if even else (pad.left, pad.right, pad.top, pad.bottom)

        def made(values: dict[str, Tensor]) -> Tensor:
            x = values[op.input] if around is None else F.pad(values[op.input], around)
            y: Tensor = layer(x)
            return y if largest is None else y.clamp(0, largest)

        self._do(op.output, made)

    def _classify(self, op: Head, graph: Graph, trained: bool) -> None:
        classes, inputs = op.weight.shape
        layer = nn.Linear(inputs, classes)
        step = op.weight_scale / Q88_STEPS
        _fill(layer, op.weight * step, op.bias * step * graph.tensors[op.input].scale)
        layer.requires_grad_(trained)
        self.head = layer
        self._do("logits", lambda values: layer(values[op.input].flatten(1)))


def _fill(
    layer: nn.Conv2d | nn.Linear, weight: NDArray[np.float64], bias: NDArray[np.float64]
) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight.astype(np.float32)))
        assert layer.bias is not None
        layer.bias.copy_(torch.from_numpy(bias.astype(np.float32)))


def workers(
    graph: Graph, plan: Plan, *, channels_last: bool
) -> tuple[Callable[[int], None], Callable[[int], None]]:
    """A forward pass, and a training step, of one random sample each."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = Network(graph, plan).to(memory_format=layout)  # type: ignore[call-overload]
    height, width, channels = graph.tensors[graph.input].shape
    samples = [torch.randn(1, channels, height, width).to(memory_format=layout) for _ in range(16)]
    labels = [torch.tensor([index % graph.head.weight.shape[0]]) for index in range(16)]
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.001)

    def forward(index: int) -> None:
        with torch.inference_mode():
            network(samples[index % 16])

    def step(index: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(samples[index % 16]), labels[index % 16]).backward()
        optimizer.step()

    return forward, step
